"""The endpoints of the service: `ROUTES` is their table.

To add one, write a function from `(Predictor, Request)` to a response here and add its row. The 404
and 405 sentences and the `path` label of the metrics follow the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from pipeline.errors import PipelineError
from pipeline.serve.metrics import ServiceMetrics
from pipeline.serve.page import PAGE, PAGE_POLICY
from pipeline.serve.prediction import Predictor
from pipeline.serve.requests import RefusedRequestError

# -- endpoints -------------------------------------------------------------------------------------


async def show_page(_predictor: Predictor, _request: Request) -> Response:
    """Return the page for dropping an image."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


async def predict_images(predictor: Predictor, request: Request) -> Response:
    """Classify the images of a request."""
    return JSONResponse(await predictor.predict(request))


async def describe_model(predictor: Predictor, _request: Request) -> Response:
    """Return the served model's names, digests and sizes, and the limits of a request."""
    return JSONResponse({**predictor.current_model().as_dict(), "limits": predictor.limits})


async def check_health(_predictor: Predictor, _request: Request) -> Response:
    """Report that the process is alive."""
    return JSONResponse({"alive": True})


async def check_ready(predictor: Predictor, _request: Request) -> Response:
    """Report whether requests should be sent to this instance."""
    model = predictor.current_model()
    if predictor.draining:
        raise RefusedRequestError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Shutting down; retry another instance.",
            retryable=True,
        )
    return JSONResponse({"ready": True, "model": model.identity})


async def export_metrics(predictor: Predictor, _request: Request) -> Response:
    """Return all metrics in the text format of Prometheus."""
    return Response(generate_latest(predictor.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class Route:
    """A method and path, and the function that answers them."""

    method: str
    path: str
    respond: Callable[[Predictor, Request], Awaitable[Response]]


ROUTES = (
    Route("GET", "/", show_page),
    Route("POST", "/predict", predict_images),
    Route("GET", "/model", describe_model),
    Route("GET", "/health", check_health),
    Route("GET", "/ready", check_ready),
    Route("GET", "/metrics", export_metrics),
)


# -- the application -------------------------------------------------------------------------------


def make_app(predictor: Predictor) -> FastAPI:
    """Return the application that answers by `ROUTES`, with every error as one sentence in JSON."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for route in ROUTES:
        app.add_route(route.path, _bind(route, predictor), methods=[route.method])
    app.add_exception_handler(RefusedRequestError, _answer_refused)
    app.add_exception_handler(HTTPException, _answer_unknown_route)
    app.add_exception_handler(PipelineError, _answer_failed)
    app.add_exception_handler(Exception, _answer_failed)
    return app


def count_request(metrics: ServiceMetrics, path: str, status: int, seconds: float) -> None:
    """Count a request; unknown paths share one label, so that clients cannot fill the memory."""
    label = path if any(route.path == path for route in ROUTES) else "other"
    metrics.requests.labels(label, str(status)).inc()
    if path == "/predict":
        metrics.seconds.observe(seconds)


def _bind(route: Route, predictor: Predictor) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return await route.respond(predictor, request)

    return respond


# Starlette types every handler's error as Exception, and passes the class it was added for.


async def _answer_refused(_request: Request, error: Any) -> Response:
    return _error_response(
        error.status, str(error), {"Retry-After": "1"} if error.retryable else None
    )


async def _answer_unknown_route(request: Request, error: Any) -> Response:
    path = request.url.path[:100]
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        sentence = f"Method {request.method} not allowed for {path}; use {error.headers['Allow']}."
    else:
        known = ", ".join(f"{route.method} {route.path}" for route in ROUTES)
        sentence = f"There is nothing at {path}; use {known}."
    return _error_response(error.status_code, sentence, error.headers)


async def _answer_failed(_request: Request, error: Exception) -> Response:
    """Answer with what a person can act on; a bug shows its traceback in the log alone."""
    sentence = error.summary if isinstance(error, PipelineError) else "Internal error; see the log."
    return _error_response(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)


def _error_response(
    status: int, sentence: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)
