"""What the tests of the command line need: the real program in a process, and a daemon that answers from a script."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.paths import Home


@dataclass(frozen=True)
class Outcome:
    """What a call left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Mlxctl = Callable[..., Outcome]


@pytest.fixture
def mlxctl(home: Home) -> Mlxctl:
    """Runs the command line in a process of its own, without a terminal, in the test's home."""

    def call(*argv: str, stdin: bytes = b"", environ: dict[str, str] | None = None) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "homelab_llm.interface.cli.main", *argv],
            input=stdin,
            capture_output=True,
            env={**os.environ, **(environ or {})},
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@dataclass
class ScriptedDaemon:
    """Answers each connection with the bytes scripted for its path; keeps what it was asked."""

    path: Path
    replies: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)

    def says(self, path: str, status: int, body: Any) -> None:
        """Answer ``path`` with JSON."""
        content = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.replies[path] = head.encode() + content

    def streams(self, path: str, *lines: str) -> None:
        """Answer ``path`` with these lines, each in a chunk of its own."""
        chunks = [f"{len(line.encode()) + 1:x}\r\n{line}\n\r\n" for line in lines]
        head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.replies[path] = (head + "".join(chunks) + "0\r\n\r\n").encode()

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        content = b""
        while b"\r\n\r\n" not in content:
            piece = link.recv(65536)
            if not piece:
                return
            content += piece
        head, _, body = content.partition(b"\r\n\r\n")
        length = next(
            (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += link.recv(65536)
        path = head.split()[1].decode()
        self.asked.append((path, json.loads(body) if body else None))
        reply = self.replies.get(path)
        if reply is None:
            body_404 = b'{"error": {"code": "endpoint_not_found", "message": "no such endpoint"}}'
            reply = b"HTTP/1.1 404 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body_404), body_404)
        link.sendall(reply)
        if reply.endswith(b"..."):  # a reply that never ends: wait until the client goes away
            self.waiting.set()
            with contextlib.suppress(ConnectionResetError):  # it left with something unread
                while link.recv(65536):
                    pass
            self.hung_up.set()


@pytest.fixture
def daemon(home: Home) -> Iterator[ScriptedDaemon]:
    """A daemon that follows a script, on the socket of the test's home."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.daemon_sock))
        listener.listen(16)
        scripted = ScriptedDaemon(home.daemon_sock)
        scripted.says("/healthz", 200, {"status": "ok"})
        scripted.says("/admin/models", 200, {"models": []})
        thread = threading.Thread(target=scripted.serve, args=(listener,), daemon=True)
        thread.start()
        yield scripted
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
