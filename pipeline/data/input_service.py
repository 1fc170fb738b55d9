"""A service that decodes training images on another host.

`python -m pipeline.data.input_service` on each, and train.data_services on the training host.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

import tensorflow as tf


def run_input_service() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.data.input_service",
        description=__doc__.splitlines()[0] if __doc__ else "",
    )
    parser.add_argument(
        "--port", type=int, default=5050, help="the next port is used, too [%(default)s]"
    )
    parser.add_argument(
        "--host",
        default=socket.gethostname(),
        help="name under which the training host reaches this one [%(default)s]",
    )
    options = parser.parse_args()
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=options.port))
    address = f"{options.host}:{options.port + 1}"
    worker = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=f"localhost:{options.port}",
            worker_address=address,
            port=options.port + 1,
        )
    )
    sys.stdout.write(
        "Ready. Type on the training host: --set"
        f" train.data_services={options.host}:{options.port}\n"
    )
    sys.stdout.flush()
    worker.join()
    dispatcher.join()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    run_input_service()
