"""Protocol: uvicorn's HTTP/1.1 protocol with the bounds it lacks.

uvicorn has no limit for how long a request may take to arrive, nor for the size of its headers. Here a request has
an absolute deadline from its first byte (the first one from the connection on), headers have a size, connections a
number, and what cannot be parsed is refused in the API's own error shape.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, cast

import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from homelab_llm.core.errors import BodyTooLarge, DeadlineExceeded, Exhausted, HomelabError, InvalidInput
from homelab_llm.gateway.errors import body_of
from homelab_llm.gateway.link import Headers, JoiningTransport, Link

MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
MAX_UNREAD_BYTES = 256 << 20  # of a body that was refused: a client reads the refusal only when it has sent it all
LINGER_S = 10.0  # a closing connection whose client does not take the rest is cut
_HARD_EXTRA = 256  # connections beyond the limit that still get an answer


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may cost."""

    receive_deadline_s: float
    max_connections: int


class DoorProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._in_head = True
        self._head_bytes = 0
        self._read_bytes = 0
        self._unread_bytes = 0
        self._receive_by_s = math.inf
        self._closing_since_s = 0.0
        self._refused: HomelabError | None = None
        self._link: Link | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        joining = JoiningTransport(transport)
        self._link = Link(joining, arrived_body=self._arrived_body, close_after_reply=self.shutdown, reply=self._reply)
        super().connection_made(cast(asyncio.Transport, joining))  # it has the methods that uvicorn calls
        self._receive_by_s = time.monotonic() + self._bounds.receive_deadline_s
        excess = len(self.connections) - self._bounds.max_connections
        if excess > _HARD_EXTRA:
            transport.abort()
        elif excess > 0:
            self._refused = Exhausted(
                "too many connections", hint="setting: server.max_connections", limit=self._bounds.max_connections
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._link is not None and self._link.departed is not None:
            self._link.departed()
        self._link = None

    def data_received(self, data: bytes) -> None:
        self._read_bytes = len(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._refuse_raw(431, _headers_too_large())
        elif self._receive_by_s != math.inf and self.cycle.response_complete:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["link"] = self._link
        self._in_head = True
        self._head_bytes = self._unread_bytes = 0
        if self._receive_by_s == math.inf:
            self._receive_by_s = time.monotonic() + self._bounds.receive_deadline_s

    def on_headers_complete(self) -> None:
        self._in_head = False
        refused = self._refused
        if len(self.headers) > MAX_HEADERS or (
            self._head_bytes + self._read_bytes > MAX_HEADER_BYTES
            and sum([len(name) + len(value) for name, value in self.headers]) > MAX_HEADER_BYTES
        ):
            refused = _headers_too_large()
        if refused is not None:
            self.scope["state"]["refused"] = refused
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receive_by_s = math.inf
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse_raw(400, InvalidInput(msg.rstrip(".").lower(), hint="send HTTP/1.1 as RFC 9112 has it"))

    def sweep(self, now_s: float) -> None:
        """End the connection, which is open, when its request is late, or when it does not finish closing."""
        if self.transport.is_closing():
            self._closing_since_s = self._closing_since_s or now_s
            if now_s - self._closing_since_s > LINGER_S:
                self.transport.abort()
        elif now_s > self._receive_by_s and not self.flow.read_paused:
            limit_s = self._bounds.receive_deadline_s
            error = DeadlineExceeded(f"the request did not arrive within {limit_s:g} s", limit_s=limit_s)
            self._refuse_raw(408, error)

    def _arrived_body(self, limit_bytes: int) -> bytes | None:
        cycle = self.cycle
        if cycle.more_body or len(cycle.body) > limit_bytes:
            return None
        content, cycle.body = bytes(cycle.body), bytearray()
        self.flow.resume_reading()  # a large body pauses it, and then the client's leaving would not be seen
        return content

    def _reply(self, status: int, headers: Headers, content: bytes) -> bool:
        """Send a whole reply in one write, as ``RequestResponseCycle.send`` would in two messages."""
        cycle = self.cycle
        if cycle.response_started or cycle.disconnected or self.flow.write_paused:
            return False
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        if self.scope["method"] != "HEAD":
            lines.append(content)
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join(lines))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def _refuse_raw(self, status: int, error: HomelabError) -> None:
        """Answer without the application, unless this request's reply has begun, and close."""
        replied = self.cycle is not None and self.cycle.response_started
        if not replied or (self._in_head and self.cycle.response_complete):
            content = orjson.dumps(body_of(error))
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
            self.transport.write(STATUS_LINE[status] + head + content)
        self.transport.close()


def _headers_too_large() -> BodyTooLarge:
    return BodyTooLarge(
        f"the headers are larger than {MAX_HEADER_BYTES} bytes or more than {MAX_HEADERS}",
        field="headers",
        limit_bytes=MAX_HEADER_BYTES,
    )
