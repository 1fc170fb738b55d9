"""From an HTTP request to the images in it: read within bounds, then taken apart.

Three kinds are understood: an image file as it is, a form with files, and JSON with base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from pipeline.data.headers import detect_format, read_header_size

_FORM, _JSON = "multipart/form-data", "application/json"
# What `curl --data-binary` says of everything; taken for an image if the body begins like one.
_URLENCODED = "application/x-www-form-urlencoded"
_GONE = 499  # nginx's number for a client that did not wait; nobody receives it
_LONGEST_NAME = 255  # bytes of a file's name in the usual file systems


class RefusedRequestError(Exception):
    """A request that is not answered, with its status and a sentence.

    `retry` says that the same request may be answered later.
    """

    def __init__(self, status: int, sentence: str, *, retry: bool = False):
        super().__init__(sentence)
        self.status, self.retry = status, retry


@dataclass(frozen=True)
class Sent:
    """An image file as somebody sent it.

    `name` is its file's, or its place in the request, counted from 0. `area` is its pixels as its
    header says, 0 where it says nothing.
    """

    name: str
    encoded: bytes
    area: int


class Wishes(BaseModel):
    """How a request wants to be answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: int | None = Field(
        None, ge=1, description="So many of the likeliest classes; 5, or all of fewer."
    )
    logits: bool = Field(False, description="Also the logits, as float32 numbers.")


class Question(Wishes):
    """A request in JSON."""

    images: list[str] = Field(description="Image files as base64.", min_length=1)


# -- reading ---------------------------------------------------------------------------------------


async def read_body(
    request: Request, max_bytes: int, seconds: float, take: Callable[[int], None]
) -> bytes:
    """Return a request's body.

    Args:
        request: whose body nobody has read.
        max_bytes: of the body.
        seconds: that it may take to come in.
        take: told how many bytes are held from now on; may refuse.

    Raises:
        RefusedRequestError: it is too large (413) or comes too slowly (408), or the client is gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes, f"{int(declared):,}")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise _too_large(max_bytes, "more")
                take(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise RefusedRequestError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The request came in too slowly. Expected all of it within {seconds:g} seconds."
            f" Received {len(body):,} bytes. Send it again.",
        ) from error
    except ClientDisconnect as error:
        raise RefusedRequestError(_GONE, "The client is gone.") from error
    return bytes(body)


def _too_large(max_bytes: int, received: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request is too large. Expected at most {max_bytes:,} bytes. Received {received}."
        " Send fewer or smaller images.",
    )


def kind_of(content_type: str) -> str:
    """Return the media type of a request, in lower case; a missing one counts as that of any file.

    Raises:
        RefusedRequestError: it is none that an image comes in (415).
    """
    kind = content_type.partition(";")[0].strip().lower() or "application/octet-stream"
    if kind in (_FORM, _JSON, _URLENCODED, "application/octet-stream") or kind.startswith("image/"):
        return kind
    raise _other_kind(kind)


def _other_kind(kind: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"No image comes as {kind[:100]}. Expected a Content-Type of image/*,"
        f" application/octet-stream, {_FORM} or {_JSON}. With curl type -F image=@FILE.",
    )


# -- taking apart ----------------------------------------------------------------------------------


def parse(
    body: bytes, content_type: str, query: Mapping[str, str], most: int
) -> tuple[list[Sent], Wishes]:
    """Return the images of a request, and how it wants to be answered.

    Args:
        body: of the request.
        content_type: its header, of a kind that `kind_of` knows.
        query: what stands behind the `?`.
        most: images in a request.

    Raises:
        RefusedRequestError: it is not what it says it is (400), or asks for what is not there (422), or
            holds too many images (413).
    """
    kind = kind_of(content_type)
    if kind == _JSON:
        question = _question(body, most)
        if query:
            raise _unclear(
                "wishes beside a request in JSON",
                "`top` and `logits` inside it",
                f"?{'&'.join(query)}"[:100],
            )
        return [
            _sent(str(place), _from_base64(text, place))
            for place, text in enumerate(question.images)
        ], question
    try:
        wishes = Wishes.model_validate(dict(query))
    except ValidationError as error:
        raise _invalid(error) from error
    if kind == _FORM:
        return _files(body, content_type, most), wishes
    if kind == _URLENCODED and not detect_format(body):
        raise _other_kind(kind)
    return [_sent("0", body)], wishes


def _sent(name: str, encoded: bytes) -> Sent:
    try:
        height, width = read_header_size(encoded)
    except ValueError:
        return Sent(name, encoded, 0)
    return Sent(name, encoded, height * width)


def _question(body: bytes, most: int) -> Question:
    """Return what a request in JSON asks.

    How much there is of it is looked at first: pydantic notes every one of a million wrong words
    before it complains.
    """
    try:
        found = from_json(body)
    except ValueError as error:
        raise RefusedRequestError(
            HTTPStatus.BAD_REQUEST,
            f'The request is no JSON ({error}). Expected {{"images": ["<base64>"], "top": 5}}. Send'
            " it again.",
        ) from error
    if not isinstance(found, dict):
        raise _unclear("JSON", '{"images": ["<base64>"], "top": 5}', type(found).__name__)
    if unknown := next((name for name in found if name not in Question.model_fields), ""):
        raise _unclear(f"{unknown[:100]!r} in the JSON", ", ".join(Question.model_fields), "that")
    images = found.get("images")
    if isinstance(images, list) and len(images) > most:
        raise _too_many(most, f"{len(images):,}")
    try:
        return Question.model_validate(found, strict=True)
    except ValidationError as error:
        raise _invalid(error) from error


def _from_base64(text: str, place: int) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unclear(
            f"base64 in images[{place}]",
            "A-Z, a-z, 0-9, + and /, and nothing before them",
            f"{text[:40]!r}",
        ) from error


def _invalid(error: ValidationError) -> RefusedRequestError:
    """Return the first complaint of pydantic as a refusal."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return RefusedRequestError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"The request's {'.'.join(map(str, first['loc']))[:100]} cannot be used: {first['msg']}."
        " Expected images, top (from 1) and logits (true or false). Send it again.",
    )


