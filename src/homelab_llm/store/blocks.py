"""Blocks: which bytes of an unfinished blob are there. Of each block of 1 MiB, so many from its start.

Pure. On disk (``<hex of key>.map``) it is an array of 32-bit numbers, one for each block: the count, and a bit that
says whether these bytes were fsynced. A number is written after its bytes, so a killed process leaves a map that is
exact; after a power cut only blocks with the bit are believed.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

BLOCK_BYTES = 1 << 20
ENTRY_BYTES = 4
_DURABLE = 1 << 31
_COUNT = _DURABLE - 1


class Blocks:
    """What is there. Not for several threads at once; see ``part_file.py``."""

    def __init__(self) -> None:
        self._entries: array[int] = array("I")
        self._whole_blocks = 0  # from the start, without a gap
        self.there_bytes = 0

    @classmethod
    def parse(cls, content: bytes, *, size_bytes: int, durable_only: bool) -> Blocks:
        """Read a map; nothing beyond ``size_bytes`` is believed, and with ``durable_only`` nothing but that."""
        blocks = cls()
        entries = array("I", content[: len(content) // ENTRY_BYTES * ENTRY_BYTES])
        if sys.byteorder == "big":
            entries.byteswap()
        for index, entry in enumerate(entries):
            count = entry & _COUNT
            believed = count <= BLOCK_BYTES and index * BLOCK_BYTES + count <= size_bytes
            believed = believed and (not durable_only or bool(entry & _DURABLE))
            blocks._entries.append(entry if believed else 0)
        blocks.there_bytes = sum(entry & _COUNT for entry in blocks._entries)
        blocks._advance()
        return blocks

    def add(self, offset: int, count: int) -> range:
        """Bytes from ``offset`` on are there; within a block they follow those that were. The blocks that changed.

        Raises:
            ValueError: they do not follow, which would leave a hole that nobody notices.
        """
        first, last = offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES
        if count <= 0:
            return range(0)
        if last >= len(self._entries):
            self._entries.extend([0] * (last + 1 - len(self._entries)))
        if offset - first * BLOCK_BYTES > self._entries[first] & _COUNT:
            raise ValueError(f"the bytes at {offset} do not follow those that are there")
        for index in range(first, last + 1):
            there = min(BLOCK_BYTES, offset + count - index * BLOCK_BYTES)
            before = self._entries[index] & _COUNT
            if there > before:
                self._entries[index] = there
                self.there_bytes += there - before
        self._advance()
        return range(first, last + 1)

    @property
    def frontier(self) -> int:
        """How many bytes are there from the start without a gap."""
        partly = self._entries[self._whole_blocks] & _COUNT if self._whole_blocks < len(self._entries) else 0
        return self._whole_blocks * BLOCK_BYTES + partly

    def gaps(self, size_bytes: int) -> list[tuple[int, int]]:
        """What is missing of ``size_bytes``, as (start, stop), in order."""
        found: list[tuple[int, int]] = []
        for index in range(self._whole_blocks, -(-size_bytes // BLOCK_BYTES)):
            stop = min(size_bytes, (index + 1) * BLOCK_BYTES)
            there = self._entries[index] & _COUNT if index < len(self._entries) else 0
            start = index * BLOCK_BYTES + there
            if start >= stop:
                continue
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return found

    def not_durable(self) -> list[tuple[int, int]]:
        """The blocks that no fsync has covered, as they are now."""
        return [(index, entry) for index, entry in enumerate(self._entries) if entry and not entry & _DURABLE]

    def now_durable(self, seen: Iterable[tuple[int, int]]) -> list[int]:
        """An fsync covered what ``not_durable`` had said; blocks that grew meanwhile stay as they are."""
        changed = [index for index, entry in seen if self._entries[index] == entry]
        for index in changed:
            self._entries[index] |= _DURABLE
        return changed

    def encode(self, blocks: range | None = None) -> bytes:
        """The map of these blocks, or the whole, as it is on disk."""
        chosen = self._entries[blocks.start : blocks.stop] if blocks is not None else array("I", self._entries)
        if sys.byteorder == "big":
            chosen.byteswap()
        return chosen.tobytes()

    def _advance(self) -> None:
        while self._whole_blocks < len(self._entries) and self._entries[self._whole_blocks] & _COUNT == BLOCK_BYTES:
            self._whole_blocks += 1
