"""GGUF files: all metadata, and tensors read by rows as float32. Several files of a split model are read as one.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A length is believed only as far as the file
reaches; an array is decoded within bounds. Tensors are dequantized by the ``gguf`` package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest

MAX_PAIRS, MAX_TENSORS, MAX_ITEMS = 1 << 16, 1 << 16, 1 << 24
STRING, ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SPLIT = frozenset({"split.no", "split.count", "split.tensors.count"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A metadata value with its types; ``item_type`` is that of an array's items."""

    value: Any
    value_type: int
    item_type: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file. ``shape`` has rows first; ``kind`` is GGML's type number."""

    path: Path
    kind: int
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the first dimension."""
        return self.size_bytes // self.shape[0]


class GgufFiles:
    """The metadata of the first file, and the tensors of all.

    Raises:
        BadModelFile: a header lies, a tensor leaves its file, or parts are missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.pairs: dict[str, Pair] = {}
        self.tensors: dict[str, Stored] = {}
        for number, path in enumerate(sorted(paths, key=lambda path: path.name)):
            pairs, tensors = _read(path)
            if number == 0:
                self.pairs = {key: pair for key, pair in pairs.items() if key not in _SPLIT}
                count = pairs["split.count"].value if "split.count" in pairs else 1
                if isinstance(count, int) and count > 1 and count != len(paths):
                    raise BadModelFile(f"the model is split into {count} files, and {len(paths)} are here")
            for name, stored in tensors.items():
                if name in self.tensors:
                    raise BadModelFile(f"the tensor {name[:80]!r} comes twice", tensor=name[:80])
                self.tensors[name] = stored

    @classmethod
    def of(cls, files: Mapping[str, Path]) -> GgufFiles:
        """The language model among a model's files; a vision part beside it is left out."""
        names = [name for name in files if name.endswith(".gguf") and "mmproj" not in name.rpartition("/")[2].lower()]
        return cls([files[name] for name in sorted(names)])

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or ``default``."""
        return self.pairs[key].value if key in self.pairs else default

    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def stored(self, name: str) -> Stored:
        """Raises ``BadModelFile`` when there is no such tensor."""
        if name not in self.tensors:
            raise BadModelFile(f"the tensor {name[:80]!r} is missing", tensor=name[:80])
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored(name).shape

    def raw_rows(self, name: str, begin: int, end: int) -> Any:
        """Rows as bytes, one row of the array for each."""
        import numpy

        stored = self.stored(name)
        count = (end - begin) * stored.row_bytes
        found = numpy.fromfile(stored.path, dtype="u1", count=count, offset=stored.offset + begin * stored.row_bytes)
        if found.size != count:
            raise BadModelFile(f"the file ends inside the tensor {name[:80]!r}", tensor=name[:80])
        return found.reshape(end - begin, stored.row_bytes)

    def rows(self, name: str, begin: int, end: int) -> Any:
        import gguf

        stored = self.stored(name)
        kind = gguf.GGMLQuantizationType(stored.kind)
        raw = self.raw_rows(name, begin, end)
        if len(stored.shape) == 1:
            raw = raw.reshape(-1)
        try:
            return gguf.quants.dequantize(raw, kind).reshape(end - begin, *stored.shape[1:])
        except NotImplementedError as error:
            raise UnsupportedRequest(f"weights of the kind {kind.name} cannot be read back into floats") from error


def _read(path: Path) -> tuple[dict[str, Pair], dict[str, Stored]]:
    with path.open("rb") as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise BadModelFile("the file is empty") from error
        with content:
            return _Header(content, path).read()


class _Header:
    """A position in a mapped file; every read is checked against its end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content, self._path, self._at = content, path, 0

    def read(self) -> tuple[dict[str, Pair], dict[str, Stored]]:
        magic, version = self._bytes(4), self._scalar("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise BadModelFile("not a GGUF file of version 2 or 3")
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        if tensor_count > MAX_TENSORS or pair_count > MAX_PAIRS:
            raise BadModelFile("the file announces an absurd number of tensors or metadata")
        pairs = dict(self._pair() for _ in range(pair_count))
        entries = [self._entry() for _ in range(tensor_count)]
        alignment = pairs["general.alignment"].value if "general.alignment" in pairs else 32
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise BadModelFile("the alignment is absurd")
        data_at = -(-self._at // alignment) * alignment
        return pairs, dict(self._placed(entries, data_at))

    def _bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self._content) - self._at:
            raise BadModelFile("the file ends inside its header")
        self._at += count
        return self._content[self._at - count : self._at]

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8", "replace")

    def _pair(self) -> tuple[str, Pair]:
        key, kind = self._string(), self._scalar("I")
        if kind != ARRAY:
            return key, Pair(self._value(kind), kind)
        item, count = self._scalar("I"), self._scalar("Q")
        if count > MAX_ITEMS:
            raise BadModelFile(f"the list {key[:80]!r} is absurdly long")
        if item == STRING:
            return key, Pair([self._string() for _ in range(count)], ARRAY, item)
        if item not in _SCALARS:
            raise BadModelFile(f"the list {key[:80]!r} has items of an unknown type")
        code = _SCALARS[item]
        raw = self._bytes(count * struct.calcsize("<" + code))
        return key, Pair(list(struct.unpack(f"<{count}{code}", raw)), ARRAY, item)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind not in _SCALARS:
            raise BadModelFile("a metadata value is of an unknown type")
        return self._scalar(_SCALARS[kind])

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self._string(), self._scalar("I")
        if not 1 <= rank <= 4:
            raise BadModelFile(f"the tensor {name[:80]!r} has {rank} dimensions", tensor=name[:80])
        shape = tuple(self._scalar("Q") for _ in range(rank))[::-1]
        if not all(0 < n < 1 << 40 for n in shape):
            raise BadModelFile(f"the tensor {name[:80]!r} has an impossible shape", tensor=name[:80])
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _placed(
        self, entries: Sequence[tuple[str, tuple[int, ...], int, int]], data_at: int
    ) -> Iterator[tuple[str, Stored]]:
        for name, shape, kind, offset in entries:
            size = size_bytes(shape, kind, name)
            if offset > len(self._content) or data_at + offset + size > len(self._content):
                raise BadModelFile(f"the tensor {name[:80]!r} lies outside the file", tensor=name[:80])
            yield name, Stored(self._path, kind, shape, data_at + offset, size)


def size_bytes(shape: tuple[int, ...], kind: int, name: str = "") -> int:
    """Bytes of a tensor of GGML's type ``kind``.

    Raises:
        UnsupportedRequest: a type this library does not know.
        BadModelFile: rows that are not whole blocks.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        elements, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise UnsupportedRequest(f"the tensor {name[:80]!r} is of the unknown type {kind}") from error
    if shape[-1] % elements:
        raise BadModelFile(f"the rows of {name[:80]!r} are not whole blocks", tensor=name[:80])
    return int(math.prod(shape) // elements * width)
