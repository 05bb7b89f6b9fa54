"""A fake model hub: a real HTTP server on a loopback port that speaks the hub's API and fails on command.

It serves metadata, file lists and files with ranges the way Hugging Face's hub does, redirects large files to
another host name as a content network would, and counts what it sent. ``python -m homelab_llm.testing.hub FOLDER``
serves the folders ``FOLDER/org/name``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from homelab_llm.testing.hub_pushes import HubPushes

Page = tuple[int, Mapping[str, str], bytes]

_BLOCK_BYTES = 1 << 17
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_INFO = re.compile(rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/(?P<kind>cdn/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
LARGE = (".gguf", ".safetensors", ".bin")


@dataclass(slots=True)
class Faults:
    """What goes wrong; change it at any time. ``times`` counts down, at 0 all is well again; negative = always.

    ``drop_after_bytes``: close the connection in the middle of a file. ``status`` answers files with it.
    ``changed_etag``: every reply has another validator. ``wrong_length``: announce so many bytes more than come.
    ``hold_after_bytes``: then send nothing more and keep the connection open. ``wrong_part``: begin so many bytes
    beside what was asked for. ``wrong_bytes``: the last byte is another one.
    """

    times: int = -1
    drop_after_bytes: int | None = None
    hold_after_bytes: int | None = None
    wrong_part: int = 0
    wrong_bytes: bool = False
    ignore_range: bool = False
    changed_etag: bool = False
    status: int = 0
    retry_after: str = ""
    error_code: str = ""
    html: bool = False
    compressed: bool = False
    wrong_length: int = 0
    api_status: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    path: str
    range: str
    authorization: str
    host: str
    port: int = 0


@dataclass(slots=True)
class FakeHub:
    """The hub; a context manager. ``repos`` maps ``org/name`` to its files, ``pages`` adds any other address.

    Args:
        token: when set, everything of a repository needs it.
        redirect: send large files from another origin (``localhost`` in place of ``127.0.0.1``).
        page_entries: entries in one page of a file list.
        xet: path of a file → its hash in a Xet storage; ``pages`` has the route that says where that is.
        tls: serve https with it.
        on_file: called with every request for a file, before it is answered; an answer replaces ``faults`` for it.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)
    token: str = ""
    redirect: bool = False
    page_entries: int = 1000
    xet: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    faults: Faults = field(default_factory=lambda: Faults(times=0))
    requests: list[Request] = field(default_factory=list)
    file_bytes_sent: int = 0
    on_file: Callable[[Request], Faults | None] | None = None
    ending: threading.Event = field(default_factory=threading.Event, repr=False)
    sockets: set[socket.socket] = field(default_factory=set, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    pushes: HubPushes = field(init=False)
    _server: ThreadingHTTPServer | None = field(default=None, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.pushes = HubPushes(self.repos)

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def port(self) -> int:
        """The port it listens on; only inside the context."""
        if self._server is None:
            raise RuntimeError("the hub is not running")
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def commit(self, repo: str) -> str:
        """The commit of a repository: 40 hex digits that change with its content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.repos[repo].items()):
            digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def hang_up(self) -> None:
        """End every connection there is."""
        with self.lock:
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def take_fault(self) -> Faults:
        """The faults for one file request, counted down."""
        with self.lock:
            if self.faults.times == 0:
                return Faults(times=0)
            if self.faults.times > 0:
                self.faults.times -= 1
            return self.faults

    def count(self, sent_bytes: int) -> None:
        """Remember that so many bytes of a file went out."""
        with self.lock:
            self.file_bytes_sent += sent_bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        with self.hub.lock:
            self.hub.sockets.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.sockets.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        headers = self.headers
        request = Request(
            self.path,
            headers.get("range", ""),
            headers.get("authorization", ""),
            headers.get("host", ""),
            self.client_address[1],
        )
        with hub.lock:
            hub.requests.append(request)
        if path in hub.pages:
            self._reply(*hub.pages[path])
        elif found := _INFO.fullmatch(path):
            self._api(found["repo"], unquote(found["revision"]), self._info)
        elif found := _TREE.fullmatch(path):
            self._api(found["repo"], found["revision"], self._tree)
        elif found := _FILE.fullmatch(path):
            fault = hub.on_file(request) if hub.on_file else None
            self._file(found["repo"], unquote(found["path"]), bool(found["kind"]), fault)
        else:
            self._error(404, "RepoNotFound")

    def do_POST(self) -> None:
        self._push("POST")

    def do_PUT(self) -> None:
        self._push("PUT")

    def _push(self, method: str) -> None:
        """What the hub's own client sends when it pushes; uploads go without the token, as to a content network."""
        hub, path = self.hub, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not path.startswith("/lfs/") and not self._allowed():
            self._error(401, "GatedRepo")
            return
        with hub.lock:
            found = hub.pushes.answer(method, hub.url, path, body)
        self._reply(*(found or (404, {}, b"")))

    def do_HEAD(self) -> None:
        """What the hub's own client asks before each file."""
        found = _FILE.fullmatch(urlsplit(self.path).path)
        content = self.hub.repos.get(found["repo"], {}).get(unquote(found["path"])) if found else None
        self.send_response(404 if content is None else 200)
        if found and content is not None:
            self.send_header("x-repo-commit", self.hub.commit(found["repo"]))
            self.send_header("etag", f'"{_etag(found["path"], content)}"')
            self.send_header("content-length", str(len(content)))
        self.end_headers()

    def _api(self, repo: str, revision: str, answer: Callable[[str], None]) -> None:
        hub = self.hub
        if hub.faults.api_status and hub.take_fault().api_status:
            self._error(hub.faults.api_status, hub.faults.error_code, hub.faults.retry_after)
        elif hub.faults.html and hub.take_fault().html:
            self._reply(200, {"content-type": "text/html"}, b"<html>Please log in</html>")
        elif repo not in hub.repos:
            self._error(404, "RepoNotFound")
        elif not self._allowed():
            self._error(401, "GatedRepo")
        elif revision not in {"main", hub.commit(repo)}:
            self._error(404, "RevisionNotFound")
        else:
            answer(repo)

    def _info(self, repo: str) -> None:
        siblings = [{"rfilename": path} for path in self.hub.repos[repo]]
        info = {"id": repo, "sha": self.hub.commit(repo), "siblings": siblings, "tags": ["license:apache-2.0"]}
        self._reply(200, {"content-type": "application/json"}, json.dumps(info).encode())

    def _tree(self, repo: str) -> None:
        first = int(urlsplit(self.path).query.partition("cursor=")[2] or 0)
        entries = [
            _entry(path, content) | ({"xetHash": self.hub.xet[path]} if path in self.hub.xet else {})
            for path, content in sorted(self.hub.repos[repo].items())
        ]
        headers = {"content-type": "application/json"}
        if first + self.hub.page_entries < len(entries):
            base = urlsplit(self.path).path
            headers["link"] = f'<{base}?recursive=True&cursor={first + self.hub.page_entries}>; rel="next"'
        page = entries[first : first + self.hub.page_entries]
        self._reply(200, headers, json.dumps(page).encode())

    def _file(self, repo: str, path: str, from_cdn: bool, fault: Faults | None) -> None:
        content = self.hub.repos.get(repo, {}).get(path)
        if content is None:
            self._error(404, "EntryNotFound")
        elif not from_cdn and not self._allowed():
            self._error(401, "GatedRepo")
        elif self.hub.redirect and not from_cdn and path.endswith(LARGE):
            location = f"http://localhost:{self.hub.port}/cdn{urlsplit(self.path).path}?signature=secret"
            self._reply(302, {"location": location}, b"")
        else:
            self._content(path, content, fault or self.hub.take_fault())

    def _content(self, path: str, content: bytes, fault: Faults) -> None:
        if fault.status:
            self._error(fault.status, fault.error_code, fault.retry_after)
            return
        if fault.html:
            self._reply(200, {"content-type": "text/html; charset=utf-8"}, b"<html>Please log in</html>")
            return
        wanted = _RANGE.fullmatch(self.headers.get("range", ""))
        begin = int(wanted[1]) if wanted and not fault.ignore_range else 0
        stop = (
            min(len(content), int(wanted[2]) + 1) if wanted and wanted[2] and not fault.ignore_range else len(content)
        )
        if begin >= len(content) and content:
            self._reply(416, {"content-range": f"bytes */{len(content)}"}, b"")
            return
        etag = _etag(path, content)
        if fault.changed_etag:
            etag += f"-{len(self.hub.requests)}"
        self.send_response(206 if wanted and not fault.ignore_range else 200)
        self.send_header("etag", f'"{etag}"')
        self.send_header("content-length", str(stop - begin + fault.wrong_length))
        if fault.compressed:
            self.send_header("content-encoding", "gzip")
        if wanted and not fault.ignore_range:
            self.send_header("content-range", f"bytes {begin + fault.wrong_part}-{stop - 1}/{len(content)}")
        self.end_headers()
        self._send(content[begin:stop], fault)

    def _send(self, content: bytes, fault: Faults) -> None:
        if fault.wrong_bytes:
            content = content[:-1] + bytes([content[-1] ^ 255])
        if (limit := fault.drop_after_bytes if fault.hold_after_bytes is None else fault.hold_after_bytes) is not None:
            content = content[:limit]
        try:
            for at in range(0, len(content), _BLOCK_BYTES):
                block = content[at : at + _BLOCK_BYTES]
                self.wfile.write(block)
                self.hub.count(len(block))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if fault.hold_after_bytes is not None:
            self.hub.ending.wait(self.timeout)
        if limit is not None or fault.wrong_length:
            self.close_connection = True

    def _allowed(self) -> bool:
        return not self.hub.token or self.headers.get("authorization") == f"Bearer {self.hub.token}"

    def _error(self, status: int, code: str, retry_after: str = "") -> None:
        headers = {"x-error-code": code, "x-error-message": f"fake: {code}"} if code else {}
        if retry_after:
            headers["retry-after"] = retry_after
        self._reply(status, headers, b"")

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_sha1(content)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def main() -> None:
    """Serve the folders ``FOLDER/org/name`` until interrupted; the base URL is the first line printed."""
    root = Path(sys.argv[1])
    repos: dict[str, dict[str, bytes]] = {}
    for path in sorted(root.glob("*/*/**/*")):
        if path.is_file():
            org, name, *inside = path.relative_to(root).parts
            repos.setdefault(f"{org}/{name}", {})["/".join(inside)] = path.read_bytes()
    with FakeHub(repos=repos) as hub:
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
