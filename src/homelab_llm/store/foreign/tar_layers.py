"""Tar layers: which files they hold, and their bytes, as streams. Nothing is ever unpacked to a path of its own choice.

Only plain files and folders may be inside; a link, a device, a sparse file, a name that leads elsewhere or a layer
that swells beyond sense refuses the whole. Names and sizes are all checked before the first byte is kept.
Source: POSIX pax; GNU tar, ``Basic Tar Format``.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from homelab_llm.core.errors import BadManifest
from homelab_llm.store.foreign.outline import Compression

MAX_ENTRIES = 10_000
MAX_RATIO = 100
_SPARE_BYTES = 16 << 20  # small layers of text may pack well
_BLOCK = 512
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 64 << 10
_MAX_FILE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a layer: its name as it stands there without ``./``, its size, and where it begins (unpacked)."""

    name: str
    size_bytes: int
    offset: int


def list_members(path: Path, compression: Compression, tick: Callable[[], None] = lambda: None) -> list[Member]:
    """All files of a layer; a compressed one is read through.

    Args:
        tick: called now and then; what it raises ends the reading.

    Raises:
        BadManifest: see the module.
    """
    found = []
    for member, _ in _walk(path, compression, tick):
        found.append(member)
        tick()
    return found


def read_members(
    path: Path, compression: Compression, wanted: Container[str]
) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """The wanted files in the layer's order, with their bytes; each is to be read before the next is asked for.

    Raises:
        BadManifest: see the module; also while reading.
    """
    for member, chunks in _walk(path, compression):
        if member.name in wanted:
            yield member, chunks


def _walk(
    path: Path, compression: Compression, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[Member, Iterator[bytes]]]:
    with path.open("rb") as raw:
        packed_bytes = path.stat().st_size
        plain: BinaryIO = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if compression else raw
        stream = _Bounded(plain, packed_bytes, tick, seekable=not compression)
        yield from _members(stream)


class _Bounded:
    """Reads exactly, counts, and stops when more came out than a model can have shrunk to."""

    def __init__(self, stream: BinaryIO, packed_bytes: int, tick: Callable[[], None], *, seekable: bool) -> None:
        self._stream, self._tick, self._seekable = stream, tick, seekable
        self._limit = packed_bytes if seekable else packed_bytes * MAX_RATIO + _SPARE_BYTES
        self._done = 0

    @property
    def at(self) -> int:
        """How many bytes came by."""
        return self._done

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer at the end; ``count`` is bounded by the caller."""
        try:
            found = self._stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise BadManifest("a layer cannot be unpacked: it is damaged") from error
        self._count(len(found))
        return found

    def skip(self, count: int) -> None:
        """Pass over so many bytes."""
        if self._seekable:
            self._count(count)
            self._stream.seek(count, 1)
            return
        while count > 0:
            found = len(self.read(min(count, _CHUNK_BYTES)))
            if not found:
                raise BadManifest("a layer ends inside a file")
            count -= found
            self._tick()

    def _count(self, count: int) -> None:
        self._done += count
        if self._done > self._limit:
            what = "it ends inside a file" if self._seekable else f"it swells to more than {MAX_RATIO} times its size"
            raise BadManifest(f"a layer cannot be unpacked: {what}")


def _members(stream: _Bounded) -> Iterator[tuple[Member, Iterator[bytes]]]:
    entries, pax, long_name = 0, dict[str, str](), ""
    while header := _header(stream):
        entries += 1
        if entries > 2 * MAX_ENTRIES:
            raise BadManifest(f"a layer holds more than {MAX_ENTRIES} files")
        kind, size = header[156:157], _number(header[124:136])
        if kind in b"xgL" and kind:
            text = _extra(stream, size)
            if kind == b"x":
                pax = _pax(text)
            elif kind == b"L":
                long_name = _decoded(text.rstrip(b"\0"))
            continue
        name = (pax.get("path") or long_name or _name(header)).removeprefix("./")
        size = _pax_size(pax, size)
        pax, long_name = {}, ""
        if kind == b"5":
            continue
        if kind not in {b"0", b"\0"} or name.endswith("/"):
            raise BadManifest(f"a layer holds something that is not a plain file: {_shown(name)}", file=_shown(name))
        file = _File(stream, size)
        yield Member(name, size, stream.at), file.chunks()
        file.finish()


class _File:
    """The bytes of one member; what is left unread is passed over."""

    def __init__(self, stream: _Bounded, size_bytes: int) -> None:
        self._stream, self._size, self._left = stream, size_bytes, size_bytes

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._stream.read(min(self._left, _CHUNK_BYTES))
            if not chunk:
                raise BadManifest("a layer ends inside a file")
            self._left -= len(chunk)
            yield chunk

    def finish(self) -> None:
        self._stream.skip(self._left + -self._size % _BLOCK)


def _header(stream: _Bounded) -> bytes:
    """The next header, or nothing at the end."""
    block = b""
    while len(block) < _BLOCK:
        more = stream.read(_BLOCK - len(block))
        if not more and not block:
            return b""
        if not more:
            raise BadManifest("a layer ends inside a header")
        block += more
    if block == bytes(_BLOCK):
        return b""
    told = _number(block[148:156])
    if sum(block[:148]) + 8 * 32 + sum(block[156:]) != told:
        raise BadManifest("a layer is not a tar archive, or damaged")
    return block


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        digits = field.strip(b" \0")
        if digits and not all(digit in b"01234567" for digit in digits):
            raise BadManifest("a layer is not a tar archive, or damaged")
        value = int(digits or b"0", 8)
    if value > _MAX_FILE_BYTES:
        raise BadManifest("a layer holds a file larger than any disk")
    return value


def _extra(stream: _Bounded, size: int) -> bytes:
    """The content of an extended header."""
    if size > _MAX_HEADER_BYTES:
        raise BadManifest("a layer has a header larger than any name")
    found = b""
    while len(found) < size:
        more = stream.read(size - len(found))
        if not more:
            raise BadManifest("a layer ends inside a header")
        found += more
    stream.skip(-size % _BLOCK)
    return found


def _pax(text: bytes) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE\\n``."""
    out: dict[str, str] = {}
    while text:
        digits, _, _ = text.partition(b" ")
        if not digits.isdigit() or len(digits) > 6 or not 0 < int(digits) <= len(text):
            raise BadManifest("a layer has a header that cannot be read")
        record, text = text[len(digits) + 1 : int(digits) - 1], text[int(digits) :]
        key, _, value = record.partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise BadManifest("a layer holds a sparse file, which is not unpacked")
        if key in {b"path", b"size"}:
            out[key.decode()] = _decoded(value)
    return out


def _pax_size(pax: dict[str, str], size: int) -> int:
    told = pax.get("size")
    if told is None:
        return size
    if not (told.isascii() and told.isdigit()) or len(told) > 16 or int(told) > _MAX_FILE_BYTES:
        raise BadManifest("a layer has a header that cannot be read")
    return int(told)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _decoded(prefix + b"/" + name if prefix else name)


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise BadManifest("a layer holds a file whose name is not UTF-8") from error


def _shown(name: str) -> str:
    return name[:80].encode("unicode_escape").decode("ascii")
