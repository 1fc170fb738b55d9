"""A released model behind HTTP.

`/predict` for programs, a page at `/` for people, `/metrics` for whoever keeps watch.

    request --read, take apart--> image files --decode, in threads--> pixels --one queue--> batches
    --one thread--> logits --> answer

Every step is bounded: bytes while a request comes in, images from then on. What is beyond a bound
is refused at once, with 429 where it may be sent again, so that those inside are answered in time.
Another model is opened beside the one that answers, and takes over between two requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from pipeline.config.serve import ServeConfig
from pipeline.errors import PipelineError
from pipeline.evaluate.metrics import Floats
from pipeline.release.classify import Classifier, UnusableError
from pipeline.release.package import Release
from pipeline.serve.batching import Batcher
from pipeline.serve.metrics import Counters, make_counters
from pipeline.serve.page import PAGE, PAGE_POLICY
from pipeline.serve.reload import Changeover, Serving
from pipeline.serve.requests import RefusedRequestError, Sent, Wishes, kind_of, parse, read_body
from pipeline.serve.server import Server, guarded, listen, names_of

_TOP = 5
_DECODERS = 4  # threads at most; each may hold a decoded image of _LARGE pixels
# Larger images are decoded one at a time, on a thread of their own: one of 50 million pixels may
# take seconds and gigabytes.
_LARGE = 16_000_000
_BODIES = 32  # requests of the largest size that are held in memory together
_LAST_SECONDS = 15.0  # how long the end waits for a model that is just being opened


def serve(
    find: Callable[[], Release],
    config: ServeConfig,
    *,
    say: Callable[[str], None],
    changed: Callable[[], str] | None = None,
) -> None:
    """Answer over HTTP until SIGINT or SIGTERM, then finish the requests that are there and return.

    Args:
        find: returns the release to serve, verified; asked at the start and whenever it changed.
        config: the address and the bounds.
        say: shows a person a line; also called from a thread.
        changed: returns a text that differs whenever `find` would return another release, and is
            cheap; None where nothing can change.

    Raises:
        PipelineError: the address cannot be listened at, or the first model cannot be opened.
    """
    Service(find, config, say=say, changed=changed).run()


class Service:
    """A service that holds its port already, and answers from `run` until `stop` or a signal.

    The arguments are those of `serve`.
    """

    def __init__(
        self,
        find: Callable[[], Release],
        config: ServeConfig,
        *,
        say: Callable[[str], None],
        changed: Callable[[], str] | None = None,
    ):
        self._config, self._say = config, say
        self._listener = listen(config.host, config.port)
        counters = make_counters()
        self._changeover = Changeover(find, changed, config.batch, counters, say)
        self._answers = Answers(config, self._changeover, counters)
        app = guarded(
            make_app(self._answers), names_of(self._listener, config.host), self._answers.count
        )
        self._server = Server(app, config.upload_seconds, self._answers.drain)
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> None:
        """Answer until somebody asks to stop; raises what stands against the first model."""
        watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        watcher.start()
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self._say(f"Listening at http://{host}:{self._config.port}/ - Ctrl-C ends it.")
        with contextlib.closing(self._listener):
            self._server.run(sockets=[self._listener])
        self._stopping.set()
        watcher.join(_LAST_SECONDS)
        self._answers.close()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Let `run` finish what is there and return; from any thread."""
        self._answers.drain()
        self._server.should_exit = True

    def _watch(self) -> None:
        try:
            self._changeover.first()
        except Exception as error:  # noqa: BLE001 - raised where the service was started
            self._failure = error
            self.stop()
        else:
            self._changeover.watch(self._stopping, self._config.reload_seconds)


# -- what is asked and answered --------------------------------------------------------------------


