"""A remote file as a seekable stream: reads become ranges. Made for ``zipfile``, which reads a wheel's directory
at its end first and then one member forward.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack

from homelab_llm.core.errors import SourceUnavailable
from homelab_llm.core.http import HttpClient

_TAIL_BYTES = 1 << 18
_MAX_READ_BYTES = 64 << 20  # a directory larger than that is no wheel's


class RangedFile(io.RawIOBase):
    """Reads ``url`` by ranges; the last 256 KiB are fetched once and kept. Close it after use.

    Raises:
        SourceUnavailable: from the constructor, when the server does not serve ranges or does not tell the length.
    """

    def __init__(self, client: HttpClient, url: str) -> None:
        super().__init__()
        self._client, self._url = client, url
        self._at = 0
        self._stream = ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._left, self._stream_at = b"", -1
        with client.stream(url, start=0, stop=1) as body:
            if "content-range" not in body.headers or body.total_bytes is None:
                raise SourceUnavailable("the package index does not serve parts of files")
            self.length = body.total_bytes
        self._tail_at = max(0, self.length - _TAIL_BYTES)
        with client.stream(url, start=self._tail_at, stop=self.length) as body:
            self._tail = b"".join(body.chunks)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        wanted = min(self.length - self._at if size < 0 else size, self.length - self._at)
        if wanted <= 0:
            return b""
        if wanted > _MAX_READ_BYTES:
            raise SourceUnavailable("the package is not laid out as a wheel is")
        if self._at >= self._tail_at:
            start = self._at - self._tail_at
            found = self._tail[start : start + wanted]
        else:
            found = self._forward(wanted)
        self._at += len(found)
        return found

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _forward(self, wanted: int) -> bytes:
        """Read on from the open reply, or open one at the position; short only at the end of the reply."""
        if self._stream_at != self._at:
            self._stream.close()
            body = self._stream.enter_context(self._client.stream(self._url, start=self._at, stop=self.length))
            if body.start != self._at:
                raise SourceUnavailable("the package index does not serve parts of files")
            self._chunks, self._left, self._stream_at = body.chunks, b"", self._at
        parts, have = [self._left], len(self._left)
        while have < wanted and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
        joined = b"".join(parts)
        self._left = joined[wanted:]
        self._stream_at += min(wanted, have)
        return joined[:wanted]
