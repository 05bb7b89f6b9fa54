"""What a source is: it says which files a reference means, and opens each of them, or a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, DigestMismatch
from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, ModelFacts, Provenance
from homelab_llm.core.http import Body
from homelab_llm.store.choice import Wanted
from homelab_llm.store.foreign.outline import Outline


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
class PackedModel:
    """A model of which some files lie in archives: its outline, and how hints call it."""

    outline: Outline
    reference: str
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a reference means, pinned: ``source`` is the reference with its revision, to pull the same again.

    ``repository`` and ``tag`` are the name that suits it when none is asked for; an empty tag leaves the choice
    to what the files say (the quantization).

    A manifest of ours also carries what the model was when it was pushed: ``defaults``, ``provenance``, and ``origin``,
    where it came from first (None: ``source``). With these the model gets the same digest here; ``facts`` are what it
    says of the files, and are held against them.

    ``packed``: some files lie in archives and only those say which; ``files`` is empty then. ``notes`` tell people what
    was left out.
    """

    source: str
    repository: str
    files: tuple[RemoteFile, ...]
    tag: str = ""
    licence: str = ""
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE
    origin: str | None = None
    facts: ModelFacts | None = None
    packed: PackedModel | None = None
    notes: tuple[str, ...] = ()


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


_TOLD = ("size_bytes", "licence")  # a licence may be told, and sizes count what was added to a base


def agreed_facts(found: ModelFacts, remote: RemoteModel) -> ModelFacts:
    """The facts to record: what the files say, completed by what the source says.

    Raises:
        BadManifest: a manifest of ours says other things than the files.
    """
    if remote.facts is None:
        return replace(found, licence=found.licence or remote.licence)
    told = remote.facts
    own, theirs = found.as_dict(), told.as_dict()
    if wrong := [name for name in own if name not in _TOLD and own[name] != theirs[name]]:
        raise BadManifest(
            f"the manifest says other things of the model than its files do: {', '.join(wrong)}",
            hint="somebody changed it; pull the model from where it was made",
            fields=wrong,
        )
    return told


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

    def update(self, chunk: bytes | memoryview) -> None:
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
