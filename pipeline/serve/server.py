"""The port, the signals that end the service, and what holds for every request and answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import FrameType

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import PipelineError

# A client that reads only after it has sent everything sees its refusal if the rest of its upload
# is discarded for so long, in seconds.
_DISCARD_SECONDS = 2.0
_SHUTDOWN_SECONDS = 20  # that requests in progress may take after the shutdown has begun
_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::[0-9]+)?")
_COMMON_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_POLICY = b"content-security-policy"
_STRICT_POLICY = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address and accepts connections.

    Args:
        host: a name or an address; of a name's addresses the first, IPv4 before IPv6.
        port: from 1 to 65,535.

    Raises:
        PipelineError: the port is taken, or the address is not one of this machine.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(known, key=lambda found: found[0] != socket.AF_INET)
        listener = socket.create_server(address, family=family)
    except OSError as error:
        raise PipelineError(
            f"The service cannot listen at {host}:{port} ({_reason(error)})",
            expected="a free port and an address of this machine",
            hint="Name others with --port and --set serve.host=ADDRESS",
        ) from error
    # Every connection inherits it. An answer is written in two pieces, and without it the second
    # waits 40 ms for the acknowledgment of the first; asyncio sets it only for its own sockets.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _reason(error: OSError) -> str:
    """Return why an address is refused, without the address, which Python spells in its own way."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return str(error.strerror or error)
    return os.strerror(error.errno)


def find_allowed_hosts(listener: socket.socket, host: str) -> frozenset[str]:
    """Return the `Host` names that a request may have; empty means any.

    Only this machine reaches the loopback, but a page of another site can make a browser here
    resolve that site's name to 127.0.0.1 (DNS rebinding); such a request has that site's name.
    """
    own = listener.getsockname()[0]
    if not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
        return frozenset()
    return frozenset(
        {"localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own, host.lower()}
    )


def guard_app(
    app: ASGIApp, allowed_hosts: frozenset[str], count: Callable[[str, int, float], None]
) -> ASGIApp:
    """Return `app` behind a check of the `Host`, with the headers of every answer.

    An answer that begins before the request is read closes the connection, so that no more of it
    is received.

    Args:
        app: the application.
        allowed_hosts: of `find_allowed_hosts`.
        count: called with each request's path, status, and seconds until its answer began.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        try:
            if allowed_hosts and not _is_allowed(exchange.headers, allowed_hosts):
                refusal = _refuse_host(exchange.headers, allowed_hosts)
                await refusal(scope, exchange.receive, exchange.send)
            else:
                await app(scope, exchange.receive, exchange.send)
        finally:
            count(
                scope["path"], exchange.status, (exchange.answered or time.perf_counter()) - started
            )

    return answer


def _is_allowed(headers: Headers, allowed_hosts: frozenset[str]) -> bool:
    match = _HOST.fullmatch(headers.get("host", ""))
    return match is not None and match[1].lower() in allowed_hosts


def _refuse_host(headers: Headers, allowed_hosts: frozenset[str]) -> JSONResponse:
    sentence = (
        f"Host {headers.get('host', '')[:100]!r} is not served here; use"
        f" {', '.join(sorted(allowed_hosts))}."
    )
    return JSONResponse({"error": sentence}, HTTPStatus.MISDIRECTED_REQUEST)


class _Exchange:
    """One request and its answer, as their messages pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        self.answered = 0.0
        self._unread = (
            "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        )
        self._closing = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._unread = self._unread and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answered, self._closing = (
                message["status"],
                time.perf_counter(),
                self._unread,
            )
            headers = [
                *message["headers"],
                *_COMMON_HEADERS,
                *([(b"connection", b"close")] if self._closing else []),
            ]
            policies = [_STRICT_POLICY] if all(name != _POLICY for name, _ in headers) else []
            await self._send({**message, "headers": headers + policies})
        elif self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard_upload()
            await self._send({"type": "http.response.body"})
        else:
            await self._send(message)

    async def _discard_upload(self) -> None:
        """Discard what a client still sends.

        A connection that is closed before loses the answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while (await self._receive()).get("more_body", False):
                    pass


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown: on SIGINT or SIGTERM it finishes its requests and returns.

    Args:
        app: the application.
        head_seconds: that a request's first line and headers may take to arrive.
        drain: called when the shutdown begins.
    """

    def __init__(self, app: ASGIApp, head_seconds: float, drain: Callable[[], None]):
        self._drain = drain
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_make_protocol(head_seconds),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,  # its default writes a line for each request
                log_level="error",
                access_log=False,
                proxy_headers=False,  # no answer depends on the client
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle both signals while the server runs.

        Uvicorn's own version raises them again afterwards, which would end the process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; a second SIGINT does not wait for requests."""
        self._drain()
        super().handle_exit(sig, frame)


def _make_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with a time limit for a request's head, which it lacks.

    Args:
        seconds: from the connection, or from the first byte of a later request on it.
    """

    class HeadLimitProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        # Uvicorn's own annotation.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._update_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._timer:
                self._timer.cancel()

        def _update_timer(self) -> None:
            waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if waiting and self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)
            elif not waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return HeadLimitProtocol
