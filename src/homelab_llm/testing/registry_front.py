"""What stands in front of a registry in tests: one server that gives out tokens, one that fails on command.

Both pass on what they do not answer themselves, remember every request as it came, and keep what they say about
themselves (``Location``) pointing at themselves. A second origin on the same machine is ``localhost`` in place of
``127.0.0.1``.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

from homelab_llm.testing.registries import PASSWORD, USER, Registry

Page = tuple[int, Mapping[str, str], bytes]

_BLOCK_BYTES = 1 << 16
_NOT_PASSED = frozenset({"connection", "transfer-encoding", "authorization", "keep-alive"})
_REPOSITORY = re.compile(r"/v2/(?P<name>.+?)/(?:blobs|manifests|tags)/")
_BLOB = re.compile(r"/v2/(?P<name>.+?)/blobs/(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(slots=True)
class Seen:
    """One request as it came; ``body_bytes`` is what has arrived of its body."""

    method: str
    path: str
    host: str
    authorization: str
    body_bytes: int = 0


class Front:
    """A server on a loopback port in front of ``registry``; a context manager."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.trip: tuple[int, Callable[[], object]] | None = None
        """When so many bytes of uploads have arrived, do this, once."""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"front": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port it listens on; only inside the context."""
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        """What stands after ``oci://``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.host}"

    @property
    def uploaded_bytes(self) -> int:
        """Bytes of bodies that arrived in all uploads."""
        return sum(seen.body_bytes for seen in self.seen if seen.method in ("PATCH", "PUT", "POST"))

    def arrived(self) -> None:
        """Bytes of a body have come."""
        with self.lock:
            due = self.trip if self.trip is not None and self.uploaded_bytes >= self.trip[0] else None
            self.trip = None if due else self.trip
        if due is not None:
            due[1]()

    def answer(self, handler: _Handler) -> bool:  # noqa: ARG002 — the plain front answers nothing
        """Answer the request in place of the registry; whether that was done."""
        return False


@dataclass(slots=True)
class _Grant:
    scopes: frozenset[str]
    until_s: float


class TokenAuth(Front):
    """Gives out opaque tokens at ``/token`` and lets in who shows one that is good for what is asked.

    Args:
        anonymous: what may be done without an account: ``""``, ``"pull"`` or ``"pull,push"``.
        expires_s: what tokens say of themselves; ``forget()`` ends all at once.
        realm: what challenges name, when not this server itself.
    """

    IDENTITY = "identity-of-tester"

    def __init__(self, registry: Registry, *, anonymous: str = "pull", expires_s: float = 300, realm: str = "") -> None:
        super().__init__(registry)
        self.anonymous, self.expires_s, self.realm = anonymous, expires_s, realm
        self.grants: dict[str, _Grant] = {}

    def forget(self) -> None:
        """Let no token given out so far be good any more."""
        with self.lock:
            self.grants.clear()

    def answer(self, handler: _Handler) -> bool:
        parts = urlsplit(handler.path)
        if parts.path == "/token":
            self._give(handler, handler.body_fields() if handler.command == "POST" else parse_qsl(parts.query))
            return True
        if not parts.path.startswith("/v2/"):
            return False
        wanted = self._wanted(handler)
        with self.lock:
            grant = self.grants.get(handler.headers.get("authorization", "").removeprefix("Bearer "))
        if grant and grant.until_s > time.monotonic() and wanted <= grant.scopes:
            return False
        handler.skip_body()
        scopes: dict[str, list[str]] = {}
        for each in sorted(wanted):
            scopes.setdefault(each.rpartition(":")[0], []).append(each.rpartition(":")[2])
        scope = " ".join(f"{name}:{','.join(actions)}" for name, actions in scopes.items())
        realm = self.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="test"' + (f',scope="{scope}"' if scope else "")
        body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required", "detail": None}]}
        handler.reply(401, {"www-authenticate": challenge}, json.dumps(body).encode())
        return True

    def _wanted(self, handler: _Handler) -> set[str]:
        found = _REPOSITORY.match(urlsplit(handler.path).path)
        if not found:
            return set()
        own = f"repository:{found['name']}"
        query = parse_qs(urlsplit(handler.path).query)
        wanted = {f"{own}:pull"} | ({f"{own}:push"} if handler.command not in ("GET", "HEAD") else set())
        return wanted | {f"repository:{other}:pull" for other in query.get("from", [])}

    def _give(self, handler: _Handler, fields: list[tuple[str, str]]) -> None:
        told = dict(fields)
        shown = handler.headers.get("authorization", "")
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = shown == f"Basic {pair}" or told.get("refresh_token") == self.IDENTITY
        if (shown or "refresh_token" in told) and not known:
            body = {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]}
            handler.reply(401, {}, json.dumps(body).encode())
            return
        allowed = {"pull", "push"} if known else set(self.anonymous.split(","))
        asked = " ".join(value for name, value in fields if name == "scope").split()
        granted = frozenset(
            f"{scope.rpartition(':')[0]}:{action}"
            for scope in asked
            for action in scope.rpartition(":")[2].split(",")
            if action in allowed
        )
        token = secrets.token_urlsafe(16)
        with self.lock:
            self.grants[token] = _Grant(granted, time.monotonic() + self.expires_s)
        handler.reply(200, {}, json.dumps({"token": token, "expires_in": int(self.expires_s)}).encode())


