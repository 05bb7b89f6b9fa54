"""Upstream: HTTP/1.1 to a worker's Unix socket, or to the address of an adopted server. POST only.

One reply at a time, bodies in blocks as they arrive. Not a general HTTP client: no redirects, no compression, no TLS.
Why not aiohttp: decision 0002. Connections are pooled per socket only where the worker keeps them open; closing one
is how a request is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import httptools

_HIGH_BYTES = 1 << 20  # the worker is not read from while this much waits for a slow client
_IDLE_S = 20.0  # a pooled connection is not used again after this; workers keep them longer
_MAX_IDLE = 64
_CONNECT_S = 2.0
_RETRY_S = 0.005

Address = str | tuple[str, int]
"""The path of a Unix socket, or host and port."""


class UpstreamLost(Exception):
    """The worker's connection ended before the reply was complete. ``untouched``: before any byte of it came."""

    def __init__(self, reason: str, *, untouched: bool = False) -> None:
        super().__init__(reason)
        self.untouched = untouched


class UpstreamGarbled(Exception):
    """What the worker sent is not HTTP."""


class Connection(asyncio.Protocol):
    """One connection to a worker; at most one request at a time. Made by ``Upstream``."""

    __slots__ = (
        "_broken",
        "_complete",
        "_framed",
        "_held_bytes",
        "_keep",
        "_lost",
        "_parser",
        "_parts",
        "_paused",
        "_started",
        "_transport",
        "_waiter",
        "idle_since_s",
        "key",
        "status",
        "used",
    )

    def __init__(self, key: Address) -> None:
        self.key = key
        self.used = False
        self.idle_since_s = 0.0
        self.status = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._started = False
        self._framed = False
        self._complete = False
        self._keep = False
        self._lost = False
        self._broken = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        self._started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._broken = not self._complete
            self.abort()
        if self._held_bytes > _HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 — the reason makes no difference
        self._lost = True
        self._transport = None
        self._parser = None  # parser and protocol hold each other
        if self.status and not self._framed and not self._broken:
            self._complete = True  # a body without length ends with its connection
        self._wake()

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002
        if len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        if self._parser is not None:
            self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._held_bytes += len(body)

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep = self._parser is not None and self._parser.should_keep_alive()

    # --- one request ---

    def send(self, content: bytes) -> None:
        """Write a request; forgets the reply before."""
        self.status = 0
        self._started = self._framed = self._complete = self._keep = False
        if self._transport is None:
            raise UpstreamLost("the connection was closed", untouched=True)
        self._transport.write(content)

    async def head(self) -> int:
        """The status of the reply, once it is known.

        Raises:
            UpstreamLost: the worker went away first.
            UpstreamGarbled: it does not speak HTTP.
        """
        while not self.status:
            self._check()
            await self._wait()
        return self.status

    async def block(self) -> bytes:
        """All that has arrived of the body since the last call, at least one byte; empty at its end.

        Raises:
            UpstreamLost: the connection ended before the body did.
            UpstreamGarbled: the worker broke the protocol.
        """
        while not self._parts:
            if self._complete:
                return b""
            self._check()
            await self._wait()
        parts = self._parts
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._held_bytes = 0
        if self._paused:
            self._paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return joined

    async def whole(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamLost, UpstreamGarbled: as ``block``.
        """
        if self._complete:
            return await self.block()
        parts = [await self.block()]
        while parts[-1]:
            parts.append(await self.block())
        return b"".join(parts)

    @property
    def reusable(self) -> bool:
        """Whether the reply was read to its end and the worker keeps the connection."""
        return self._complete and self._keep and not self._parts and not self._lost and not self._broken

    @property
    def alive(self) -> bool:
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped. The worker takes it as a cancel."""
        if self._transport is not None:
            self._transport.abort()

    def _check(self) -> None:
        if self._broken:
            raise UpstreamGarbled("the worker sent something that is not HTTP")
        if self._lost:
            raise UpstreamLost("the worker closed the connection", untouched=not self._started)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


C = TypeVar("C", bound=Connection)


class Upstream:
    """Connections to all workers. ``post`` sends; the caller ends each with ``finish``, whatever happened."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[Connection]] = {}

    async def post(self, socket: Path | tuple[str, int], path: bytes, body: bytes, *, pooled: bool) -> Connection:
        """Send a request and wait for the reply's status.

        A pooled connection that turns out dead before any byte of a reply came is replaced once.

        Raises:
            UpstreamLost, UpstreamGarbled: no reply came.
        """
        key = socket if isinstance(socket, tuple) else str(socket)
        host = b"worker" if isinstance(key, str) else b"%s:%d" % (key[0].encode("ascii"), key[1])
        closing = b"" if pooled else b"Connection: close\r\n"
        content = b"".join(
            (
                b"POST ",
                path,
                b" HTTP/1.1\r\nHost: ",
                host,
                b"\r\nContent-Type: application/json\r\n",
                closing,
                b"Content-Length: %d\r\n\r\n" % len(body),
                body,
            )
        )
        connection = (self._take(key) if pooled else None) or await connect(key, Connection)
        try:
            try:
                connection.send(content)
                await connection.head()
            except UpstreamLost as lost:
                if not (connection.used and lost.untouched):
                    raise
                connection = await connect(key, Connection)
                connection.send(content)
                await connection.head()
        except BaseException:
            connection.abort()
            raise
        return connection

    def finish(self, connection: Connection) -> None:
        """Keep the connection for the next request when it can be kept, else close it.

        It is closed by the loop's next turn: what was read goes to the client first.
        """
        if not connection.reusable:
            asyncio.get_running_loop().call_soon(connection.abort)
            return
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= _MAX_IDLE:
            connection.abort()
            return
        connection.used = True
        connection.idle_since_s = time.monotonic()
        idle.append(connection)

    def sweep(self, now_s: float) -> None:
        """Close what was idle for long, and forget sockets without connections."""
        for key, idle in list(self._idle.items()):
            fresh = [one for one in idle if one.alive and now_s - one.idle_since_s < _IDLE_S]
            for one in idle:
                if one not in fresh:
                    one.abort()
            if fresh:
                self._idle[key] = fresh
            else:
                del self._idle[key]

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()

    def _take(self, key: Address) -> Connection | None:
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.alive:
                return connection
        return None


async def connect(address: Address, make: Callable[[Address], C]) -> C:
    """A new connection.

    Raises:
        UpstreamLost: nobody accepts it.
    """
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + _CONNECT_S
    while True:
        try:
            if isinstance(address, str):
                _, connection = await loop.create_unix_connection(lambda: make(address), address)
            else:
                async with asyncio.timeout_at(give_up_s):
                    _, connection = await loop.create_connection(lambda: make(address), *address)
        except BlockingIOError as error:  # its queue of new connections is full: others connect just now
            if loop.time() > give_up_s:
                raise UpstreamLost("the worker accepts no connections", untouched=True) from error
            await asyncio.sleep(_RETRY_S)
        except OSError as error:
            raise UpstreamLost(f"the worker cannot be reached: {error.strerror or error}", untouched=True) from error
        else:
            return connection
