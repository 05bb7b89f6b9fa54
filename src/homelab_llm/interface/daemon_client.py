"""A tiny client for the daemon: HTTP/1.1, one connection per call, standard library only.

Not a general HTTP client: no redirects, no pooling. ``mlxctl ps`` must start at click speed, so the HTTP
libraries stay unimported. Everything read is bounded. Closing a stream closes the connection, which aborts the
work at the daemon.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import quote

from homelab_llm.core import errors
from homelab_llm.interface.doors import Door, SocketDoor

_MAX_HEAD_BYTES = 64 << 10
_MAX_BODY_BYTES = 64 << 20
_MAX_LINE_BYTES = 8 << 20
CALL_TIMEOUT_S = 60.0
STREAM_SILENCE_S = 3700.0  # longer than server.request_deadline_s: the daemon decides, we only never wait for ever


class DaemonClient:
    """Speaks to one daemon: that of a home, by its socket, or one behind a door. Opens nothing until asked.

    Raises (all calls):
        DaemonUnavailable: nothing listens, it did not answer in time, or it went away.
        HomelabError: the class whose ``code`` the daemon's error body names.
    """

    def __init__(self, door: Path | Door, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._door = SocketDoor(door) if isinstance(door, Path) else door
        self._call_timeout_s = call_timeout_s

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """The decoded JSON body of a GET."""
        with self._send("GET", path, None, timeout_s or self._call_timeout_s) as reply:
            return reply.json()

    def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> Any:
        """The decoded JSON body of a POST; None when there is none."""
        with self._send("POST", path, body, timeout_s or self._call_timeout_s) as reply:
            return reply.json()

    def stream(self, path: str, body: Any) -> Reply:
        """POST and read the reply line by line while it arrives; use it in a ``with``."""
        return self._send("POST", path, body, STREAM_SILENCE_S)

    def watch(self, path: str, *, silence_s: float = STREAM_SILENCE_S) -> Reply:
        """GET and read the reply line by line; one that is silent for ``silence_s`` is a daemon that went away."""
        return self._send("GET", path, None, silence_s)

    def answers(self, *, timeout_s: float = 1.0) -> bool:
        """Whether a daemon is up on this socket right now."""
        try:
            with self._send("GET", "/healthz", None, timeout_s):
                return True
        except errors.HomelabError:
            return False

    def _send(self, method: str, path: str, body: Any, timeout_s: float) -> Reply:
        content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        head = [f"{method} {quote(path, safe='/?=&')} HTTP/1.1", f"Host: {self._door.host}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in self._door.headers.items()]
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        link = self._door.connect()
        try:
            link.settimeout(timeout_s)
            link.sendall("\r\n".join([*head, "", ""]).encode("ascii") + content)
            reply = Reply(link, timeout_s, self._door.silent_hint)
        except TimeoutError as error:
            link.close()
            raise _silent(timeout_s, self._door.silent_hint) from error
        except OSError as error:
            link.close()
            raise _gone() from error
        except BaseException:
            link.close()
            raise
        if reply.status >= 400:
            with reply:
                raise error_from(reply.status, reply.body())
        return reply


class Reply:
    """One response while it arrives: ``status``, then either ``body()`` or ``lines()``."""

    def __init__(self, link: socket.socket, silence_s: float, hint: str) -> None:
        self._link, self._silence_s, self._hint = link, silence_s, hint
        self._stream: BinaryIO = link.makefile("rb")
        self.status, self.headers = read_head(self._stream)

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the daemon sees it at once."""
        self._stream.close()
        self._link.close()

    def body(self) -> bytes:
        """The whole body, at most 64 MB."""
        content = bytearray()
        for piece in self._pieces():
            content += piece
            if len(content) > _MAX_BODY_BYTES:
                raise errors.DaemonUnavailable("the daemon's answer is longer than any it should give")
        return bytes(content)

    def json(self) -> Any:
        """The body decoded; None when it is empty."""
        content = self.body()
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise errors.DaemonUnavailable("the daemon's answer is not JSON", hint="mlxctl logs daemon") from error

    def lines(self) -> Iterator[str]:
        """Each line without its end, as soon as it is complete; also a last one without an end."""
        rest = b""
        for piece in self._pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r").decode("utf-8", "replace")
            if len(rest) > _MAX_LINE_BYTES:
                raise errors.DaemonUnavailable("the daemon sent a line longer than any it should send")
        if rest:
            yield rest.decode("utf-8", "replace")

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from read_body(self._stream, self.headers)
        except TimeoutError as error:
            raise _silent(self._silence_s, self._hint) from error
        except OSError as error:
            raise _gone() from error


def read_head(stream: BinaryIO) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case) of a response.

    Raises:
        DaemonUnavailable: the connection ended, or this is not HTTP/1.x.
    """
    status_line = stream.readline(_MAX_HEAD_BYTES)
    parts = status_line.split(None, 2)
    if (
        not status_line.endswith(b"\n")
        or len(parts) < 2
        or not parts[0].startswith(b"HTTP/1.")
        or not parts[1].isdigit()
    ):
        raise _gone() if not status_line else errors.DaemonUnavailable("what answers on the socket is not our daemon")
    headers: dict[str, str] = {}
    left = _MAX_HEAD_BYTES - len(status_line)
    while (line := stream.readline(left + 1)) not in (b"\r\n", b"\n"):
        left -= len(line)
        if not line.endswith(b"\n") or left < 0:
            raise _gone()
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers


def read_body(stream: BinaryIO, headers: dict[str, str]) -> Iterator[bytes]:
    """The body's bytes as they arrive: chunked, of a given length, or until the connection ends.

    Raises:
        DaemonUnavailable: it ended before it was complete.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := _chunk_size(stream):
            yield from _exactly(stream, size)
            if stream.readline(3) not in (b"\r\n", b"\n"):
                raise _gone()
        return
    length = headers.get("content-length", "")
    if length.isdigit():
        yield from _exactly(stream, int(length))
        return
    while piece := _some(stream, 1 << 16):
        yield piece


def _chunk_size(stream: BinaryIO) -> int:
    line = stream.readline(256)
    try:
        size = int(line.split(b";")[0], 16)
    except ValueError as error:
        raise _gone() from error
    if not line.endswith(b"\n") or size < 0:
        raise _gone()
    return size


def _exactly(stream: BinaryIO, count: int) -> Iterator[bytes]:
    while count:
        piece = _some(stream, min(count, 1 << 16))
        if not piece:
            raise _gone()
        count -= len(piece)
        yield piece


def _some(stream: BinaryIO, limit: int) -> bytes:
    """At most ``limit`` bytes, and no longer a wait than for the first of them."""
    read1 = getattr(stream, "read1", None)
    piece = read1(limit) if read1 is not None else stream.read(limit)
    return piece if isinstance(piece, bytes) else b""


def error_from(status: int, body: bytes) -> errors.HomelabError:
    """The typed error in a reply's body; the admin and the OpenAI shape are both ``{"error": {…}}``."""
    try:
        found = json.loads(body)["error"]
        return errors.error_of(found)
    except (ValueError, KeyError, TypeError):
        return errors.InternalError(
            f"the daemon answered with status {status}", hint="mlxctl logs daemon", status=status
        )


def _gone() -> errors.DaemonUnavailable:
    return errors.DaemonUnavailable("the daemon went away before its answer was complete", hint="mlxctl logs daemon")


def _silent(limit_s: float, hint: str) -> errors.DaemonUnavailable:
    return errors.DaemonUnavailable(f"the daemon did not answer within {limit_s:.0f} s", hint=hint, limit_s=limit_s)
