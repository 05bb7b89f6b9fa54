"""Files of this machine by the same way as all others: ``file:PATH`` is a GGUF file, a folder, or an OCI layout.

They are copied and hashed; ``mlxctl import`` clones or links instead, where the file system can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import InvalidInput, InvalidName, NotRegularFile, SourceNotFound
from homelab_llm.core.names import repository_of
from homelab_llm.store.candidates import choose_files
from homelab_llm.store.choice import ANYTHING, Wanted
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.references import parse_file
from homelab_llm.store.sources.artifacts import look_up, remote_model
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel
from homelab_llm.store.sources.layouts import OciLayout, open_layout


class FileSource:
    """Files below a path. ``folder`` is where relative paths begin, ``home`` what ``~`` means."""

    parallel = True

    def __init__(self, folder: Path, home: Path, wanted: Wanted = ANYTHING) -> None:
        self._folder, self._home, self._wanted = folder, home, wanted
        self._layout: OciLayout | None = None

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; folders are listed, nothing is copied yet."""
        wanted = parse_file(reference)
        path = self._path(wanted.path)
        self._layout = open_layout(path)
        if self._layout is not None:
            return self._of_layout(self._layout, path, wanted.item)
        if wanted.item:
            path /= _inside(wanted.item)
        candidates = choose_files(path)
        check_file_names(candidate.name for candidate in candidates)
        files = tuple(
            RemoteFile(found.name, str(found.path), found.size_bytes, validator=_validator(found.path.stat()))
            for found in candidates
        )
        return RemoteModel(
            source=f"file:{path}",
            repository=_named(path.stem if path.suffix.lower() == ".gguf" else path.name),
            files=files,
            tag="" if files[0].path.endswith(".gguf") else "latest",
            origin=f"file:{path.name}",
        )

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:
        """See ``Source``."""
        with self._opened(file) as (stream, offset, size_bytes):
            stream.seek(offset + start)
            end = size_bytes if stop is None else min(stop, size_bytes)
            validator = "" if self._layout else _validator(os.fstat(stream.fileno()))
            yield Opened(start, validator, _chunks(stream, end - start))

    def close(self) -> None:
        """Nothing is held open."""

    @contextmanager
    def _opened(self, file: RemoteFile) -> Iterator[tuple[BinaryIO, int, int]]:
        """The open file, where the content begins in it, and how long it is."""
        try:
            if self._layout is not None:
                span = self._layout.span(Digest.parse(file.address))
                stream, offset, size_bytes = open_regular(span.path), span.offset, span.size_bytes
            else:
                stream, offset = open_regular(Path(file.address)), 0
                size_bytes = os.fstat(stream.fileno()).st_size
        except NotRegularFile as error:
            raise SourceNotFound(f"{file.path} is not there any more: {error.message}") from error
        with stream:
            yield stream, offset, size_bytes

    def _path(self, text: str) -> Path:
        first, _, rest = text.partition("/")
        if not first.startswith("~"):
            return Path(os.path.normpath(self._folder / text))
        if first != "~":
            raise InvalidInput("only ~/ is understood, not another account's folder", field="reference")
        return self._home / rest

    def _of_layout(self, layout: OciLayout, path: Path, item: str) -> RemoteModel:
        named, digest = layout.entry(item)
        found = look_up(layout, str(digest))
        name, _, tag = named.rpartition(":")
        return remote_model(
            layout,
            found,
            source=f"file:{path}#{found.digest}",
            repository=_named(name or path.name.removesuffix(path.suffix)),
            tag=tag,
            origin=f"oci:{path.name}@{found.digest}",
            wanted=self._wanted,
        )


def _inside(item: str) -> str:
    try:
        check_file_names([item])
    except InvalidName as error:
        raise InvalidInput(f"not a file in the folder: {item[:80]!r}", hint="write file:FOLDER#model.gguf") from error
    return item


def _named(name: str) -> str:
    found = repository_of(name)[-128:].lstrip("-._/")
    if not found:
        raise InvalidInput("the file has no name that could be a model's", hint="give the name after the reference")
    return found


def _validator(found: os.stat_result) -> str:
    """Changes when the file does, as far as the file system tells."""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _chunks(stream: BinaryIO, left: int) -> Iterator[bytes]:
    while left > 0 and (chunk := stream.read(min(left, CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk
