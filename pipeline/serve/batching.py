"""Images of many requests, answered together by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import Floats
from pipeline.release.classify import Classifier


@dataclass(slots=True)
class _Request:
    """Images that came together, and are answered together however many batches they are spread over."""

    future: Future[Floats]
    rows: list[Any]
    missing: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An image in the queue: uint8 [image_size, image_size, 3] in [0, 255], and its place in its request."""

    classifier: Classifier
    pixels: Any
    arrived: float
    request: _Request
    place: int

    def answered(self, logits: Floats) -> None:
        """Note the image's own logits, float32 [classes].

        The last one of a request completes it.
        """
        self.request.rows[self.place] = logits
        self.request.missing -= 1
        if not self.request.missing and not self.request.future.done():
            self.request.future.set_result(np.stack(self.request.rows))

    def failed(self, error: Exception) -> None:
        """Let whoever waits for the request see the error."""
        self.request.missing -= 1
        if not self.request.future.done():
            self.request.future.set_exception(error)


class Batcher:
    """A queue and the one thread that answers it.

    A batch holds images for one classifier, in the order in which they came: so each is answered by
    the classifier that cut its pixels, while a newer one takes over. Nothing here bounds the queue:
    who puts images in has counted them.
    """

    def __init__(self, most: int, wait_seconds: float, tell: Callable[[int], object]):
        self._most, self._wait_seconds, self._tell = most, wait_seconds, tell
        self._queue: deque[_Waiting] = deque()
        self._arrival = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def answer(self, classifier: Classifier, pixels: Sequence[Any]) -> Future[Floats]:
        """Return a future of float32 [images, classes] logits.

        Args:
            classifier: the one whose `pixels` gave these.
            pixels: at least one, each uint8 [image_size, image_size, 3] in [0, 255].
        """
        request = _Request(Future(), [None] * len(pixels), len(pixels))
        now = time.monotonic()
        with self._arrival:
            self._queue.extend(
                _Waiting(classifier, own, now, request, place) for place, own in enumerate(pixels)
            )
            self._arrival.notify()
        return request.future

    def close(self) -> None:
        """Answer what is in the queue, then end the thread."""
        with self._arrival:
            self._closed = True
            self._arrival.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._tell(len(batch))
            _answer(batch)

    def _next(self) -> list[_Waiting]:
        """Wait for images, and for more of them as long as the first may wait.

        Nothing once the queue is closed and empty.
        """
        with self._arrival:
            self._arrival.wait_for(lambda: self._queue or self._closed)
            if self._queue:
                left = self._queue[0].arrived + self._wait_seconds - time.monotonic()
                self._arrival.wait_for(
                    lambda: len(self._queue) >= self._most or self._closed, timeout=max(left, 0)
                )
            batch: list[_Waiting] = []
            while (
                self._queue
                and len(batch) < self._most
                and (not batch or self._queue[0].classifier is batch[0].classifier)
            ):
                batch.append(self._queue.popleft())
            return batch


def _answer(batch: Sequence[_Waiting]) -> None:
    """Answer a batch; where that fails each image alone, so that one that cannot be answered harms no other."""
    try:
        found = batch[0].classifier.logits(np.stack([waiting.pixels for waiting in batch]))
    except Exception as error:  # noqa: BLE001 - raised where the answer is awaited
        if len(batch) == 1:
            batch[0].failed(error)
        else:
            for waiting in batch:
                _answer([waiting])
        return
    for waiting, logits in zip(batch, found, strict=True):
        waiting.answered(logits)
