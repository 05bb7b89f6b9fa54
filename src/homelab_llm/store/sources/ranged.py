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
        self.until = 0  # where the reads that come now end; requests do not ask for more
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
        """Read on from the open reply, and from the next one when it ends before ``wanted`` bytes."""
        parts: list[bytes] = []
        have = 0
        while have < wanted:
            position = self._at + have
            fresh = self._stream_at != position
            if fresh:
                self._open(position)
            piece = self._left or next(self._chunks, b"")
            if not piece:
                if fresh:
                    raise SourceUnavailable("the package index sent nothing for a part of the file")
                self._stream_at = -1
                continue
            piece, self._left = piece[: wanted - have], piece[wanted - have :]
            parts.append(piece)
            have += len(piece)
            self._stream_at += len(piece)
        return b"".join(parts)

    def _open(self, position: int) -> None:
        self._stream.close()
        stop = self.until if self.until > position else self.length
        body = self._stream.enter_context(self._client.stream(self._url, start=position, stop=stop))
        if body.start != position:
            raise SourceUnavailable("the package index does not serve parts of files")
        self._chunks, self._left, self._stream_at = body.chunks, b"", position
