"""Hot reload: which model is served, and how another one replaces it without a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.errors import CheckpointError, describe_cause
from pipeline.release.classify import Classifier, load_classifier, measure_logit_difference, warm_up
from pipeline.release.package import Release
from pipeline.serve.metrics import ServiceMetrics

# Of a logit, relative to the largest one, which is at least 1: other processors sum in another
# order, a wrong model is far off.
GOLDEN_TOLERANCE = 1e-4
# Pause before a release that failed is tried again, in seconds: a half-copied file may be whole by
# then, and memory may be free.
RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to answer; `since` is when it was loaded, in UTC."""

    classifier: Classifier
    release_sha256: str
    since: str

    @property
    def release(self) -> Release:
        """Its names, sizes and temperature."""
        return self.classifier.release

    @property
    def identity(self) -> dict[str, str]:
        """The name, version and digests that every answer carries."""
        release = self.release
        digests = {"sha256": release.model_sha256, "release_sha256": self.release_sha256}
        return {"name": release.name, "version": release.version, **digests}

    def as_dict(self) -> dict[str, Any]:
        """Return what `GET /model` shows of the model."""
        release = self.release
        names = (
            "class_names",
            "image_size",
            "short_side",
            "fit",
            "temperature",
            "dataset_digest",
        )
        return {
            **self.identity,
            **{name: getattr(release, name) for name in names},
            "since": self.since,
        }


def load_served_model(release: Release, max_batch: int) -> ServedModel:
    """Open a verified release, compile it, and check it on its golden images.

    Args:
        release: as `open_release` gives it.
        max_batch: images that are classified together.

    Raises:
        CheckpointError: the file cannot be read, or its logits for its golden images are not those
            recorded when it was released.
        DatasetError: its classes are not those of the network.
    """
    classifier = load_classifier(release, batch=max_batch)
    warm_up(classifier)
    if release.golden:
        images = [
            ((release.directory / image.file).read_bytes(), image.logits)
            for image in release.golden
        ]
        allowed = GOLDEN_TOLERANCE * max(
            1.0, float(np.abs([image.logits for image in release.golden]).max())
        )
        found = measure_logit_difference(classifier, images)
        if not found <= allowed:
            raise CheckpointError(
                f"The model {release.title} does not answer its golden images as it did when it was"
                " released",
                expected=f"logits within {allowed:.1e}",
                received=f"a difference of {found:.1e}",
                hint="Promote it again on a machine like this one",
            )
    packed = (release.directory / Release.FILE).is_file()  # a bare file has no digest but its own
    return ServedModel(
        classifier,
        release.sha256() if packed else "",
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


class ModelReloader:
    """The model that is served, `current`, and the search for a newer one.

    Everything but `current` belongs to the thread that calls `load_first` and then `watch`, so that
    one thread alone reads the store.

    Args:
        find_release: returns the release to serve, verified.
        identify_release: returns a text that differs whenever `find_release` would return another
            release, and is cheap; None where the release cannot change.
        max_batch: images that are classified together.
        metrics: of the service.
        log: shows a line to the operator.
    """

    def __init__(
        self,
        find_release: Callable[[], Release],
        identify_release: Callable[[], str] | None,
        max_batch: int,
        metrics: ServiceMetrics,
        log: Callable[[str], None],
    ):
        self._find_release, self._identify_release = find_release, identify_release
        self._max_batch, self._metrics, self._log = max_batch, metrics, log
        self._identity = self._failed_identity = self._last_line = ""
        self._digest = ("", "")
        self._retry_at = 0.0
        self.current: ServedModel | None = None

    def load_first(self) -> None:
        """Load the first model; raises any error of finding or opening it."""
        self._identity = self._identify_release() if self._identify_release else ""
        self._serve_release(self._find_release())

    def watch(self, stopping: threading.Event, every_seconds: float) -> None:
        """Look for another release at an interval until `stopping` is set."""
        while self._identify_release and not stopping.wait(every_seconds):
            self.check(self._identify_release)

    def check(self, identify_release: Callable[[], str]) -> None:
        """Reload if there is another release.

        Where that fails the current model stays, and the reason is logged once.
        """
        try:
            identity = identify_release()
        except Exception as error:  # noqa: BLE001 - the current model stays
            self._keep_current("no store", error)
            return
        if identity == self._identity:
            self._last_line = ""
        elif identity != self._failed_identity or time.monotonic() >= self._retry_at:
            try:
                self._reload(identity)
            except Exception as error:  # noqa: BLE001 - as above
                self._failed_identity = identity
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._keep_current("failed", error)

    def _reload(self, identity: str) -> None:
        release = self._find_release()
        if (release.version, release.sha256()) != self._digest:
            self._serve_release(release)
            self._metrics.reloads.labels("ok").inc()
        self._identity, self._failed_identity = identity, ""

    def _serve_release(self, release: Release) -> None:
        """Load a release, which answers every request that begins from then on."""
        self.current = load_served_model(release, self._max_batch)
        self._digest = (release.version, release.sha256())
        self._metrics.set_model(release.name, release.version, release.model_sha256)
        self._log_once(f"Serving {release.title} (SHA-256 {release.model_sha256[:12]}...).")

    def _keep_current(self, result: str, error: Exception) -> None:
        self._metrics.reloads.labels(result).inc()
        title = self.current.release.title if self.current else "no model"
        self._log_once(f"Still serving {title}: {describe_cause(error, 500)}")

    def _log_once(self, line: str) -> None:
        """Log a line unless it was the last one."""
        if line != self._last_line:
            self._last_line = line
            self._log(line)