def make_app(answers: Answers) -> FastAPI:
    """Return the application: which path is answered by what, and errors as sentences."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for path, endpoint in answers.endpoints().items():
        app.add_route(path, endpoint, methods=["POST" if path == "/predict" else "GET"])
    for kind, handler in (
        (RefusedRequestError, _refused),
        (HTTPException, _no_such),
        (PipelineError, _failed),
        (Exception, _failed),
    ):
        app.add_exception_handler(kind, handler)
    return app


async def _refused(_request: Request, error: Any) -> Response:
    return _error(error.status, str(error), {"Retry-After": "1"} if error.retry else None)


async def _no_such(request: Request, error: Any) -> Response:
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = error.headers["Allow"]
        sentence = (
            f"{request.url.path} is not asked that way. Expected {allowed}. Received"
            f" {request.method}. Send it again."
        )
    else:
        expected = "POST /predict, or GET of /, /model, /health, /ready or /metrics"
        sentence = (
            f"There is nothing here. Expected {expected}. Received {request.url.path[:100]}. Look"
            " at the address."
        )
    return _error(error.status_code, sentence, error.headers)


async def _failed(_request: Request, error: Exception) -> Response:
    """Show what a person can act on.

    A bug shows its traceback where the service runs, not to whoever asked.
    """
    known = (
        str(error) if isinstance(error, PipelineError) else "The service failed. Its log says why."
    )
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, known)


def _error(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _not_ready(sentence: str) -> RefusedRequestError:
    return RefusedRequestError(HTTPStatus.SERVICE_UNAVAILABLE, sentence, retry=True)


class Answers:
    """The answers to each path, and what requests share.

    The queue, the threads, and the count of what they hold.
    """

    def __init__(self, config: ServeConfig, changeover: Changeover, counters: Counters):
        self._config, self._changeover, self._counters = config, changeover, counters
        self._max_bytes = int(config.max_megabytes * 1e6)
        self._max_images = min(config.max_images, config.queue)
        self._bytes = self._images = 0  # held by requests; counted by the event loop's thread alone
        self._draining = False
        self._threads = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), "decoder")
        self._large_thread = ThreadPoolExecutor(1, "large")
        self._batcher = Batcher(
            config.batch, config.wait_milliseconds / 1000, counters.batches.observe
        )
        counters.queue.set_function(lambda: self._images)

    def endpoints(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """Return what answers each path; `/predict` is asked by POST, the others by GET."""
        return {
            "/": self.page,
            "/predict": self.predict,
            "/model": self.model,
            "/health": self.health,
            "/ready": self.ready,
            "/metrics": self.metrics,
        }

    def drain(self) -> None:
        """Say from now on that nobody should send more."""
        self._draining = True

    def close(self) -> None:
        """End the threads; what they have begun is finished."""
        for threads in (self._threads, self._large_thread):
            threads.shutdown(cancel_futures=True)
        self._batcher.close()

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request; paths that do not exist are one, or anybody could fill the memory with names."""
        self._counters.requests.labels(
            path if path in self.endpoints() else "other", str(status)
        ).inc()
        if path == "/predict":
            self._counters.seconds.observe(seconds)

    async def page(self, _request: Request) -> Response:
        """Return the page where a person drops an image."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})

    async def health(self, _request: Request) -> Response:
        """Say that the process is alive."""
        return JSONResponse({"alive": True})

    async def ready(self, _request: Request) -> Response:
        """Say whether requests should be sent here."""
        serving = self._serving()
        if self._draining:
            raise _not_ready(
                "The service is ending. Expected another one in its place. Ask that one."
            )
        return JSONResponse({"ready": True, "model": serving.model})

    async def model(self, _request: Request) -> Response:
        """Describe the model that answers, and what it may be asked."""
        limits = {
            "bytes": self._max_bytes,
            "images": self._max_images,
            "pixels": self._config.max_pixels,
        }
        return JSONResponse({**self._serving().described(), "limits": limits})

    async def metrics(self, _request: Request) -> Response:
        """Return all counters."""
        return Response(generate_latest(self._counters.registry), media_type=CONTENT_TYPE_LATEST)

    async def predict(self, request: Request) -> Response:
        """Classify the images of a request."""
        self._serving()
        content_type = request.headers.get("content-type", "")
        kind_of(content_type)
        with self._memory() as take:
            body = await read_body(request, self._max_bytes, self._config.upload_seconds, take)
            arguments = (body, content_type, request.query_params, self._max_images)
            images, wishes = await asyncio.get_running_loop().run_in_executor(
                self._threads, parse, *arguments
            )
            serving = (
                self._serving()
            )  # the model that this request is answered by, whatever takes over meanwhile
            top = _top(wishes, len(serving.release.class_names))
            with self._places(len(images)):
                found = await self._pixels(serving.classifier, images)
                return self._answer(
                    serving,
                    images,
                    found,
                    await self._logits(serving.classifier, found),
                    top,
                    wishes,
                )

    def _serving(self) -> Serving:
        if self._changeover.now is None:
            raise _not_ready("The model is being opened. Expected it within a minute. Ask again.")
        return self._changeover.now

    @contextlib.contextmanager
    def _memory(self) -> Iterator[Callable[[int], None]]:
        """Give what is told the bytes that a request holds, and forget them when it ends."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self._bytes + count > _BODIES * self._max_bytes:
                raise self._busy("bytes", f"the requests hold {self._bytes:,} bytes")
            self._bytes, held = self._bytes + count, held + count

        try:
            yield take
        finally:
            self._bytes -= held

    @contextlib.contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """Hold places in the queue, from before the decoding until the answer."""
        if self._images + count > self._config.queue:
            raise self._busy("images", f"{self._images:,} images wait")
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    def _busy(self, reason: str, received: str) -> RefusedRequestError:
        self._counters.rejected.labels(reason).inc()
        return RefusedRequestError(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"The service has no room. Expected at most {self._config.queue:,} images at a time."
            f" Received more: {received}. Send it again in a second.",
            retry=True,
        )

    async def _pixels(self, classifier: Classifier, images: Sequence[Sent]) -> list[Any]:
        """Return what the network sees of each image, uint8 [image_size, image_size, 3] in [0, 255], or the reason why that is nothing.

        Those of a request are shared among the threads. Large ones are handed over one by one, so
        that those of other requests come in between.
        """
        loop, found = asyncio.get_running_loop(), dict[int, Any]()
        large = [place for place, image in enumerate(images) if image.area > _LARGE]
        small = sorted(set(range(len(images))) - set(large))

        async def cut(threads: ThreadPoolExecutor, places: Sequence[int]) -> None:
            encoded = [images[place].encoded for place in places]
            done = await loop.run_in_executor(
                threads, _cut, classifier, encoded, self._config.max_pixels
            )
            found.update(zip(places, done, strict=True))

        async def cut_large() -> None:
            for place in large:
                await cut(self._large_thread, [place])

        shares = [small[start::_DECODERS] for start in range(min(_DECODERS, len(small)))]
        await asyncio.gather(cut_large(), *(cut(self._threads, places) for places in shares))
        return [found[place] for place in range(len(images))]

    async def _logits(self, classifier: Classifier, found: Sequence[Any]) -> Floats | None:
        """Return float32 [usable images, classes], or None where none is usable."""
        usable = [pixels for pixels in found if not isinstance(pixels, str)]
        if not usable:
            return None
        return await asyncio.wrap_future(self._batcher.answer(classifier, usable))

    def _answer(
        self,
        serving: Serving,
        images: Sequence[Sent],
        found: Sequence[Any],
        logits: Floats | None,
        top: int,
        wishes: Wishes,
    ) -> Response:
        """Return the answer: of an image that cannot be used the reason in its place, and a refusal where it is the only one."""
        guessed = iter(
            ()
            if logits is None
            else zip(serving.classifier.guesses(logits, top), logits, strict=True)
        )
        predictions: list[dict[str, Any]] = []
        for image, own in zip(images, found, strict=True):
            prediction: dict[str, Any] = {"name": image.name}
            if isinstance(own, str):
                prediction["error"] = self._unusable(own)
            else:
                guesses, row = next(guessed)
                prediction["top"] = [
                    {"class": item.name, "number": item.number, "probability": item.probability}
                    for item in guesses
                ]
                if wishes.logits:
                    prediction["logits"] = row.tolist()
            predictions.append(prediction)
            self._counters.images.labels("unusable" if "error" in prediction else "answered").inc()
        if len(predictions) == 1 and "error" in predictions[0]:
            raise RefusedRequestError(HTTPStatus.UNPROCESSABLE_ENTITY, predictions[0]["error"])
        return JSONResponse({"model": serving.model, "predictions": predictions})

    def _unusable(self, reason: str) -> str:
        expected = (
            f"a JPEG, PNG, BMP, WebP or still GIF file of at most {self._config.max_pixels:,}"
            " pixels"
        )
        return f"The image cannot be used: {reason}. Expected {expected}. Send another one."


def _top(wishes: Wishes, classes: int) -> int:
    """Return how many classes to name."""
    if wishes.top is None:
        return min(_TOP, classes)
    if wishes.top > classes:
        raise RefusedRequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"The model has not so many classes. Expected top=1 to {classes}. Received"
            f" {wishes.top}. Send it again.",
        )
    return wishes.top


def _cut(classifier: Classifier, encoded: Sequence[bytes], max_pixels: int) -> list[Any]:
    """Return each image's pixels, or the reason why there are none."""
    return [_pixels_or_reason(classifier, image, max_pixels) for image in encoded]


def _pixels_or_reason(classifier: Classifier, encoded: bytes, max_pixels: int) -> Any:
    try:
        return classifier.pixels(encoded, max_pixels=max_pixels)
    except UnusableError as error:
        return str(error)
