"""Predictions for the images of a request, within limits.

    request --read and parse--> image files --decode, in threads--> pixels --one queue--> batches
    --one thread--> logits --> predictions

Every step has a limit: bytes while a request arrives, images from then on. A request beyond a limit
is refused at once, with 429 where it may be sent again, so that those inside are answered in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request

from pipeline.config.serve import ServeConfig
from pipeline.release.classify import Classifier, UnusableError
from pipeline.serve.batching import Batcher
from pipeline.serve.metrics import ServiceMetrics
from pipeline.serve.reload import ModelReloader, ServedModel
from pipeline.serve.requests import (
    PredictOptions,
    RefusedRequestError,
    UploadedImage,
    parse_media_type,
    parse_upload,
    read_body,
)

if TYPE_CHECKING:
    from pipeline.arrays import Image, Logits

    # The pixels of an image, or the reason why it cannot be classified.
    Decoded: TypeAlias = Image | str

_DEFAULT_TOP = 5
_MAX_DECODERS = 4  # threads; each may hold a decoded image of _LARGE_PIXELS
# Larger images are decoded one at a time, on a thread of their own: one of 50 million pixels may
# take seconds and gigabytes.
_LARGE_PIXELS = 16_000_000
_MAX_BODIES = 32  # requests of the largest size that are held in memory together


class Predictor:
    """The served model, the queue and threads before it, and the count of what they hold.

    Args:
        config: the limits.
        reloader: holds the model that is served.
        metrics: of the service.
    """

    def __init__(self, config: ServeConfig, reloader: ModelReloader, metrics: ServiceMetrics):
        self._config, self._reloader, self.metrics = config, reloader, metrics
        self._max_bytes = int(config.max_megabytes * 1e6)
        self._max_images = min(config.max_images, config.max_queue)
        self._bytes = self._images = 0  # held by requests; counted by the event loop's thread alone
        self.draining = False  # whether new requests should go to another instance
        self._threads = ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1), "decoder")
        self._large_thread = ThreadPoolExecutor(1, "large")
        self._batcher = Batcher(
            config.max_batch, config.max_wait_milliseconds / 1000, metrics.batches.observe
        )
        metrics.queue.set_function(lambda: self._images)

    @property
    def limits(self) -> dict[str, int]:
        """The limits of a request: bytes, images, and pixels of an image."""
        return {
            "bytes": self._max_bytes,
            "images": self._max_images,
            "pixels": self._config.max_pixels,
        }

    def drain(self) -> None:
        """Report from now on that new requests should go to another instance."""
        self.draining = True

    def close(self) -> None:
        """End the threads; what they have begun is finished."""
        for threads in (self._threads, self._large_thread):
            threads.shutdown(cancel_futures=True)
        self._batcher.close()

    def current_model(self) -> ServedModel:
        """Return the model that is served.

        Raises:
            RefusedRequestError: the first one is not yet loaded (503).
        """
        if self._reloader.current is None:
            raise RefusedRequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The model is still loading; retry in a minute.",
                retryable=True,
            )
        return self._reloader.current

    async def predict(self, request: Request) -> dict[str, Any]:
        """Return the predictions for the images of a request, as the JSON of its answer.

        Raises:
            RefusedRequestError: the request is refused, or its only image cannot be classified.
            PipelineError: the model's logits are not finite.
        """
        self.current_model()
        content_type = request.headers.get("content-type", "")
        parse_media_type(content_type)
        with self._reserve_bytes() as reserve:
            body = await read_body(request, self._max_bytes, self._config.upload_seconds, reserve)
            images, options = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                parse_upload,
                body,
                content_type,
                request.query_params,
                self._max_images,
            )
            model = self.current_model()  # for this whole request, also during a hot reload
            top = _checked_top(options, len(model.release.class_names))
            with self._reserve_queue(len(images)):
                decoded = await self._decode(model.classifier, images)
                logits = await self._compute_logits(model.classifier, decoded)
                predictions = self._predictions(model, images, decoded, logits, top, options)
        if len(predictions) == 1 and "error" in predictions[0]:
            raise RefusedRequestError(HTTPStatus.UNPROCESSABLE_ENTITY, predictions[0]["error"])
        return {"model": model.identity, "predictions": predictions}

    @contextlib.contextmanager
    def _reserve_bytes(self) -> Iterator[Callable[[int], None]]:
        """Yield what counts the bytes that a request holds; they are released at its end."""
        held = 0

        def reserve(count: int) -> None:
            nonlocal held
            max_bytes = _MAX_BODIES * self._max_bytes
            if self._bytes + count > max_bytes:
                raise self._busy("bytes", f"at most {max_bytes:,} bytes")
            self._bytes, held = self._bytes + count, held + count

        try:
            yield reserve
        finally:
            self._bytes -= held

    @contextlib.contextmanager
    def _reserve_queue(self, count: int) -> Iterator[None]:
        """Hold room for images in the queue, from before the decoding until the answer."""
        if self._images + count > self._config.max_queue:
            raise self._busy("images", f"at most {self._config.max_queue:,} images")
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    def _busy(self, reason: str, limit: str) -> RefusedRequestError:
        self.metrics.rejected.labels(reason).inc()
        return RefusedRequestError(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"Too many requests: {limit} at a time; retry in a second.",
            retryable=True,
        )

    async def _decode(
        self, classifier: Classifier, images: Sequence[UploadedImage]
    ) -> list[Decoded]:
        """Return each image's pixels, uint8 [height, width, 3], or why there are none.

        The images of a request are divided among the threads. Large ones are submitted one by one,
        so that those of other requests come in between.
        """
        loop = asyncio.get_running_loop()
        decoded: dict[int, Decoded] = {}
        large = [index for index, image in enumerate(images) if image.area > _LARGE_PIXELS]
        small = sorted(set(range(len(images))) - set(large))

        async def decode_on(threads: ThreadPoolExecutor, indices: Sequence[int]) -> None:
            encoded = [images[index].encoded for index in indices]
            done = await loop.run_in_executor(
                threads, _decode_images, classifier, encoded, self._config.max_pixels
            )
            decoded.update(zip(indices, done, strict=True))

        async def decode_large() -> None:
            for index in large:
                await decode_on(self._large_thread, [index])

        groups = [small[start::_MAX_DECODERS] for start in range(min(_MAX_DECODERS, len(small)))]
        await asyncio.gather(decode_large(), *(decode_on(self._threads, group) for group in groups))
        return [decoded[index] for index in range(len(images))]

    async def _compute_logits(
        self, classifier: Classifier, decoded: Sequence[Decoded]
    ) -> Logits | None:
        """Return float32 [usable images, classes], or None where none is usable."""
        usable = [pixels for pixels in decoded if not isinstance(pixels, str)]
        if not usable:
            return None
        return await asyncio.wrap_future(self._batcher.submit(classifier, usable))

    def _predictions(
        self,
        model: ServedModel,
        images: Sequence[UploadedImage],
        decoded: Sequence[Decoded],
        logits: Logits | None,
        top: int,
        options: PredictOptions,
    ) -> list[dict[str, Any]]:
        """Return the prediction of each image, or its `error` where it cannot be classified."""
        guessed = iter(
            ()
            if logits is None
            else zip(model.classifier.rank_classes(logits, top), logits, strict=True)
        )
        predictions: list[dict[str, Any]] = []
        for image, pixels in zip(images, decoded, strict=True):
            prediction: dict[str, Any] = {"name": image.name}
            if isinstance(pixels, str):
                prediction["error"] = self._describe_unusable(pixels)
            else:
                guesses, row = next(guessed)
                prediction["top"] = [
                    {"class": item.name, "number": item.number, "probability": item.probability}
                    for item in guesses
                ]
                if options.logits:
                    prediction["logits"] = row.tolist()
            predictions.append(prediction)
            self.metrics.images.labels("unusable" if "error" in prediction else "answered").inc()
        return predictions

    def _describe_unusable(self, reason: str) -> str:
        return (
            f"The image cannot be used: {reason}; send a JPEG, PNG, BMP, WebP or still GIF file of"
            f" at most {self._config.max_pixels:,} pixels."
        )


def _checked_top(options: PredictOptions, classes: int) -> int:
    """Return the number of classes to name in each prediction."""
    if options.top is None:
        return min(_DEFAULT_TOP, classes)
    if options.top > classes:
        raise RefusedRequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"top={options.top} is more than the model's classes; use top=1 to {classes}.",
        )
    return options.top


def _decode_images(
    classifier: Classifier, encoded: Sequence[bytes], max_pixels: int
) -> list[Decoded]:
    """Return each image's pixels, or the reason why there are none."""
    return [_decode_image(classifier, image, max_pixels) for image in encoded]


def _decode_image(classifier: Classifier, encoded: bytes, max_pixels: int) -> Decoded:
    try:
        return classifier.prepare_pixels(encoded, max_pixels=max_pixels)
    except UnusableError as error:
        return str(error)
