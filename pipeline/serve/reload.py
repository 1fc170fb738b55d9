"""Which model answers now, and how another takes over without a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.errors import CheckpointError
from pipeline.release.classify import Classifier, differences, load_classifier, warm_up
from pipeline.release.package import Release
from pipeline.serve.metrics import Counters

# Of a logit, relative to the largest one, which is at least 1: other processors sum in another
# order, a wrong model is far off.
GOLDEN_TOLERANCE = 1e-4
RETRY_SECONDS = 60.0  # a file that was half copied may be whole by then, and memory may be free


@dataclass(frozen=True)
class Serving:
    """A model that is ready to answer; `since` is when, in UTC."""

    classifier: Classifier
    release_sha256: str
    since: str

    @property
    def release(self) -> Release:
        """Its names, sizes and temperature."""
        return self.classifier.release

    @property
    def model(self) -> dict[str, str]:
        """What every answer says of the model that gave it."""
        release = self.release
        digests = {"sha256": release.model_sha256, "release_sha256": self.release_sha256}
        return {"name": release.name, "version": release.version, **digests}

    def described(self) -> dict[str, Any]:
        """Return all that a person may ask of the model."""
        release = self.release
        names = ("class_names", "image_size", "short_side", "temperature", "dataset_digest")
        return {
            **self.model,
            **{name: getattr(release, name) for name in names},
            "since": self.since,
        }


def make_ready(release: Release, batch: int) -> Serving:
    """Open a release that was verified, compile it, and try it with its golden images.

    Args:
        release: as `open_release` gives it.
        batch: most images that are answered together.

    Raises:
        CheckpointError: the file cannot be read, or does not answer its golden images as it did
            when it was released.
        DatasetError: it answers something else than its classes.
    """
    classifier = load_classifier(release, batch=batch)
    warm_up(classifier)
    if release.golden:
        images = [
            ((release.directory / image.file).read_bytes(), image.logits)
            for image in release.golden
        ]
        allowed = GOLDEN_TOLERANCE * max(
            1.0, float(np.abs([image.logits for image in release.golden]).max())
        )
        found = differences(classifier, images)
        if not found <= allowed:
            raise CheckpointError(
                f"The model {release.title} does not answer its golden images as it did when it"
                f" was released. Expected logits within {allowed:.1e}. Received a difference of"
                f" {found:.1e}. Promote it again on a machine like this one."
            )
    packed = (release.directory / Release.FILE).is_file()  # a bare file has no digest but its own
    return Serving(
        classifier,
        release.sha256() if packed else "",
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


class Changeover:
    """The model that answers, `now`, and the looking for another.

    Everything but `now` belongs to the thread that calls `first` and then `watch`; so the store is
    asked by one thread alone.

    Args:
        find: returns the release to serve, verified.
        changed: returns what differs whenever `find` would return another release, and is cheap;
            None where nothing can change.
        batch: most images that are answered together.
        counters: of the service.
        say: shows a person a line.
    """

    def __init__(
        self,
        find: Callable[[], Release],
        changed: Callable[[], str] | None,
        batch: int,
        counters: Counters,
        say: Callable[[str], None],
    ):
        self._find, self._changed, self._batch, self._counters, self._say = (
            find,
            changed,
            batch,
            counters,
            say,
        )
        self._identity = self._refused = self._said = ""
        self._digest = ("", "")
        self._retry_at = 0.0
        self.now: Serving | None = None

    def first(self) -> None:
        """Open the first model; raises whatever stands against it."""
        self._identity = self._changed() if self._changed else ""
        self._take(self._find())

    def watch(self, stopping: threading.Event, every_seconds: float) -> None:
        """Look for another model until somebody asks to stop."""
        while self._changed and not stopping.wait(every_seconds):
            self.look(self._changed)

    def look(self, changed: Callable[[], str]) -> None:
        """Change over if there is another model.

        Where that cannot be done the present one goes on, and a person is told once.
        """
        try:
            identity = changed()
        except Exception as error:  # noqa: BLE001 - whatever the store does, the present model goes on answering
            self._stay("no store", error)
            return
        if identity == self._identity:
            self._said = ""
        elif identity != self._refused or time.monotonic() >= self._retry_at:
            try:
                self._change_to(identity)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the present model goes on answering
                self._refused, self._retry_at = identity, time.monotonic() + RETRY_SECONDS
                self._stay("failed", error)

    def _change_to(self, identity: str) -> None:
        release = self._find()
        if (release.version, release.sha256()) != self._digest:
            self._take(release)
            self._counters.reloads.labels("ok").inc()
        self._identity, self._refused = identity, ""

    def _take(self, release: Release) -> None:
        """Let a model answer every request that begins from here on."""
        self.now = make_ready(release, self._batch)
        self._digest = (release.version, release.sha256())
        self._counters.name_model(release.name, release.version, release.model_sha256)
        self._tell(f"{release.title} answers now (SHA-256 {release.model_sha256[:12]}...).")

    def _stay(self, result: str, error: Exception) -> None:
        self._counters.reloads.labels(result).inc()
        present = self.now.release.title if self.now else "No model"
        self._tell(
            f"{present} goes on answering: {' '.join(str(error).split()) or type(error).__name__}"
        )

    def _tell(self, line: str) -> None:
        """Show a line unless it was the last one."""
        if line != self._said:
            self._said = line
            self._say(line)
