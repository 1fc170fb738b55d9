"""Batching: images of many requests, classified together by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.release.classify import Classifier

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image, Logits


@dataclass(slots=True)
class _PendingRequest:
    """Images that came together and are answered together, over however many batches.

    `rows` holds each image's float32 [classes] logits once known; `missing` counts the rest.
    """

    future: Future[Logits]
    rows: list[Floats | None]
    missing: int


@dataclass(frozen=True, slots=True)
class _QueuedImage:
    """An image in the queue: uint8 [height, width, 3], and its index in its request."""

    classifier: Classifier
    pixels: Image
    arrived: float
    request: _PendingRequest
    index: int

    def set_logits(self, logits: Floats) -> None:
        """Store the image's logits, float32 [classes]; the last image completes its request."""
        self.request.rows[self.index] = logits
        self.request.missing -= 1
        if not self.request.missing and not self.request.future.done():
            rows = [row for row in self.request.rows if row is not None]
            self.request.future.set_result(np.stack(rows))

    def set_error(self, error: Exception) -> None:
        """Fail the image's request."""
        self.request.missing -= 1
        if not self.request.future.done():
            self.request.future.set_exception(error)


class Batcher:
    """A queue of images and the one thread that classifies them.

    A batch holds images for one classifier, in the order of arrival, so that each is classified by
    the classifier that decoded it, also during a hot reload. The queue has no limit of its own: the
    caller counts what it submits.

    Args:
        max_batch: images classified together.
        max_wait_seconds: that the first image of a batch waits for others.
        observe: called with the size of each batch.
    """

    def __init__(self, max_batch: int, max_wait_seconds: float, observe: Callable[[int], object]):
        self._max_batch, self._max_wait_seconds = max_batch, max_wait_seconds
        self._observe = observe
        self._queue: deque[_QueuedImage] = deque()
        self._arrival = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, classifier: Classifier, images: Sequence[Image]) -> Future[Logits]:
        """Return a future of float32 [images, classes] logits.

        Args:
            classifier: the one whose `pixels` decoded the images.
            images: at least one, each uint8 [height, width, 3] in [0, 255].
        """
        request = _PendingRequest(Future(), [None] * len(images), len(images))
        now = time.monotonic()
        with self._arrival:
            self._queue.extend(
                _QueuedImage(classifier, pixels, now, request, index)
                for index, pixels in enumerate(images)
            )
            self._arrival.notify()
        return request.future

    def close(self) -> None:
        """Classify what is in the queue, then end the thread."""
        with self._arrival:
            self._closed = True
            self._arrival.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._observe(len(batch))
            _classify_batch(batch)

    def _next_batch(self) -> list[_QueuedImage]:
        """Wait for images, then for more of them as long as the first may wait.

        The batch is empty once the queue is closed and empty.
        """
        with self._arrival:
            self._arrival.wait_for(lambda: self._queue or self._closed)
            if self._queue:
                left = self._queue[0].arrived + self._max_wait_seconds - time.monotonic()
                self._arrival.wait_for(
                    lambda: len(self._queue) >= self._max_batch or self._closed,
                    timeout=max(left, 0),
                )
            batch: list[_QueuedImage] = []
            while (
                self._queue
                and len(batch) < self._max_batch
                and (not batch or self._queue[0].classifier is batch[0].classifier)
            ):
                batch.append(self._queue.popleft())
            return batch


def _classify_batch(batch: Sequence[_QueuedImage]) -> None:
    """Classify a batch; where that fails each image alone, so that one fails no other."""
    try:
        found = batch[0].classifier.predict_logits(np.stack([queued.pixels for queued in batch]))
    except Exception as error:  # noqa: BLE001 - raised where the result is awaited
        if len(batch) == 1:
            batch[0].set_error(error)
        else:
            for queued in batch:
                _classify_batch([queued])
        return
    for queued, logits in zip(batch, found, strict=True):
        queued.set_logits(logits)
