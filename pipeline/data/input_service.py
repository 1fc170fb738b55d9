"""Other hosts that decode a training split's images.

`python -m pipeline.data.input_service` on each, and train.data_services here.

Each host has a tf.data service of its own with one worker, and takes every n-th batch. So batches
come in the same order and with the same bytes as without hosts, which a service that hands out work
as it likes could not promise. Hosts must see the shards under the same path.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from pipeline.data.source import fixed_options
from pipeline.errors import ConfigError


def from_services(
    addresses: Sequence[str], places: Any, batches_of: Callable[[Any, tuple[int, int]], Any]
) -> Any:
    """Return batches that hosts prepare in turn, as a tf.data.Dataset in the order of `places`.

    Args:
        addresses: `host:port` of each.
        places: int64 [batches, batch], of an epoch's order.
        batches_of: makes the batches of some rows of `places`, given whose turn they are.

    Raises:
        ConfigError: a host does not answer.
    """
    count = len(addresses)
    for address in addresses:
        _require_answer(address)
    service = tf.data.experimental.service
    parts = [
        # Not compressed: pixels hardly shrink.
        batches_of(places[index::count], (index, count)).apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.OFF,
                service=f"grpc://{address}",
                compression=None,
            )
        )
        for index, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(places)).map(lambda number: number % count)
    return (
        tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)
        .prefetch(count)
        .with_options(fixed_options())
    )


def _require_answer(address: str) -> None:
    """Raise a ConfigError where nobody listens; TensorFlow would go on trying."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"Nobody answers at {address} of train.data_services ({error}). Expected an input"
            f" service. Type there: python -m pipeline.data.input_service --port {port}"
        ) from error


def main() -> None:
    """Serve until the process is ended."""
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
    main()
