"""Forward: during a planned restart, requests go on to the daemon that takes over, and its replies come back.

Raw HTTP over ``daemon.sock``. What the old daemon found out about a request travels in headers that are believed on
that socket alone, because only this user can open it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.errors import DaemonUnavailable, InvalidInput
from homelab_llm.gateway.exchange import Exchange
from homelab_llm.gateway.link import Headers
from homelab_llm.gateway.upstream import Address, Connection, UpstreamGarbled, UpstreamLost, connect

_PASSED_ON = frozenset({b"content-type", b"content-encoding", b"last-event-id"})
_PASSED_BACK = frozenset(
    {b"content-type", b"content-length", b"cache-control", b"retry-after", b"x-should-retry", b"allow"}
)
_MARK = b"x-homelab-request"
_ID = re.compile(r"req-[0-9a-f-]{3,60}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a forwarded request came from: its id, slot port (0 = none), key, client, and whether others go first."""

    request_id: str
    slot: int = 0
    key: str = ""
    client: str = ""
    batch: bool = False

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Origin | None:
        """What a forwarding daemon says; None for a request that nobody forwarded.

        Raises:
            InvalidInput: it cannot be read.
        """
        told = {name: value.decode("latin-1") for name, value in headers if name.startswith(b"x-homelab-")}
        if _MARK not in told:
            return None
        request_id, slot = told[_MARK], told.get(b"x-homelab-slot", "0")
        if not _ID.fullmatch(request_id) or not re.fullmatch(r"\d{1,5}", slot):
            raise InvalidInput("the headers of a forwarded request cannot be read", field=_MARK.decode())
        return cls(
            request_id,
            int(slot),
            told.get(b"x-homelab-key", ""),
            told.get(b"x-homelab-client", ""),
            told.get(b"x-homelab-priority") == "batch",
        )

    def headers(self) -> Headers:
        """The same as headers."""
        return [
            (_MARK, self.request_id.encode()),
            (b"x-homelab-slot", b"%d" % self.slot),
            (b"x-homelab-key", self.key.encode()),
            (b"x-homelab-client", self.client.encode()),
            (b"x-homelab-priority", b"batch" if self.batch else b"interactive"),
        ]


class _Relay(Connection):
    """A connection that keeps the headers of the reply."""

    __slots__ = ("headers",)

    def __init__(self, key: Address) -> None:
        super().__init__(key)
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.headers.append((name.lower(), value))


class Successor:
    """The daemon that takes over, or took over, behind its socket."""

    def __init__(self, daemon_sock: Path) -> None:
        self._path = str(daemon_sock)

    async def take(self, exchange: Exchange, content: bytes) -> None:
        """Let it answer; it also records the request. The client is asked to come back on a new connection.

        Raises:
            DaemonUnavailable: it went away.
        """
        relay: _Relay | None = None
        exchange.close_connection()
        try:
            relay = await connect(self._path, _Relay)
            relay.send(_request(exchange, content))
            status = await relay.head()
            exchange.recorded = False
            kept = [(name, value) for name, value in relay.headers if name in _PASSED_BACK]
            await exchange.relay(status, kept, _blocks(relay))
        except (UpstreamLost, UpstreamGarbled) as error:
            raise DaemonUnavailable("the daemon that takes over went away", hint="send the request again") from error
        finally:
            if relay is not None:
                relay.abort()


async def _blocks(relay: _Relay) -> AsyncIterator[bytes]:
    while block := await relay.block():
        yield block


def _request(exchange: Exchange, content: bytes) -> bytes:
    scope = exchange.scope
    target: bytes = scope["raw_path"]
    if query := scope.get("query_string"):
        target += b"?" + query
    method = b"GET" if scope["method"] == "HEAD" else scope["method"].encode("ascii")
    row = exchange.row
    origin = Origin(exchange.request_id, exchange.slot, row.key, row.client, exchange.batch)
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: localhost", b"Connection: close"]
    lines.append(b"Content-Length: %d" % len(content))
    told = [pair for pair in scope["headers"] if pair[0] in _PASSED_ON]
    lines += [name + b": " + value for name, value in [*told, *origin.headers()]]
    return b"\r\n".join([*lines, b"", content])
