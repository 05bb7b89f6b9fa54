"""Artifacts: from a manifest, wherever it lies, to what a pull fetches; registries and layouts share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, DigestMismatch, InvalidName
from homelab_llm.core.names import ModelRef, repository_of, tag_of
from homelab_llm.store.choice import ANYTHING, Wanted
from homelab_llm.store.foreign.describe import describe, needs_config
from homelab_llm.store.foreign.documents import MAX_TEXT_BYTES, chosen_of_index, read_manifest
from homelab_llm.store.foreign.outline import Outline, Role
from homelab_llm.store.foreign.selection import select
from homelab_llm.store.foreign.settle import settle
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES
from homelab_llm.store.sources.base import PackedModel, RemoteFile, RemoteModel


class Place(Protocol):
    """Where manifests and blobs are."""

    def manifest(self, version: str) -> bytes:
        """The bytes of a tag's or a digest's manifest or index, at most ``MAX_DOCUMENT_BYTES``."""
        ...

    def blob(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob; its digest is checked by the caller."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest that was looked up: ``digest`` pins it (the index's, where it was found through one)."""

    digest: Digest
    content: bytes


def look_up(place: Place, version: str) -> Found:
    """The manifest that ``version`` means; an index that names one artifact is followed once.

    Raises:
        BadManifest: an index of several or of indexes. DigestMismatch: other bytes than their digest says.
    """
    content = place.manifest(version)
    digest = Digest.of(content)
    if version.startswith("sha256:") and version != str(digest):
        raise _other_bytes("the manifest", version, digest)
    chosen = chosen_of_index(content)
    if chosen is None:
        return Found(digest, content)
    inner = place.manifest(str(chosen.digest))
    if Digest.of(inner) != chosen.digest or len(inner) != chosen.size_bytes:
        raise _other_bytes("the manifest that the index names", str(chosen.digest), Digest.of(inner))
    return Found(chosen.digest, inner)


def remote_model(
    place: Place, found: Found, *, source: str, repository: str, tag: str, origin: str = "", wanted: Wanted = ANYTHING
) -> RemoteModel:
    """What a pull needs to know of an artifact.

    Args:
        source: the pinned reference.
        origin: what is recorded as its source where it does not say itself; empty = ``source``.
        repository, tag: as its maker called it; they are made names of the store.

    Raises:
        BadManifest: see ``describe`` and ``settle``; InvalidInput, UnsafeModel, SourceNotFound: see ``choose_files``.
    """
    manifest = read_manifest(found.content)
    config = b"{}"
    if needs_config(manifest):
        config = _checked(place, manifest.config.digest, manifest.config.size_bytes, MAX_DOCUMENT_BYTES)
    outline = describe(found.content, config)
    settled = settle(outline, _contents(place, outline), _translate)
    files: tuple[RemoteFile, ...] = ()
    if not outline.archives:
        layers = select(outline, source, {}, wanted).layers
        files = tuple(RemoteFile(p, str(d.digest), d.size_bytes, d.digest) for p, d in layers.items())
    return RemoteModel(
        source=source,
        repository=name_of(repository),
        files=files,
        tag=_tag(tag),
        licence=settled.licence,
        defaults=settled.defaults,
        provenance=outline.provenance,
        origin=outline.origin if outline.origin is not None else origin or None,
        facts=outline.facts,
        packed=PackedModel(outline, source, wanted) if outline.archives else None,
        notes=settled.notes,
    )


def name_of(repository: str) -> str:
    """A repository of a registry as a name of the store: its last four parts, at most 128 characters."""
    return "/".join(repository_of(repository).split("/")[-4:])[-128:].lstrip("/-._")


def _tag(tag: str) -> str:
    try:
        return ModelRef.parse(f"x:{tag}").tag if tag else ""
    except InvalidName:
        return tag_of(tag)


def _contents(place: Place, outline: Outline) -> Mapping[Role, tuple[bytes, ...]]:
    found: dict[Role, tuple[bytes, ...]] = {}
    for role, layer in outline.texts:
        content = _checked(place, layer.digest, layer.size_bytes, MAX_TEXT_BYTES)
        found[role] = (*found.get(role, ()), content)
    return found


def _checked(place: Place, digest: Digest, size_bytes: int, limit_bytes: int) -> bytes:
    content = place.blob(digest, limit_bytes)
    if len(content) != size_bytes:
        raise BadManifest(f"the manifest says {size_bytes} bytes of {digest.short}, and there are {len(content)}")
    if (actual := Digest.of(content)) != digest:
        raise _other_bytes("a blob", str(digest), actual)
    return content


def _other_bytes(what: str, expected: str, actual: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{what} is not what its digest says",
        hint="run the same command again; if it stays, the place is damaged or not honest",
        expected=expected[:80],
        actual=str(actual),
    )


def _translate(text: str) -> str:
    from homelab_llm.store.templates.go_template import translate

    return translate(text)
