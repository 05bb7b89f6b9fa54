"""Census: which blobs the names of the index lead to, and who needs each of them. Reads documents, hashes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import StoreDamaged
from homelab_llm.store.index import Entry
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small
from homelab_llm.store.manifests import parse_manifest, references

MANIFEST_FILE = "(manifest)"
CONFIG_FILE = "(configuration)"


@dataclass(frozen=True, slots=True)
class Piece:
    """One use of a blob: as ``file`` of ``model``. ``size_bytes`` is None where its manifest does not say."""

    model: str
    file: str
    digest: Digest
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """One file of one model that is not what it should be; ``text`` says how, as the end of a sentence.

    ``digest`` is the content it should have. ``model`` is empty for a blob that no model needs.
    """

    model: str
    file: str
    digest: Digest
    text: str


@dataclass(slots=True)
class Census:
    """What was found. ``problems`` are entries of the index that lead nowhere, in words."""

    pieces: dict[Digest, list[Piece]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.pieces.setdefault(piece.digest, []).append(piece)


def take_census(layout: Layout, entries: Iterable[Entry]) -> Census:
    """Follow these entries of the index to the blobs they need. A document that is damaged leads no further."""
    census = Census()
    seen: set[str] = set()
    for entry in entries:
        name = str(entry.ref) if entry.ref else ""
        if entry.digest is None:
            census.problems.append(f"index.json has an entry without a valid digest ({name or 'without a name'})")
        elif name and name in seen:
            census.problems.append(f"index.json names {name} more than once; the first counts")
        elif name:
            seen.add(name)
            census.models.append(name)
            _follow_model(layout, census, name, entry.digest)
        else:
            _follow_foreign(layout, census, entry.digest)
    return census


def _follow_model(layout: Layout, census: Census, name: str, digest: Digest) -> None:
    path = layout.blob(digest)
    try:
        manifest = parse_manifest(read_small(path, MAX_DOCUMENT_BYTES), digest, path)
    except FileNotFoundError:
        census.damages.append(Damage(name, MANIFEST_FILE, digest, "is missing"))
        return
    except (StoreDamaged, OSError) as error:
        census.damages.append(Damage(name, MANIFEST_FILE, digest, _told(error)))
        return
    census.add(Piece(name, CONFIG_FILE, manifest.config))
    for layer in manifest.layers:
        census.add(Piece(name, layer.name, layer.digest, layer.size_bytes))


def _follow_foreign(layout: Layout, census: Census, first: Digest) -> None:
    """What another tool put into the index under no name of ours: its content is checked too."""
    waiting, seen = [first], set[Digest]()
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        path = layout.blob(digest)
        try:
            found = references(read_small(path, MAX_DOCUMENT_BYTES), digest, path)
        except FileNotFoundError:
            census.problems.append(f"the manifest {digest.short} of an unnamed entry of index.json is missing")
        except (StoreDamaged, OSError) as error:
            census.problems.append(f"the manifest {digest.short} of an unnamed entry {_told(error)}")
        else:
            waiting += found.documents
            for blob in found.blobs:
                census.add(Piece("", "", blob))


def _told(error: StoreDamaged | OSError) -> str:
    if isinstance(error, StoreDamaged):
        return error.message.partition(" of the store ")[2] or "is damaged"
    return f"cannot be read: {error.strerror}"
