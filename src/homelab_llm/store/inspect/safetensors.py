"""safetensors: the header of a file, held against its real length. No tensor is loaded.

Layout and rules: github.com/huggingface/safetensors, README and ``tensor.rs``: a 64-bit length, a JSON object,
then data that the tensors tile exactly, without holes and without overlap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile
from homelab_llm.store.inspect.documents import parse_object
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.inspect.zeroed import refuse_zeroed

MAX_HEADER_BYTES = 25_000_000  # what the Hugging Face client accepts; the format itself allows 100 MB
MAX_RANK = 64

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor; ``begin`` and ``end`` count from the start of the data."""

    name: str
    dtype: str
    elements: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What one safetensors file holds."""

    tensors: tuple[SafeTensor, ...]
    metadata: Mapping[str, str]
    size_bytes: int


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Read and check the header of the file at ``path``; blocks for milliseconds.

    Raises:
        BadModelFile: the header lies, or the data is truncated, extended or zeroed.
        NotRegularFile: see ``open_regular``.
    """
    with open_regular(path) as stream:
        length = os.fstat(stream.fileno()).st_size
        size = int.from_bytes(stream.read(8), "little")
        if length < 10:
            raise BadModelFile("too short to be a safetensors file", size_bytes=length)
        if size > MAX_HEADER_BYTES or size > length - 8:
            raise BadModelFile(f"the header announces {size} bytes", needed_bytes=size, size_bytes=length)
        content = stream.read(size)
        if not content.startswith(b"{"):
            raise BadModelFile("not a safetensors file: the header does not begin with {")
        header = parse_object(content, "the safetensors header")
        metadata = _metadata(header.pop("__metadata__", {}))
        tensors = tuple(_tensor(name, entry) for name, entry in header.items())
        _refuse_holes(tensors, length - 8 - size)
        refuse_zeroed(stream, [(t.name, 8 + size + t.begin, 8 + size + t.end) for t in tensors])
    return SafetensorsHeader(tensors, metadata, length)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadModelFile("__metadata__ is not an object of strings")
    return value


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _tensor(name: str, entry: Any) -> SafeTensor:
    shown = name[:80]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadModelFile(f"the entry of tensor {shown!r} is not dtype, shape and data_offsets", tensor=shown)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadModelFile(f"tensor {shown!r} has the unknown type {str(dtype)[:20]!r}", tensor=shown)
    if not _counts(shape, MAX_RANK) or not _counts(offsets, 2) or len(offsets) != 2:
        raise BadModelFile(f"tensor {shown!r} has an impossible shape or place", tensor=shown)
    elements = math.prod(shape)
    if (offsets[1] - offsets[0]) * 8 != elements * BITS[dtype]:
        raise BadModelFile(f"tensor {shown!r} does not have the size its shape asks for", tensor=shown)
    return SafeTensor(name, dtype, elements, offsets[0], offsets[1])


def _refuse_holes(tensors: tuple[SafeTensor, ...], data_bytes: int) -> None:
    expected = 0
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != expected:
            raise BadModelFile(f"there is a hole or an overlap before tensor {tensor.name[:80]!r}")
        expected = tensor.end
    if expected != data_bytes:
        what = "truncated" if expected > data_bytes else "extended"
        raise BadModelFile(
            f"the file is {what}: its tensors take {expected} bytes and there are {data_bytes}",
            hint="fetch or copy the file again",
            needed_bytes=expected,
            size_bytes=data_bytes,
        )
