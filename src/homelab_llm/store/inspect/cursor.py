"""A cursor over a file: every read and skip is checked against the real length first, memory is one window."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from homelab_llm.core.errors import BadModelFile

_WINDOW_BYTES = 1 << 18
_U64 = struct.Struct("<Q")


class Cursor:
    """Reads little-endian numbers and short byte strings forward from the start of ``stream``.

    Raises:
        BadModelFile: from every method, when the file ends before what it announces.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.length = os.fstat(stream.fileno()).st_size
        self._window = b""
        self._start = 0  # file offset of the window
        self._at = 0  # position in the window

    @property
    def position(self) -> int:
        """The file offset of the next byte."""
        return self._start + self._at

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; the caller has bounded ``count``."""
        if count > len(self._window) - self._at:
            self._refill(count)
        at = self._at
        self._at = at + count
        return self._window[at : at + count]

    def unpack(self, code: struct.Struct) -> tuple[int | float | bool, ...]:
        """The next fields of a compiled little-endian struct."""
        return code.unpack(self.take(code.size))

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes without reading them."""
        if count > self.length - self.position:
            raise BadModelFile("the file ends inside its header", position=self.position, needed_bytes=count)
        if count <= len(self._window) - self._at:
            self._at += count
        else:
            self._start, self._window, self._at = self.position + count, b"", 0

    def skip_strings(self, count: int) -> None:
        """Pass over ``count`` strings, each a 64-bit length and its bytes; a vocabulary takes milliseconds."""
        unpack = _U64.unpack_from
        while count:
            if len(self._window) - self._at < 8:
                self._refill(8)
            window, at, last = self._window, self._at, len(self._window) - 8
            while count and at <= last:
                size = unpack(window, at)[0]
                if at + 8 + size > len(window):
                    break
                at += 8 + size
                count -= 1
            else:
                self._at = at
                continue
            self._at = at + 8  # the string that reaches beyond the window
            self.skip(size)
            count -= 1

    def find_strings(self, count: int, wanted: frozenset[bytes]) -> dict[bytes, int]:
        """As ``skip_strings``; which of the strings are ``wanted``, and the place of each in the array."""
        found: dict[bytes, int] = {}
        longest = max(map(len, wanted), default=0)
        for place in range(count):
            size = self.u64()
            if size > longest:
                self.skip(size)
            elif (text := self.take(size)) in wanted:
                found[text] = place
        return found

    def _refill(self, count: int) -> None:
        position = self.position
        if count > self.length - position:
            raise BadModelFile("the file ends inside its header", position=position, needed_bytes=count)
        self._stream.seek(position)
        self._window = self._stream.read(max(_WINDOW_BYTES, count))
        self._start, self._at = position, 0
        if len(self._window) < count:
            raise BadModelFile("the file became shorter while it was read", position=position)
