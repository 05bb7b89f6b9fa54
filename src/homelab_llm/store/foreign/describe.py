"""Which kind of artifact a manifest describes, and what it consists of. Pure: bytes in, outline out."""

from __future__ import annotations

from pathlib import Path

from homelab_llm.core.errors import BadManifest, InvalidName, StoreDamaged
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.foreign import docker_models, kitops, modelpack, ollama, plain
from homelab_llm.store.foreign.documents import (
    MAX_TEXT_BYTES,
    MAX_TEXTS,
    MAX_TEXTS_BYTES,
    ForeignManifest,
    read_manifest,
)
from homelab_llm.store.foreign.outline import Outline, Part
from homelab_llm.store.manifests import FACTS, encode_config, encode_manifest, parse_manifest

_READERS = (ollama, docker_models, kitops, modelpack)


def needs_config(manifest: ForeignManifest) -> bool:
    """Whether the configuration says something that ``describe`` uses."""
    return any(reader.knows(manifest) for reader in (docker_models, kitops))


def describe(content: bytes, config: bytes = b"{}") -> Outline:
    """What the artifact of a manifest consists of.

    Args:
        config: the configuration's bytes, where ``needs_config``.

    Raises:
        BadManifest: outside the bounds, of an unknown kind, or with a layer that is not understood.
    """
    manifest = read_manifest(content)
    own = _own(content, manifest)
    if own is not None and own.facts is not None:
        return own
    outline: Outline = next((reader for reader in _READERS if reader.knows(manifest)), plain).outline(manifest, config)
    if not outline.parts and not outline.archives:
        raise BadManifest(f"the {outline.kind} artifact holds no weights")
    _check(outline)
    if own is not None:  # made by another version of this product: its files, with what it says about them
        return Outline(
            outline.kind,
            outline.parts,
            outline.archives,
            whole=True,
            licence=own.licence,
            defaults=own.defaults,
            provenance=own.provenance,
            origin=own.origin,
        )
    return outline


def _own(content: bytes, manifest: ForeignManifest) -> Outline | None:
    """A manifest of this product; with facts only when it can be made again bit by bit."""
    if FACTS not in manifest.annotations:
        return None
    try:
        found = parse_manifest(content, manifest.digest, Path(manifest.digest.hex))
    except StoreDamaged as error:
        raise BadManifest("the manifest has this product's marks and is not in its form") from error
    for name, layer in zip(found.layers, manifest.layers, strict=True):
        if (name.digest, name.size_bytes) != (layer.digest, layer.size_bytes):
            raise BadManifest("the manifest has this product's marks and is not in its form")
    names = [layer.name for layer in found.layers]
    for adapter in found.defaults.adapters:
        if not any(name == adapter or name.startswith(f"{adapter}/") for name in names):
            raise BadManifest(f"the manifest names an adapter {adapter[:80]!r} that it does not hold")
    again = encode_manifest(
        found.layers,
        encode_config(found.layers, found.facts),
        found.facts,
        found.source,
        defaults=found.defaults,
        provenance=found.provenance,
    )
    return Outline(
        "homelab-llm",
        tuple(Part(name.name, layer) for name, layer in zip(found.layers, manifest.layers, strict=True)),
        whole=True,
        licence=found.facts.licence,
        defaults=found.defaults,
        provenance=found.provenance,
        facts=found.facts if again == content else None,
        origin=found.source,
    )


def _check(outline: Outline) -> None:
    """Names must be names, texts must be small."""
    try:
        if outline.parts:
            check_file_names(part.path for part in outline.parts)
        folders = [archive.folder for archive in outline.archives if archive.folder]
        for folder in folders:
            check_file_names([folder])
    except InvalidName as error:
        raise BadManifest(f"the manifest names its files wrongly: {error.message}") from error
    for role, layer in outline.texts:
        if layer.size_bytes > MAX_TEXT_BYTES:
            raise BadManifest(f"the {role} of the artifact is larger than {MAX_TEXT_BYTES} bytes")
    if len(outline.texts) > MAX_TEXTS or sum(layer.size_bytes for _, layer in outline.texts) > MAX_TEXTS_BYTES:
        raise BadManifest(f"the artifact has more than {MAX_TEXTS} texts, or {MAX_TEXTS_BYTES} bytes of them")
