"""From an HTTP request to the images in it: read within limits, then parsed.

Three kinds of body are accepted: an image file as it is, a form with files, and JSON with base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from pipeline.data.headers import detect_format, read_header_size

_FORM, _JSON = "multipart/form-data", "application/json"
# The type that `curl --data-binary` sends; accepted if the body begins like an image.
_URLENCODED = "application/x-www-form-urlencoded"
_CLIENT_CLOSED = 499  # nginx's status for a client that disconnected; it is only counted
_MAX_NAME = 255  # bytes of a file's name in the usual file systems
_JSON_EXAMPLE = '{"images": ["<base64>"], "top": 5}'


class RefusedRequestError(Exception):
    """A request that is refused, with its HTTP status and one sentence.

    `retryable` means that the same request may be answered later.
    """

    def __init__(self, status: int, sentence: str, *, retryable: bool = False):
        super().__init__(sentence)
        self.status, self.retryable = status, retryable


@dataclass(frozen=True)
class UploadedImage:
    """An image file of a request.

    `name` is its file's, or its index in the request from 0. `area` is its number of pixels as its
    header gives it, 0 where it gives none.
    """

    name: str
    encoded: bytes
    area: int


class PredictOptions(BaseModel):
    """What a request wants in its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: int | None = Field(
        None, ge=1, description="Number of the likeliest classes; 5, or all of fewer."
    )
    logits: bool = Field(False, description="Also the logits, as float32 numbers.")


class PredictRequest(PredictOptions):
    """A request in JSON."""

    images: list[str] = Field(description="Image files as base64.", min_length=1)


# -- reading ---------------------------------------------------------------------------------------


async def read_body(
    request: Request, max_bytes: int, seconds: float, reserve: Callable[[int], None]
) -> bytes:
    """Return a request's body.

    Args:
        request: whose body is not yet read.
        max_bytes: of the body.
        seconds: that it may take to arrive.
        reserve: called with the number of bytes of each piece before it is kept; may refuse.

    Raises:
        RefusedRequestError: it is too large (413) or too slow (408), or the client disconnected.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes, f"{int(declared):,} bytes, ")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise _too_large(max_bytes)
                reserve(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise RefusedRequestError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The request did not arrive within {seconds:g} seconds ({len(body):,} bytes received);"
            " send it again.",
        ) from error
    except ClientDisconnect as error:
        raise RefusedRequestError(_CLIENT_CLOSED, "The client disconnected.") from error
    return bytes(body)


def _too_large(max_bytes: int, size: str = "") -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request is too large: {size}at most {max_bytes:,} bytes allowed.",
    )


def parse_media_type(content_type: str) -> str:
    """Return the media type of a request, in lower case; octet-stream where none is given.

    Raises:
        RefusedRequestError: images cannot be sent as that type (415).
    """
    media_type = content_type.partition(";")[0].strip().lower() or "application/octet-stream"
    accepted = (_FORM, _JSON, _URLENCODED, "application/octet-stream")
    if media_type in accepted or media_type.startswith("image/"):
        return media_type
    raise _unsupported_type(media_type)


def _unsupported_type(media_type: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Type {media_type[:100]} is not supported; use image/*, application/octet-stream,"
        f" {_FORM} or {_JSON}.",
    )


# -- parsing ---------------------------------------------------------------------------------------


def parse_upload(
    body: bytes, content_type: str, query: Mapping[str, str], max_images: int
) -> tuple[list[UploadedImage], PredictOptions]:
    """Return the images of a request, and what it wants in its answer.

    Args:
        body: of the request.
        content_type: its header, of a type that `parse_media_type` accepts.
        query: the parameters behind the `?`.
        max_images: in one request.

    Raises:
        RefusedRequestError: the body is not of its type (400), has wrong content or options (422),
            or holds too many images (413).
    """
    media_type = parse_media_type(content_type)
    if media_type == _JSON:
        wanted = _parse_json(body, max_images)
        if query:
            raise _unprocessable(
                f"Query parameters (?{'&'.join(query)[:100]}) are not allowed with JSON; put top"
                " and logits in the JSON object."
            )
        images = [
            _uploaded(str(index), _decode_base64(text, index))
            for index, text in enumerate(wanted.images)
        ]
        return images, wanted
    try:
        options = PredictOptions.model_validate(dict(query))
    except ValidationError as error:
        raise _invalid(error) from error
    if media_type == _FORM:
        return _parse_form(body, content_type, max_images), options
    if media_type == _URLENCODED and not detect_format(body):
        raise _unsupported_type(media_type)
    return [_uploaded("0", body)], options


def _uploaded(name: str, encoded: bytes) -> UploadedImage:
    try:
        height, width = read_header_size(encoded)
    except ValueError:
        return UploadedImage(name, encoded, 0)
    return UploadedImage(name, encoded, height * width)


def _parse_json(body: bytes, max_images: int) -> PredictRequest:
    """Return a request in JSON.

    Its size is checked before pydantic sees it, which collects the error of every one of a million
    wrong items.
    """
    try:
        found = from_json(body)
    except ValueError as error:
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST, f"The body is not valid JSON ({error}); send {_JSON_EXAMPLE}."
        ) from error
    if not isinstance(found, dict):
        raise _unprocessable(
            f"The JSON is a {type(found).__name__}; send an object such as {_JSON_EXAMPLE}."
        )
    known = PredictRequest.model_fields
    if unknown := next((name for name in found if name not in known), ""):
        raise _unprocessable(f"Unknown key {unknown[:100]!r} in the JSON; use {', '.join(known)}.")
    images = found.get("images")
    if isinstance(images, list) and len(images) > max_images:
        raise _too_many(max_images, f"{len(images):,} images, ")
    try:
        return PredictRequest.model_validate(found, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def _decode_base64(text: str, index: int) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unprocessable(
            f"Invalid images[{index}]: not base64 ({text[:40]!r}); use A-Z, a-z, 0-9, + and /,"
            " without a prefix."
        ) from error


def _invalid(error: ValidationError) -> RefusedRequestError:
    """Return the first error of pydantic as a refusal."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name, message = ".".join(map(str, first["loc"]))[:100], first["msg"]
    return _unprocessable(
        f"Invalid {name}: {message[:1].lower()}{message[1:]}; use images, top (from 1) and logits"
        " (true or false)."
    )


