"""Zeroed tensor data: what a preallocated download leaves where bytes never arrived.

A sample, not a proof: the SHA-256 of the blob is the proof where one is known. A tensor is called zeroed
when its last eighth holds nothing but zero bytes. A whole eighth, because the embedding rows of unused
tokens at the end of a padded vocabulary may truly be zero; biases are passed over, because trained models
have zero ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO

from homelab_llm.core.errors import BadModelFile

_PROBE_BYTES = 512
_SMALLEST_BYTES = 64 << 10  # smaller tensors in mid-file may be zero in good models (token types of RoBERTa)
_SMALLEST_LAST_BYTES = 256
_BLOCK_BYTES = 1 << 20

Extent = tuple[str, int, int]  # tensor name, first byte, byte after the last (file offsets)


def refuse_zeroed(stream: BinaryIO, extents: Iterable[Extent]) -> None:
    """Look at the end of every tensor; extents lie inside the file. Reads a few hundred bytes of most tensors.

    Raises:
        BadModelFile: a tensor is zeroed.
    """
    ordered = sorted(extents, key=lambda extent: extent[2], reverse=True)
    smallest = _SMALLEST_LAST_BYTES
    for name, begin, end in ordered:
        if end - begin < smallest or name.endswith(("bias", "biases")):
            continue
        smallest = _SMALLEST_BYTES
        if _all_zero(stream, max(begin, end - _PROBE_BYTES), end) and _all_zero(stream, end - (end - begin) // 8, end):
            raise BadModelFile(
                f"the data of tensor {name[:80]!r} is zeros: the file was not written completely",
                hint="fetch or copy the file again",
                tensor=name[:80],
            )


def _all_zero(stream: BinaryIO, begin: int, end: int) -> bool:
    while begin < end:
        block = os.pread(stream.fileno(), min(_BLOCK_BYTES, end - begin), begin)
        if not block or block.count(0) != len(block):
            return False
        begin += len(block)
    return True
