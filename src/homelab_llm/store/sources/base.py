"""What a source is: it says which files a reference means, and opens each of them, or a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DigestMismatch
from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, Provenance
from homelab_llm.core.http import Body


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

    A manifest of ours also carries what the model was when it was pushed: ``defaults``, ``provenance``, and ``origin``,
    where it came from first (empty: ``source``). With these the model gets the same digest here.
    """

    source: str
    repository: str
    files: tuple[RemoteFile, ...]
    tag: str = ""
    licence: str = ""
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file. ``start`` is the offset of the first byte that comes; it is 0 or the one asked for.

    ``ranged``: just the part that was asked for comes, so other parts can be asked for at the same time.
    """

    start: int
    validator: str
    chunks: Iterator[bytes]
    ranged: bool = False

    @classmethod
    def of(cls, body: Body) -> Opened:
        """What an HTTP server sends."""
        return cls(body.start, body.validator, body.chunks, body.ranged)


class Source(Protocol):
    """Where models come from; closed after use.

    ``parallel``: whether ``open`` may be called from several threads at once, each then on a connection of its own.
    """

    @property
    def parallel(self) -> bool: ...

    def resolve(self, reference: str) -> RemoteModel:
        """Find out which files ``reference`` means; blocks on the network.

        Raises:
            InvalidInput: not a reference of this source, or one that needs a choice; the hint shows it.
            UnsafeModel: only pickled weights. SourceNotFound, SourceDenied, SourceUnavailable.
        """
        ...

    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> AbstractContextManager[Opened]:
        """Open one of the files of the model resolved last, at ``start`` where the source can.

        ``stop``: the caller needs no byte from there on; more may come all the same, and is left unread.

        Raises:
            SourceUnavailable: also from reading ``chunks``; calling again with what was kept continues.
        """
        ...

    def close(self) -> None:
        """Let go of connections and temporary files."""
        ...


class GitBlobHash:
    """The id git gives a file's content, computed while it arrives: SHA-1 over ``blob <length>`` NUL content.

    Of use against damage, not against malice; sources that have SHA-256 give that.
    """

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Begin again with the first byte."""
        self._hash = hashlib.sha1(f"blob {self._file.size_bytes}\0".encode(), usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        """Take in the next bytes."""
        self._hash.update(chunk)

    def check(self) -> None:
        """See that all bytes together are those promised; nothing to see where nothing was promised.

        Raises:
            DigestMismatch: they are not.
        """
        expected, actual = self._file.git_sha1, self._hash.hexdigest()
        if expected and actual != expected:
            raise DigestMismatch(
                f"the bytes of {self._file.path} are not those the hub promised; they were discarded",
                hint="run the same command again",
                expected=f"git:{expected}",
                actual=f"git:{actual}",
            )