def _unprocessable(sentence: str) -> RefusedRequestError:
    return RefusedRequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)


def _too_many(max_images: int, count: str = "") -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"Too many images: {count}at most {max_images:,} per request.",
    )


@dataclass
class _FormReader:
    """The files of a form, as the parser reports them."""

    max_images: int
    files: list[UploadedImage] = field(default_factory=list)
    ended: bool = False
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _disposition: bytes = b""
    _content: list[bytes] = field(default_factory=list)

    def feed(self, boundary: bytes, body: bytes) -> None:
        """Parse a whole form."""
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._extend(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._extend(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
                "on_part_end": self._end_part,
                "on_end": self._end_form,
            },
        )
        parser.write(body)

    def _begin(self) -> None:
        if len(self.files) == self.max_images:
            raise _too_many(self.max_images)
        self._disposition, self._content = b"", []

    def _extend(self, index: int, piece: bytes) -> None:
        self._header[index] += piece

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            field_name = options.get(b"name", b"").decode("utf-8", "replace")[:_MAX_NAME]
            raise _unprocessable(
                f"Form field {field_name!r} is not a file; send files alone, and top and logits in"
                " the query string."
            )
        shown = name.decode("utf-8", "replace")[:_MAX_NAME] or str(len(self.files))
        self.files.append(_uploaded(shown, b"".join(self._content)))

    def _end_form(self) -> None:
        self.ended = True


def _parse_form(body: bytes, content_type: str, max_images: int) -> list[UploadedImage]:
    """Return the files of a form."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _broken_form("no boundary")
    form = _FormReader(max_images)
    try:
        form.feed(boundary, body)
    except FormParserError as error:
        raise _broken_form(str(error)) from error
    if not form.ended:
        raise _broken_form("it is cut off")
    if not form.files:
        raise _unprocessable(
            "The form holds no file; send at least one file, as curl -F image=@FILE does."
        )
    return form.files


def _broken_form(reason: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        f"The form cannot be read ({reason[:150]}); send {_FORM} with a boundary, as curl -F"
        " image=@FILE does.",
    )
