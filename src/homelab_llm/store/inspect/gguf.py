"""GGUF: the header of a file, read within bounds and held against the file's real length. No tensor is loaded.

What is refused is what llama.cpp refuses too (other versions, nested arrays, tensors that do not follow one
another), and what it would only notice late: a file that is longer than its tensors, or whose data is zeros.
Layout: magic, version, counts, key-value pairs, tensor infos, padding, tensor data
(github.com/ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from homelab_llm.core.errors import BadModelFile
from homelab_llm.store.inspect.cursor import Cursor
from homelab_llm.store.inspect.gguf_types import ARRAY, SCALARS, STRING, TENSOR_TYPES
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.inspect.zeroed import Extent, refuse_zeroed

Value = int | float | bool | str | tuple[int | float | bool, ...]

MAX_PAIRS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 1_024
MAX_NAME_BYTES = 256
MAX_STRINGS = 2_000_000  # over all arrays: more than twice the largest vocabulary with its merges
MAX_KEPT_ITEMS = 16_384
MAX_KEPT_BYTES = 32 << 20  # over all kept values, an array item counted as 32 bytes
MAX_TEXT_BYTES = 4 << 20
MAX_SHORT_TEXT_BYTES = 4 << 10
MAX_ALIGNMENT = 1 << 20

_HEAD = struct.Struct("<4sIQQ")
_SCALAR_CODES = {kind: struct.Struct("<" + code) for kind, (code, _) in SCALARS.items()}
_U32 = struct.Struct("<I")
_LONG_TEXTS = frozenset({"tokenizer.chat_template"})
_KEPT = frozenset(
    {
        "general.alignment",
        "general.architecture",
        "general.file_type",
        "general.license",
        "general.type",
        "split.count",
        "split.no",
        "split.tensors.count",
        "tokenizer.chat_template",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
    }
)
_VOCABULARY = "tokenizer.ggml.tokens"
_KEPT_OF_ARCHITECTURE = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "full_attention_interval",
        "pooling_type",
        "vocab_size",
    }
)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor info. ``offset`` counts from the start of the data, ``size_bytes`` has no padding."""

    name: str
    kind: int
    elements: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    ``values`` holds the keys the store needs, not all of them; ``lengths`` the length of every array; ``tokens`` the
    ids of those tokens of the vocabulary that were asked for.
    """

    values: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[GgufTensor, ...]
    size_bytes: int
    tokens: Mapping[str, int] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """A string value, or empty when there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str, *, limit: int) -> int:
        """A whole number, 0 when missing.

        Raises:
            BadModelFile: another type, negative, or beyond ``limit``.
        """
        value = self.values.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise BadModelFile(f"{key} is not a number from 0 to {limit}", key=key)
        return value


def read_gguf(path: Path, tokens: frozenset[str] = frozenset()) -> GgufHeader:
    """Read and check the header of the GGUF file at ``path``; blocks for milliseconds.

    Args:
        tokens: what to look for in the vocabulary; makes a large one take some tens of milliseconds.

    Raises:
        BadModelFile: the file contradicts itself, is truncated, extended or zeroed.
        NotRegularFile: see ``open_regular``.
    """
    with open_regular(path) as stream:
        cursor = Cursor(stream)
        tensor_count, pair_count = _counts(cursor)
        pairs = _Pairs(cursor, frozenset(token.encode() for token in tokens))
        values, lengths = pairs.read(pair_count)
        tensors = _tensors(cursor, tensor_count)
        extents = _extents(tensors, cursor, _alignment(values))
        refuse_zeroed(stream, extents)
    return GgufHeader(values, lengths, tensors, cursor.length, pairs.tokens)


def _counts(cursor: Cursor) -> tuple[int, int]:
    if cursor.length < _HEAD.size:
        raise BadModelFile("too short to be a GGUF file", size_bytes=cursor.length)
    magic, version, tensors, pairs = _HEAD.unpack(cursor.take(_HEAD.size))
    if magic != b"GGUF":
        raise BadModelFile("not a GGUF file: the first four bytes are not GGUF")
    if version in (2 << 24, 3 << 24):
        raise BadModelFile("a big-endian GGUF file; only little-endian ones can be run here")
    if version not in (2, 3):
        raise BadModelFile(f"GGUF version {version} is not known; 2 and 3 are", version=version)
    if pairs > MAX_PAIRS or tensors > MAX_TENSORS:
        raise BadModelFile(f"the header announces {pairs} keys and {tensors} tensors", pairs=pairs, tensors=tensors)
    return tensors, pairs


