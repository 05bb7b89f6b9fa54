"""What a source is: it says which files a reference means, and opens each of them at an offset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import DigestMismatch


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a model at its source.

    ``path`` is its place inside the model, ``address`` means something to the source only. ``digest`` is the
    SHA-256 the source or the catalogue promises; where there is none, ``git_sha1`` may be (a git blob id).
    ``validator`` changes when the content does; empty means unknown, and then kept bytes cannot be continued.
    """

    path: str
    address: str
    size_bytes: int | None = None
    digest: Digest | None = None
    git_sha1: str = ""
    validator: str = ""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a reference means, pinned: ``source`` is the reference with its revision, to pull the same again.

    ``repository`` and ``tag`` are the name that suits it when none is asked for; an empty tag leaves the choice
    to what the files say (the quantization).
    """

    source: str
    repository: str
    files: tuple[RemoteFile, ...]
    tag: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file. ``start`` is the offset of the first byte that comes; it is 0 or the offset asked for."""

    start: int
    validator: str
    chunks: Iterator[bytes]


class Source(Protocol):
    """Where models come from; closed after use."""

    def resolve(self, reference: str) -> RemoteModel:
        """Find out which files ``reference`` means; blocks on the network.

        Raises:
            InvalidInput: not a reference of this source, or one that needs a choice; the hint shows it.
            UnsafeModel: only pickled weights. SourceNotFound, SourceDenied, SourceUnavailable.
        """
        ...

    def open(self, file: RemoteFile, offset: int) -> AbstractContextManager[Opened]:
        """Open one of the files of the model resolved last, at ``offset`` where the source can.

        Raises:
            SourceUnavailable: also from reading ``chunks``; calling again with what was kept continues.
        """
        ...

    def close(self) -> None:
        """Let go of connections and temporary files."""
        ...


def check_git_sha1(path: Path, expected: str) -> None:
    """See that a file is the git blob ``expected``: SHA-1 over ``blob <length>`` NUL content.

    Raises:
        DigestMismatch: it is not.
    """
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise DigestMismatch(
            "the bytes are not those the hub promised; they were discarded",
            hint="run the same command again",
            expected=f"git:{expected}",
            actual=f"git:{digest.hexdigest()}",
        )
