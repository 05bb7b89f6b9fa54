"""A hub with one large file, as cheap as a server can be: threads and ``sendfile``, in a process of its own.

``python -m homelab_llm.testing.file_server FILE [BYTES_PER_S]`` serves FILE as ``org/name`` (``model.gguf``), each
connection at no more than that pace; the base URL is the first line printed. For measurements: ``hub.py`` can do more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

REPO = "org/name"
FILE = "model.gguf"
REFERENCE = f"hf:{REPO}#{FILE}"
_COMMIT = "0" * 40
_RANGE = re.compile(rb"range: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_PACED_BYTES = 1 << 18


@contextlib.contextmanager
def serving(file: Path, bytes_per_s: int = 0) -> Iterator[str]:
    """The server in a process of its own, for the block; gives its base URL."""
    command = [sys.executable, "-m", "homelab_llm.testing.file_server", str(file), str(bytes_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip() if server.stdout else ""
        finally:
            server.kill()


class _Server:
    def __init__(self, file: Path, bytes_per_s: int) -> None:
        self._handle = os.open(file, os.O_RDONLY)
        self._size, self._pace = file.stat().st_size, bytes_per_s
        with file.open("rb") as stream:
            self._digest = hashlib.file_digest(stream, "sha256").hexdigest()

    def serve(self, connection: socket.socket) -> None:
        """Answer one request after the other until the client goes away."""
        received = b""
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                while b"\r\n\r\n" not in received:
                    if not (more := connection.recv(1 << 16)):
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                if path.startswith("/api/"):
                    self._tell(connection, path)
                else:
                    self._send(connection, head, body=method == "GET")

    def _tell(self, connection: socket.socket, path: str) -> None:
        entry = {"type": "file", "path": FILE, "size": self._size, "oid": "1" * 40}
        entry["lfs"] = {"oid": self._digest, "size": self._size, "pointerSize": 134}
        answer: object = [entry] if "/tree/" in path else {"id": REPO, "sha": _COMMIT, "tags": []}
        content = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)

    def _send(self, connection: socket.socket, head: bytes, *, body: bool) -> None:
        wanted = _RANGE.search(head)
        at = int(wanted[1]) if wanted else 0
        stop = min(self._size, int(wanted[2]) + 1) if wanted and wanted[2] else self._size
        status = f"206 Partial Content\r\ncontent-range: bytes {at}-{stop - 1}/{self._size}" if wanted else "200 OK"
        connection.sendall(
            f'HTTP/1.1 {status}\r\netag: "{self._digest}"\r\nx-repo-commit: {_COMMIT}\r\naccept-ranges: bytes\r\n'
            f"content-length: {stop - at}\r\n\r\n".encode()
        )
        begin_s, begin = time.monotonic(), at
        while body and at < stop:
            at += os.sendfile(
                connection.fileno(), self._handle, at, min(stop - at, _PACED_BYTES if self._pace else stop)
            )
            if self._pace:
                time.sleep(max(0.0, begin_s + (at - begin) / self._pace - time.monotonic()))


def main() -> None:
    """Serve until killed."""
    server = _Server(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