@dataclass(slots=True)
class RegistryFaults:
    """What goes wrong; change it at any time. ``times`` counts faults down, at 0 all is well; negative = always.

    ``cut_upload_after_bytes``: the connection ends inside the body of a PATCH or PUT, what came before was passed on.
    ``status``: answers requests whose method is in ``methods``, with ``retry_after``. ``wrong_bytes``: the last byte of
    blobs is another. ``redirect``: blobs come from ``localhost`` in place of ``127.0.0.1``. ``location``: uploads are
    sent on to this origin. ``challenge``: everything is answered 401 with it.
    """

    times: int = -1
    cut_upload_after_bytes: int | None = None
    cut_download_after_bytes: int | None = None
    stall: threading.Event | None = None
    status: int = 0
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE")
    retry_after: str = ""
    wrong_bytes: bool = False
    ignore_range: bool = False
    redirect: bool = False
    location: str = ""
    challenge: str = ""
    refuse_chunks: bool = False
    chunk_min_bytes: int = 0
    bytes_per_s: int = 0


class FaultyRegistry(Front):
    """Passes everything on until told to fail. ``pages`` answers any path itself: huge or recursive manifests, say."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.faults = RegistryFaults(times=0)
        self.pages: dict[str, Page] = {}

    def take(self) -> RegistryFaults:
        """The faults for one request, counted down."""
        with self.lock:
            if self.faults.times == 0:
                return RegistryFaults(times=0)
            if self.faults.times > 0:
                self.faults.times -= 1
            return self.faults

    def answer(self, handler: _Handler) -> bool:
        path = urlsplit(handler.path).path
        if path in self.pages:
            handler.skip_body()
            handler.reply(*self.pages[path])
            return True
        faults = self.faults
        if faults.times and faults.challenge:
            handler.skip_body()
            handler.reply(401, {"www-authenticate": self.take().challenge}, b"")
            return True
        if faults.times and faults.status and handler.command in faults.methods:
            handler.skip_body()
            fault = self.take()
            headers = {"retry-after": fault.retry_after} if fault.retry_after else {}
            handler.reply(fault.status, headers, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}')
            return True
        if faults.times and faults.refuse_chunks and handler.command == "PATCH":
            handler.skip_body()
            handler.reply(405, {}, b'{"errors":[{"code":"UNSUPPORTED","message":"no chunks here"}]}')
            return True
        blob = _BLOB.fullmatch(path)
        if faults.times and faults.redirect and blob and handler.command == "GET" and handler.host_name != "localhost":
            location = f"http://localhost:{self.port}{path}?signature=secret"
            handler.reply(307, {"location": location}, b"")
            return True
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    front: Front
    protocol_version = "HTTP/1.1"
    timeout = 60
    seen: Seen

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    @property
    def host_name(self) -> str:
        """The name under which this server was asked."""
        return (self.headers.get("host") or "").rpartition(":")[0]

    def do_GET(self) -> None:
        headers = self.headers
        self.seen = Seen(self.command, self.path, headers.get("host", ""), headers.get("authorization", ""))
        with self.front.lock:
            self.front.seen.append(self.seen)
        if not self.front.answer(self):
            self._pass_on()

    do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole reply."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def skip_body(self) -> None:
        """Read the request's body away."""
        for _ in self._body(None, 0):
            pass

    def body_fields(self) -> list[tuple[str, str]]:
        """The body as a form."""
        return parse_qsl(b"".join(self._body(None, 0)).decode())

    def _body(self, cut_after_bytes: int | None, bytes_per_s: int) -> Iterator[bytes]:
        left = int(self.headers.get("content-length") or 0)
        while left:
            most = left if cut_after_bytes is None else min(left, cut_after_bytes - self.seen.body_bytes)
            if not most:
                raise ConnectionResetError("cut by the test")
            block = self.rfile.read1(min(_BLOCK_BYTES, most))
            if not block:
                raise ConnectionResetError("the client went away")
            left -= len(block)
            self.seen.body_bytes += len(block)
            self.front.arrived()
            if bytes_per_s:
                time.sleep(len(block) / bytes_per_s)
            yield block

    def _pass_on(self) -> None:
        front = self.front
        fault = RegistryFaults(times=0)
        if isinstance(front, FaultyRegistry) and self._concerns(front.faults):
            fault = front.take()
        connection = http.client.HTTPConnection("127.0.0.1", front.registry.port, timeout=60)
        try:
            self._send_on(connection, fault)
            reply = connection.getresponse()
            if fault.stall is not None:
                fault.stall.wait(60)
            self._answer_with(reply, fault)
        except ConnectionError:
            self.close_connection = True
        finally:
            connection.close()

    def _concerns(self, faults: RegistryFaults) -> bool:
        """Whether what is told to go wrong can go wrong with this request; others are not counted."""
        if self.command in ("PATCH", "PUT") and "/manifests/" not in self.path:
            return faults.cut_upload_after_bytes is not None or bool(
                faults.location or faults.bytes_per_s or faults.stall
            )
        if self.command == "POST":
            return bool(faults.location or faults.chunk_min_bytes)
        blob = self.command == "GET" and _BLOB.fullmatch(urlsplit(self.path).path) is not None
        damaging = (faults.wrong_bytes, faults.ignore_range, faults.bytes_per_s, faults.stall)
        return blob and (faults.cut_download_after_bytes is not None or any(damaging))

    def _send_on(self, connection: http.client.HTTPConnection, fault: RegistryFaults) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() in _NOT_PASSED or (fault.ignore_range and name.lower() == "range"):
                continue
            connection.putheader(name, value)
        connection.endheaders()
        for block in self._body(fault.cut_upload_after_bytes, fault.bytes_per_s):
            connection.send(block)

    def _answer_with(self, reply: http.client.HTTPResponse, fault: RegistryFaults) -> None:
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() == "location" and fault.location:
                value = fault.location + urlsplit(value).path + "?" + urlsplit(value).query
            if name.lower() not in _NOT_PASSED:
                self.send_header(name, value)
        if fault.chunk_min_bytes:
            self.send_header("OCI-Chunk-Min-Length", str(fault.chunk_min_bytes))
        if reply.getheader("content-length") is None and reply.status != 204:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self._send_back(reply, fault)

    def _send_back(self, reply: http.client.HTTPResponse, fault: RegistryFaults) -> None:
        left = int(reply.getheader("content-length") or 0)
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while block := reply.read(_BLOCK_BYTES):
                if fault.cut_download_after_bytes is not None:
                    block = block[: fault.cut_download_after_bytes - sent]
                if fault.wrong_bytes and sent + len(block) == left:
                    block = block[:-1] + bytes([block[-1] ^ 1])
                self.wfile.write(block)
                sent += len(block)
                if fault.bytes_per_s:
                    time.sleep(len(block) / fault.bytes_per_s)
                if fault.cut_download_after_bytes is not None and sent >= fault.cut_download_after_bytes:
                    break
        if sent < left:
            self.close_connection = True
