"""TLS inside TLS: a connection to an https origin through an https proxy, which ``ssl`` cannot wrap in place."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_T = TypeVar("_T")
_RECORD_BYTES = 1 << 16


class NestedTls(io.RawIOBase):
    """As much of a socket as ``http.client`` uses; ``outer`` is the connection to the proxy."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        super().__init__()
        self.outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._step(self._tls.do_handshake)

    def sendall(self, data: ReadableBuffer) -> None:
        """As a socket's."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self._step(partial(self._tls.write, view)) :]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            return self._step(partial(self._read, view))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def makefile(self, *_: Any) -> io.BufferedReader:
        """A reader of its own, which does not close the connection when it is closed."""
        return io.BufferedReader(_Reader(self))

    def settimeout(self, seconds: float | None) -> None:
        self.outer.settimeout(seconds)

    def fileno(self) -> int:
        return self.outer.fileno()

    def close(self) -> None:
        self.outer.close()
        super().close()

    def _read(self, view: memoryview) -> int:
        count: int = self._tls.read(len(view), view)  # type: ignore[assignment]  # typeshed: as if without a buffer
        return count

    def _step(self, step: Callable[[], _T]) -> _T:
        """Let the inner TLS take a step; carry what it has to say, and fetch what it waits for."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                received = self.outer.recv(_RECORD_BYTES)
                self._incoming.write(received) if received else self._incoming.write_eof()
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if pending := self._outgoing.read():
            self.outer.sendall(pending)


class _Reader(io.RawIOBase):
    def __init__(self, inside: NestedTls) -> None:
        super().__init__()
        self._inside = inside

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._inside.readinto(buffer)
