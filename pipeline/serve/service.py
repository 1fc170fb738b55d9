"""The service of a released model over HTTP.

`/predict` for programs, a page at `/` for people, `/metrics` for monitoring: `routes.py` lists the
endpoints. Two threads beside the event loop's: one classifies batches (`batching.py`), one watches
for another release and loads it beside the one that is served (`reload.py`), which is replaced
between two requests.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable

from pipeline.config.serve import ServeConfig
from pipeline.release.package import Release
from pipeline.serve.metrics import make_metrics
from pipeline.serve.prediction import Predictor
from pipeline.serve.reload import ModelReloader
from pipeline.serve.routes import count_request, make_app
from pipeline.serve.server import Server, find_allowed_hosts, guard_app, open_listener

_LOADING_SECONDS = 15.0  # that a graceful shutdown waits for a model that is just being loaded


def run_service(
    find_release: Callable[[], Release],
    config: ServeConfig,
    *,
    log: Callable[[str], None],
    identify_release: Callable[[], str] | None = None,
) -> None:
    """Answer over HTTP until SIGINT or SIGTERM, then finish the requests in progress and return.

    Args:
        find_release: returns the release to serve, verified; called at the start and on a change.
        config: the address and the limits.
        log: shows a line to the operator; also called from a thread.
        identify_release: returns a text that differs whenever `find_release` would return another
            release, and is cheap; None where the release cannot change.

    Raises:
        PipelineError: the address cannot be bound, or the first model cannot be loaded.
    """
    Service(find_release, config, log=log, identify_release=identify_release).run()


class Service:
    """A service that holds its port already, and answers from `run` until `stop` or a signal.

    The arguments are those of `run_service`.
    """

    def __init__(
        self,
        find_release: Callable[[], Release],
        config: ServeConfig,
        *,
        log: Callable[[str], None],
        identify_release: Callable[[], str] | None = None,
    ):
        self._config, self._log = config, log
        self._listener = open_listener(config.host, config.port)
        metrics = make_metrics()
        self._reloader = ModelReloader(
            find_release, identify_release, config.max_batch, metrics, log
        )
        self._predictor = Predictor(config, self._reloader, metrics)
        app = guard_app(
            make_app(self._predictor),
            find_allowed_hosts(self._listener, config.host),
            functools.partial(count_request, metrics),
        )
        self._server = Server(app, config.upload_seconds, self._predictor.drain)
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> None:
        """Answer until `stop` or a signal; raises any error of loading the first model."""
        watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        watcher.start()
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self._log(f"Listening at http://{host}:{self._config.port}/ (stop with Ctrl-C).")
        with contextlib.closing(self._listener):
            self._server.run(sockets=[self._listener])
        self._stopping.set()
        watcher.join(_LOADING_SECONDS)
        self._predictor.close()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Let `run` finish the requests in progress and return; from any thread."""
        self._predictor.drain()
        self._server.should_exit = True

    def _watch(self) -> None:
        try:
            self._reloader.load_first()
        except Exception as error:  # noqa: BLE001 - raised where the service was started
            self._failure = error
            self.stop()
        else:
            self._reloader.watch(self._stopping, self._config.reload_seconds)
