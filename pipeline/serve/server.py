"""How requests come in: the port, the signals that end the service, and what holds for every request whatever it asks."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
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

# A client that only reads once it has sent everything sees its refusal if what it still sends is
# thrown away for so long.
_LINGER_SECONDS = 2.0
_LAST_SECONDS = 20  # what requests that came in before the end may still take
_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::[0-9]+)?")
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_POLICY = b"content-security-policy"
_NOTHING = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address and takes connections.

    Args:
        host: a name or an address; of a name's addresses the first, IPv4 before IPv6.
        port: from 1 to 65,535.

    Raises:
        PipelineError: somebody else holds the port, or the address is not one of this machine.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(known, key=lambda found: found[0] != socket.AF_INET)
        listener = socket.create_server(address, family=family)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[
            0
        ]  # Python adds the address in its own spelling
        raise PipelineError(
            f"Nothing can be served at {host}:{port} ({reason}). Expected a free port and an"
            " address of this machine. Name others with --port and --set serve.host=ADDRESS."
        ) from error
    # Every connection inherits it. An answer is written in two pieces, and without it the second
    # waits 40 ms for word of the first; asyncio sets it only for sockets of its own.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def names_of(listener: socket.socket, host: str) -> frozenset[str]:
    """Return the hosts that a request may be meant for, none where any may be.

    Who listens at the loopback is asked by this machine alone, but a browser on it can be told by a
    stranger's page that the page's own name is 127.0.0.1 (DNS rebinding); such a request bears that
    name.
    """
    own = listener.getsockname()[0]
    if not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
        return frozenset()
    return frozenset(
        {"localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own, host.lower()}
    )


def guarded(
    app: ASGIApp, names: frozenset[str], counted: Callable[[str, int, float], None]
) -> ASGIApp:
    """Return an application that answers as `app` does, to requests for these hosts, with headers that hold for every answer.

    An answer that comes before the request is read ends the connection, so nothing more of it is
    taken in.

    Args:
        app: what answers.
        names: of `names_of`.
        counted: told each request's path, its status, and the seconds until its answer began.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        try:
            if names and not _is_meant(exchange.headers, names):
                await _elsewhere(exchange.headers, names)(scope, exchange.receive, exchange.send)
            else:
                await app(scope, exchange.receive, exchange.send)
        finally:
            counted(
                scope["path"], exchange.status, (exchange.answered or time.perf_counter()) - started
            )

    return answer


def _is_meant(headers: Headers, names: frozenset[str]) -> bool:
    match = _HOST.fullmatch(headers.get("host", ""))
    return match is not None and match[1].lower() in names


def _elsewhere(headers: Headers, names: frozenset[str]) -> JSONResponse:
    sentence = (
        f"This service is not {headers.get('host', 'without a name')[:100]}. Expected a Host of"
        f" {', '.join(sorted(names))}. Ask it by its own name, or let it listen at another address."
    )
    return JSONResponse({"error": sentence}, HTTPStatus.MISDIRECTED_REQUEST)


class _Exchange:
    """One request and its answer, as they pass by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        self.answered = 0.0
        self._unread = (
            "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        )
        self._leaving = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._unread = self._unread and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answered, self._leaving = (
                message["status"],
                time.perf_counter(),
                self._unread,
            )
            headers = [
                *message["headers"],
                *_ALWAYS,
                *([(b"connection", b"close")] if self._leaving else []),
            ]
            policies = [_NOTHING] if all(name != _POLICY for name, _ in headers) else []
            await self._send({**message, "headers": headers + policies})
        elif self._leaving and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body"})
        else:
            await self._send(message)

    async def _linger(self) -> None:
        """Throw away what a client still sends.

        A connection that is closed before loses the answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await self._receive()).get("more_body", False):
                    pass


class Server(uvicorn.Server):
    """Uvicorn, ending as a command and a service should.

    On SIGINT or SIGTERM it finishes what is there and returns.

    Args:
        app: what answers.
        head_seconds: that a request's first line and headers may take to come in.
        draining: called when the end begins.
    """

    def __init__(self, app: ASGIApp, head_seconds: float, draining: Callable[[], None]):
        self._draining = draining
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_impatient(head_seconds),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,  # its default writes a line for each request
                log_level="error",
                access_log=False,
                proxy_headers=False,  # nothing here depends on who asks
                server_header=False,
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take both signals while the server runs.

        Uvicorn's own would send them again afterwards, as if nothing had ended yet.
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
        """Begin the end; a second SIGINT does not wait for requests."""
        self._draining()
        super().handle_exit(sig, frame)


def _impatient(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 with a limit on how long a request's head may take.

    It has none of its own.

    Args:
        seconds: from the connection, or from the first byte of a later request on it.
    """

    class Impatient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self._wait_or_not()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait_or_not()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._late:
                self._late.cancel()

        def _wait_or_not(self) -> None:
            waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if waiting and self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)
            elif not waiting and self._late is not None:
                self._late.cancel()
                self._late = None

    return Impatient