class _Pairs:
    """Reads the key-value pairs; keeps what is needed and passes over the rest."""

    def __init__(self, cursor: Cursor, wanted: frozenset[bytes]) -> None:
        self._cursor = cursor
        self._wanted = wanted
        self.tokens: dict[str, int] = {}
        self._strings_left = MAX_STRINGS
        self._kept_left_bytes = MAX_KEPT_BYTES
        self._values: dict[str, Value] = {}
        self._lengths: dict[str, int] = {}

    def read(self, count: int) -> tuple[dict[str, Value], dict[str, int]]:
        """All pairs: the kept values, and the lengths of all arrays."""
        seen: set[str] = set()
        for _ in range(count):
            key = _text(self._cursor, self._cursor.u64(), MAX_KEY_BYTES, "a key")
            if key in seen:
                raise BadModelFile(f"the key {key[:80]!r} stands there twice", key=key[:80])
            seen.add(key)
            self._pair(key, _U32.unpack(self._cursor.take(4))[0])
        return self._values, self._lengths

    def _pair(self, key: str, kind: int) -> None:
        kept = key in _KEPT or key.partition(".")[2] in _KEPT_OF_ARCHITECTURE
        if kind in SCALARS:
            value = self._cursor.unpack(_SCALAR_CODES[kind])[0]
            if kept:
                self._values[key] = value
        elif kind == STRING:
            self._string(key, kept)
        elif kind == ARRAY:
            self._array(key, kept)
        else:
            raise BadModelFile(f"the key {key[:80]!r} has the unknown type {kind}", key=key[:80])

    def _string(self, key: str, kept: bool) -> None:
        size = self._cursor.u64()
        limit = MAX_TEXT_BYTES if key in _LONG_TEXTS else MAX_SHORT_TEXT_BYTES
        if not kept or (size > limit and key not in _LONG_TEXTS):
            self._cursor.skip(size)
        else:
            self._keep(size)
            self._values[key] = _text(self._cursor, size, limit, key[:80])

    def _keep(self, size_bytes: int) -> None:
        self._kept_left_bytes -= size_bytes
        if self._kept_left_bytes < 0:
            raise BadModelFile("the header holds more than a model needs", limit_bytes=MAX_KEPT_BYTES)

    def _array(self, key: str, kept: bool) -> None:
        kind, count = _U32.unpack(self._cursor.take(4))[0], self._cursor.u64()
        self._lengths[key] = count
        if kind == STRING:
            self._strings_left -= count
            if self._strings_left < 0:
                raise BadModelFile(f"the array {key[:80]!r} announces {count} strings", key=key[:80])
            if key == _VOCABULARY and self._wanted:
                found = self._cursor.find_strings(count, self._wanted)
                self.tokens = {text.decode(): place for text, place in found.items()}
            else:
                self._cursor.skip_strings(count)
        elif kind in SCALARS:
            code, width = SCALARS[kind]
            if kept and count <= MAX_KEPT_ITEMS:
                self._keep(32 * count)
                self._values[key] = struct.unpack(f"<{count}{code}", self._cursor.take(count * width))
            else:
                self._cursor.skip(count * width)
        else:
            what = "an array in an array" if kind == ARRAY else f"items of the unknown type {kind}"
            raise BadModelFile(f"the array {key[:80]!r} holds {what}", key=key[:80])


def _text(cursor: Cursor, size: int, limit: int, what: str) -> str:
    if size > limit:
        raise BadModelFile(f"{what} announces {size} bytes; the limit is {limit}", needed_bytes=size)
    try:
        return cursor.take(size).decode()
    except UnicodeDecodeError as error:
        raise BadModelFile(f"{what} is not UTF-8") from error


def _tensors(cursor: Cursor, count: int) -> tuple[GgufTensor, ...]:
    tensors, names = [], set()
    for _ in range(count):
        tensor = _tensor(cursor)
        if tensor.name in names:
            raise BadModelFile(f"the tensor {tensor.name[:80]!r} stands there twice", tensor=tensor.name[:80])
        names.add(tensor.name)
        tensors.append(tensor)
    return tuple(tensors)


def _tensor(cursor: Cursor) -> GgufTensor:
    name = _text(cursor, cursor.u64(), MAX_NAME_BYTES, "a tensor name")
    dimensions = _U32.unpack(cursor.take(4))[0]
    if not 0 <= dimensions <= 4:
        raise BadModelFile(f"the tensor {name[:80]!r} has {dimensions} dimensions", tensor=name[:80])
    shape = [cursor.u64() for _ in range(dimensions)]
    kind = _U32.unpack(cursor.take(4))[0]
    offset = cursor.u64()
    if kind not in TENSOR_TYPES:
        raise BadModelFile(
            f"the tensor {name[:80]!r} has the unknown type {kind}",
            hint="the file may be older or newer than this version understands",
            tensor=name[:80],
        )
    _, block_elements, block_bytes = TENSOR_TYPES[kind]
    elements = math.prod(shape)
    if elements == 0 or (shape[0] if shape else 1) % block_elements:
        raise BadModelFile(f"the tensor {name[:80]!r} has an impossible shape", tensor=name[:80])
    return GgufTensor(name, kind, elements, offset, elements // block_elements * block_bytes)


def _alignment(values: Mapping[str, Value]) -> int:
    value = values.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise BadModelFile("general.alignment is not a power of two", key="general.alignment")
    return value


def _extents(tensors: tuple[GgufTensor, ...], cursor: Cursor, alignment: int) -> list[Extent]:
    """Where each tensor lies in the file; they must follow one another and fill it to its end."""
    start = -(-cursor.position // alignment) * alignment
    expected, extents = 0, []
    end = start if tensors else cursor.position
    for tensor in tensors:
        if tensor.offset != expected:
            raise BadModelFile(f"the tensor {tensor.name[:80]!r} does not follow the one before it", tensor=tensor.name)
        end = start + tensor.offset + tensor.size_bytes
        expected = -(-(tensor.offset + tensor.size_bytes) // alignment) * alignment
        extents.append((tensor.name, start + tensor.offset, end))
    if end > cursor.length:
        raise BadModelFile(
            f"the file is truncated: its tensors end at byte {end}, the file at {cursor.length}",
            hint="fetch or copy the file again",
            needed_bytes=end,
            size_bytes=cursor.length,
        )
    if cursor.length > max(start + expected, end):
        raise BadModelFile(
            f"the file is extended: its tensors end at byte {end}, the file at {cursor.length}",
            hint="fetch or copy the file again",
            needed_bytes=end,
            size_bytes=cursor.length,
        )
    return extents
