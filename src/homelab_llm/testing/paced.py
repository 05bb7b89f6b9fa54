"""A paced file: a real HTTP server that sends one file only as far as a test allows, and counts what it sent."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_BLOCK_BYTES = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_WAIT_S = 60.0


class PacedFile:
    """Serves ``content`` at ``url``, ranges too; a context manager.

    ``sent_bytes`` counts over all replies. Sending stops when ``allow`` has not been asked for more; replies that wait
    then go on.
    """

    def __init__(self, content: bytes, name: str = "model.gguf") -> None:
        self.content = content
        self.name = name
        self.sent_bytes = 0
        self.replies = 0
        self._allowed_bytes = 0
        self._turn = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"file": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> PacedFile:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.allow(1 << 62)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self.name}"

    def allow(self, more_bytes: int) -> None:
        """Let so many more bytes go out, over all replies."""
        with self._turn:
            self._allowed_bytes += more_bytes
            self._turn.notify_all()

    def take(self, wanted_bytes: int) -> int:
        """Wait for the allowance; how many of the wanted bytes may be sent now, 0 when the wait was too long."""
        with self._turn:
            self._turn.wait_for(lambda: self._allowed_bytes > 0, _WAIT_S)
            given = min(wanted_bytes, self._allowed_bytes)
            self._allowed_bytes -= given
            self.sent_bytes += given
            return given


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    file: PacedFile
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        begin, stop = self._head()
        while begin < stop and (count := self.file.take(min(_BLOCK_BYTES, stop - begin))):
            self.wfile.write(self.file.content[begin : begin + count])
            begin += count
        self.close_connection = self.close_connection or begin < stop

    def _head(self) -> tuple[int, int]:
        content = self.file.content
        wanted = _RANGE.fullmatch(self.headers.get("range", ""))
        begin = int(wanted[1]) if wanted else 0
        stop = min(len(content), int(wanted[2]) + 1) if wanted and wanted[2] else len(content)
        self.file.replies += 1
        self.send_response(206 if wanted else 200)
        self.send_header("etag", '"one"')
        self.send_header("accept-ranges", "bytes")
        self.send_header("content-length", str(stop - begin))
        if wanted:
            self.send_header("content-range", f"bytes {begin}-{stop - 1}/{len(content)}")
        self.end_headers()
        return begin, stop
