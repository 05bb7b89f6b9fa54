"""HTTP/1.1 connections to checked addresses: opened, kept for the next request, and all ended at once on demand.

The connection goes to an address that was checked; the name stays in the Host header and in TLS. ``http.client`` of
the standard library does the framing: it hands out what one ``recv`` brought, at three times the speed of a general
client. What to ask, and what replies mean, is ``core/http.py``.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from homelab_llm.core.tunnel import NestedTls
from homelab_llm.core.urls import Origin

_IDLE_S = 15.0
_READ_BYTES = 1 << 20
FAILURES = (OSError, http.client.HTTPException)
"""What a connection, a request or the reading of a reply raises when the other side or the way to it fails."""


class Connection(http.client.HTTPConnection):
    """One connection to ``address``, or through ``proxy`` (a URL) to ``origin``."""

    def __init__(self, origin: Origin, address: str, proxy: str, connections: Connections) -> None:
        super().__init__(origin.host, origin.port)
        self.key = (origin, proxy)
        self.used_s = 0.0
        self._origin, self._address, self._proxy, self._connections = origin, address, proxy, connections

    def connect(self) -> None:
        """Open it; blocks."""
        via = urlsplit(self._proxy)
        host = via.hostname or self._address
        port = (via.port or (443 if via.scheme == "https" else 80)) if self._proxy else self._origin.port
        sock = socket.create_connection((host, port), self._connections.connect_s)
        self.sock = sock
        self._connections.opened(self)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if via.scheme == "https":
            sock = self.sock = self._connections.tls().wrap_socket(sock, server_hostname=host)
        if self._origin.scheme == "https":
            if self._proxy:
                self._ask_for_tunnel(sock)
            if isinstance(sock, ssl.SSLSocket):
                self.sock = NestedTls(sock, self._connections.tls(), self._origin.host)
            else:
                self.sock = self._connections.tls().wrap_socket(sock, server_hostname=self._origin.host)
        self.sock.settimeout(self._connections.read_s)

    def end(self) -> None:
        """Make whoever reads or writes it in another thread fail now."""
        sock = self.sock
        if isinstance(sock, NestedTls):
            sock = sock.outer
        if sock is not None:
            with contextlib.suppress(OSError):
                # not SSLSocket's own: that forgets the encryption, and would then hand out what is left, encrypted
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def proxy_headers(self) -> dict[str, str]:
        """What the proxy wants to know of us."""
        via = urlsplit(self._proxy)
        if not via.username:
            return {}
        login = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
        return {"proxy-authorization": f"Basic {base64.b64encode(login).decode()}"}

    def _ask_for_tunnel(self, sock: socket.socket) -> None:
        target = f"[{self._origin.host}]" if ":" in self._origin.host else self._origin.host
        lines = [f"CONNECT {target}:{self._origin.port} HTTP/1.1", f"Host: {target}:{self._origin.port}"]
        lines += [f"{name}: {value}" for name, value in self.proxy_headers().items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        reply = http.client.HTTPResponse(sock, method="CONNECT")
        reply.begin()
        if reply.status != 200:
            raise http.client.HTTPException(f"the proxy answered {reply.status}")


class Answer:
    """The reply to one request: its head is here, its body can be read once, and then it is closed.

    ``headers`` have lower-case names; ``length_bytes`` is how long the body will be, None while only its end tells.
    """

    def __init__(self, connection: Connection, response: http.client.HTTPResponse, connections: Connections) -> None:
        self._connection, self._response, self._connections = connection, response, connections
        self.status, self.length_bytes = response.status, response.length
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}

    def read(self) -> bytes:
        """What comes next, as soon as there is something; empty at the end of the body, or where it was cut.

        Raises:
            OSError, http.client.HTTPException: see ``FAILURES``.
        """
        return self._response.read1(_READ_BYTES)

    def close(self) -> None:
        """Keep the connection if its whole body was read, else end it."""
        ended = self._response.length == 0 or (self._response.chunked and self._response.isclosed())
        reusable = ended and not self._response.will_close
        self._response.close()
        if reusable:
            self._connections.keep(self._connection)
        else:
            self._connections.drop(self._connection)


@dataclass(slots=True)
class Connections:
    """All connections of one client; safe to use from several threads."""

    connect_s: float
    read_s: float
    monotonic_s: Callable[[], float] = time.monotonic
    _idle: dict[tuple[Origin, str], list[Connection]] = field(default_factory=dict)
    _open: set[Connection] = field(default_factory=set)
    _tls: ssl.SSLContext | None = None
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None,
        *,
        origin: Origin,
        address: str,
        proxy: str,
    ) -> Answer:
        """Send one request, on a kept connection if there is one, and read the head of the reply.

        Raises:
            OSError, http.client.HTTPException: see ``FAILURES``; ``ConnectError`` when it could not be opened.
        """
        connection = self._kept((origin, proxy)) or self._new(origin, address, proxy)
        try:
            if proxy and origin.scheme == "http":
                headers = {**connection.proxy_headers(), **headers}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it hung up
                connection.request(method, target, content, dict(headers))
            return Answer(connection, connection.getresponse(), self)
        except BaseException:
            self.drop(connection)
            raise

    def close(self) -> None:
        """End every connection, those too that other threads use; no new one is opened."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
            used = self._open - set(idle)
        for connection in idle:
            self.drop(connection)
        for connection in used:
            connection.end()

    def opened(self, connection: Connection) -> None:
        """Remember it, so that it can be ended.

        Raises:
            ConnectionAbortedError: the client was closed meanwhile.
        """
        with self._lock:
            self._open.add(connection)
            if self._closed:
                raise ConnectionAbortedError("the client is closed")

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose reply was read to the end."""
        connection.used_s = self.monotonic_s()
        with self._lock:
            if not self._closed:
                self._idle.setdefault(connection.key, []).append(connection)
                return
        self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """End one connection."""
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def tls(self) -> ssl.SSLContext:
        """The system's certificates (or ``SSL_CERT_FILE``), for all connections."""
        with self._lock:
            if self._tls is None:
                import httpx2

                self._tls = httpx2.create_ssl_context()
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls

    def _kept(self, key: tuple[Origin, str]) -> Connection | None:
        while True:
            with self._lock:
                kept = self._idle.get(key)
                if not kept:
                    return None
                connection = kept.pop()
            if self.monotonic_s() - connection.used_s < _IDLE_S and not _has_something_to_say(connection):
                return connection
            self.drop(connection)

    def _new(self, origin: Origin, address: str, proxy: str) -> Connection:
        connection = Connection(origin, address, proxy, self)
        try:
            connection.connect()
        except FAILURES as error:
            self.drop(connection)
            raise ConnectError(error) from error
        except BaseException:
            self.drop(connection)
            raise
        return connection


class ConnectError(OSError):
    """No connection came about; ``args[0]`` says why."""


def _has_something_to_say(connection: Connection) -> bool:
    """Whether an idle connection is readable: the other side has closed it, or does not keep to the protocol."""
    try:
        poll = select.poll()
        poll.register(connection.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True