def _unclear(what: str, expected: str, received: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"There is no use for the {what}. Expected {expected}. Received {received}. Send it again.",
    )


def _too_many(most: int, received: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request holds too many images. Expected at most {most:,}. Received {received}. Send"
        " them in several requests.",
    )


@dataclass
class _Form:
    """The files of a form, as the parser meets them."""

    most: int
    files: list[Sent] = field(default_factory=list)
    ended: bool = False
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _disposition: bytes = b""
    _content: list[bytes] = field(default_factory=list)

    def callbacks(self) -> Any:
        """Return what the parser calls, by its names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._more(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._more(1, data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.files) == self.most:
            raise _too_many(self.most, "more")
        self._disposition, self._content = b"", []

    def _more(self, which: int, part: bytes) -> None:
        self._header[which] += part

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            field_name = options.get(b"name", b"").decode("utf-8", "replace")[:_LONGEST_NAME]
            raise _unclear(
                f"form's field {field_name!r}",
                "files, and `top` and `logits` behind the ? of the address",
                "a field",
            )
        shown = name.decode("utf-8", "replace")[:_LONGEST_NAME] or str(len(self.files))
        self.files.append(_sent(shown, b"".join(self._content)))

    def _finish(self) -> None:
        self.ended = True


def _files(body: bytes, content_type: str, most: int) -> list[Sent]:
    """Return the files of a form."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _broken_form("no boundary")
    form = _Form(most)
    try:
        MultipartParser(boundary, form.callbacks()).write(body)
    except FormParserError as error:
        raise _broken_form(str(error)) from error
    if not form.ended:
        raise _broken_form("it is cut off")
    if not form.files:
        raise _unclear("form", "at least one file, as curl's -F image=@FILE sends it", "none")
    return form.files


def _broken_form(reason: str) -> RefusedRequestError:
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        f"The form cannot be read ({reason[:150]}). Expected {_FORM} with a boundary, as curl's -F"
        " image=@FILE sends it. Send it again.",
    )
