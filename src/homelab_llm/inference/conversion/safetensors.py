"""safetensors files: tensors read by rows as float32, and a file written tensor by tensor.

Layout: https://github.com/huggingface/safetensors. The header is believed only as far as the file reaches.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.documents import parse_object

MAX_HEADER_BYTES = 100 << 20
_FLOATS = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}
_OTHERS = {"U32": ("<u4", 4), "I32": ("<i4", 4), "U8": ("<u1", 1), "I64": ("<i8", 8)}


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor and where it lies; ``offset`` counts from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFiles:
    """The tensors of all ``.safetensors`` files of a model.

    Raises:
        BadModelFile: a header lies, a tensor leaves its file or comes twice, or there is no file at all.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._placed: dict[str, Placed] = {}
        shards = {name: path for name, path in files.items() if name.endswith(".safetensors")}
        if not shards:
            raise BadModelFile("the model has no weights in safetensors format")
        for name, path in sorted(shards.items()):
            for tensor, placed in read_header(path, name).items():
                if tensor in self._placed:
                    raise BadModelFile(f"the tensor {tensor[:80]!r} comes twice", tensor=tensor[:80])
                self._placed[tensor] = placed

    def names(self) -> frozenset[str]:
        return frozenset(self._placed)

    def placed(self, name: str) -> Placed:
        """Raises ``BadModelFile`` when there is no such tensor."""
        if name not in self._placed:
            raise BadModelFile(f"the tensor {name[:80]!r} is missing", tensor=name[:80])
        return self._placed[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.placed(name).shape

    def rows(self, name: str, begin: int, end: int) -> Any:
        placed = self.placed(name)
        if placed.dtype not in _FLOATS:
            raise UnsupportedRequest(
                f"the tensor {name[:80]!r} is of type {placed.dtype}; F32, F16 and BF16 are converted",
                hint="start from the model's files before they were quantized",
            )
        raw = self.stored(name, begin, end)
        if placed.dtype == "BF16":
            return (raw.astype("<u4") << 16).view("<f4")
        return raw.astype("<f4", copy=False)

    def stored(self, name: str, begin: int, end: int) -> Any:
        """Rows as they lie in the file; BF16 as 16-bit numbers."""
        import numpy

        placed = self.placed(name)
        kind, width = (_FLOATS | _OTHERS)[placed.dtype]
        row = math.prod(placed.shape[1:])
        count = (end - begin) * row
        found = numpy.fromfile(placed.path, dtype=kind, count=count, offset=placed.offset + begin * row * width)
        if found.size != count:
            raise BadModelFile(f"the file ends inside the tensor {name[:80]!r}", tensor=name[:80])
        return found.reshape(end - begin, *placed.shape[1:])


def read_header(path: Path, name: str) -> dict[str, Placed]:
    """The tensors of one file.

    Raises:
        BadModelFile: the header lies.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BadModelFile(f"{name[:80]} lies about the length of its header", file=name[:80])
        header = parse_object(stream.read(length), f"the header of {name[:80]}")
    header.pop("__metadata__", None)
    return {tensor: _placed(path, tensor, entry, 8 + length, size) for tensor, entry in header.items()}


def _placed(path: Path, tensor: str, entry: Any, data_at: int, size: int) -> Placed:
    shown = tensor[:80]
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise BadModelFile(f"the entry of tensor {shown!r} is not dtype, shape and data_offsets", tensor=shown)
    if dtype not in _FLOATS and dtype not in _OTHERS:
        raise UnsupportedRequest(f"the tensor {shown!r} is of type {dtype[:20]}; F32, F16 and BF16 are converted")
    if len(shape) > 8 or not all(type(n) is int and 0 < n < 1 << 40 for n in shape):
        raise BadModelFile(f"the tensor {shown!r} has an impossible shape", tensor=shown)
    needed = math.prod(shape) * (_FLOATS | _OTHERS)[dtype][1]
    if not 0 <= begin <= end <= size - data_at or end - begin != needed:
        raise BadModelFile(f"the file lies about where the tensor {shown!r} is", tensor=shown)
    return Placed(path, dtype, tuple(shape), data_at + begin)


class SafetensorsWriter:
    """One file, written in the order announced: ``header`` once, then the bytes of each tensor.

    Args:
        tensors: name → (dtype, shape), in the order in which their bytes will come.
    """

    def __init__(self, stream: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._stream = stream
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * _FLOATS[dtype][1]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream.write(len(text).to_bytes(8, "little") + text)
        self._end = 8 + len(text) + at

    def write(self, blocks: Iterable[Any], dtype: str) -> None:
        """The next tensor, from blocks of float32."""
        for block in blocks:
            self._stream.write(as_stored(block, dtype).tobytes())

    def finish(self) -> None:
        """Make the file durable.

        Raises:
            BadModelFile: other bytes came than were announced.
        """
        if self._stream.tell() != self._end:
            raise BadModelFile("the tensors do not have the sizes their shapes ask for")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def as_stored(block: Any, dtype: str) -> Any:
    """Floats as the file keeps them; BF16 is rounded to even.

    Raises:
        BadModelFile: a value that 16 bits cannot hold.
    """
    import numpy

    if dtype == "BF16":
        bits = numpy.ascontiguousarray(block, dtype="<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    with numpy.errstate(over="ignore"):
        out = block.astype(_FLOATS[dtype][0])
    if dtype == "F16" and not numpy.isfinite(out).all():
        raise BadModelFile("a tensor holds values that 16-bit floats cannot", hint="choose bf16 or f32")
    return out
