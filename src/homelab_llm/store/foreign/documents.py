"""Manifests and indexes from outside as values: read within bounds, every field judged. Pure: bytes in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, BadModelFile, InvalidDigest
from homelab_llm.store.inspect.documents import parse_object
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES

MAX_LAYERS = 10_000
MAX_BLOB_BYTES = 1 << 50
MAX_TEXT_BYTES = 1 << 20
MAX_TEXTS, MAX_TEXTS_BYTES = 100, 8 << 20  # all of one artifact: they are read into memory
_MAX_MANIFESTS = 1_000
_MAX_ANNOTATIONS = 1_000
_MAX_MEDIA_TYPE = 255
_IMAGE_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
TITLE = "org.opencontainers.image.title"
_ATTESTATION = "vnd.docker.reference.type"  # what buildx adds to an index beside the artifact itself


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One reference of a manifest to a blob."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""

    @property
    def title(self) -> str:
        """The file name that ORAS and others give a layer, or empty."""
        return self.annotations.get(TITLE, "")


@dataclass(frozen=True, slots=True)
class ForeignManifest:
    """A manifest as it was read; nothing in it is believed yet but its form."""

    digest: Digest
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


def read_manifest(content: bytes) -> ForeignManifest:
    """A manifest of one artifact.

    Raises:
        BadManifest: too large, not a manifest, an index, or a field that is not what it must be.
    """
    document = _document(content)
    if "manifests" in document or document.get("mediaType") in _INDEXES:
        raise BadManifest("an index stands where a manifest should be: an index leads to no other index here")
    kind = document.get("mediaType", _IMAGE_MANIFESTS[0])
    if kind not in _IMAGE_MANIFESTS or document.get("schemaVersion") != 2:
        raise BadManifest(f"not the manifest of an artifact: {str(kind)[:100]!r}")
    layers = document.get("layers")
    if not isinstance(layers, list) or not layers:
        raise BadManifest("the manifest has no layers, so there is no model in it")
    if len(layers) > MAX_LAYERS:
        raise BadManifest(f"the manifest has more than {MAX_LAYERS} layers")
    config = _descriptor(document.get("config"), "the configuration")
    if config.size_bytes > MAX_DOCUMENT_BYTES:
        raise BadManifest(f"the configuration is larger than {MAX_DOCUMENT_BYTES} bytes")
    found = tuple(_descriptor(layer, f"layer {number}") for number, layer in enumerate(layers, 1))
    digest = Digest.of(content)
    if sum({layer.digest: layer.size_bytes for layer in found}.values()) > MAX_BLOB_BYTES:
        raise BadManifest("the layers together are larger than any disk")
    _refuse_two_sizes(found)
    if any(layer.digest == digest for layer in (*found, config)):
        raise BadManifest("the manifest refers to itself")
    return ForeignManifest(
        digest, _text(document.get("artifactType", "")), config, found, _annotations(document.get("annotations", {}))
    )


def chosen_of_index(content: bytes) -> Descriptor | None:
    """The one artifact an index stands for; None when ``content`` is no index.

    Raises:
        BadManifest: it names none, several, or something that is not a manifest.
    """
    document = _document(content)
    if "manifests" not in document and document.get("mediaType") not in _INDEXES:
        return None
    entries = document.get("manifests")
    if not isinstance(entries, list) or len(entries) > _MAX_MANIFESTS:
        raise BadManifest("not an index: its manifests cannot be read")
    found = [_descriptor(entry, f"manifest {number}") for number, entry in enumerate(entries, 1)]
    found = [entry for entry in found if _ATTESTATION not in entry.annotations]
    choices = {entry.digest: entry for entry in found}
    if not choices:
        raise BadManifest("the index names no artifact")
    if len(choices) > 1:
        shown = ", ".join(str(digest) for digest in list(choices)[:5])
        raise BadManifest(
            f"the index names {len(choices)} artifacts, and it is not clear which is meant",
            hint=f"pull one of them by its digest: @{shown}",
            choices=[str(digest) for digest in list(choices)[:20]],
        )
    chosen = found[0]
    if chosen.digest == Digest.of(content):
        raise BadManifest("the index refers to itself")
    if chosen.media_type in _INDEXES:
        raise BadManifest("the index leads to another index; that is not followed")
    if chosen.size_bytes > MAX_DOCUMENT_BYTES:
        raise BadManifest(f"the index leads to a manifest larger than {MAX_DOCUMENT_BYTES} bytes")
    return chosen


def read_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        BadManifest: anything else.
    """
    try:
        return parse_object(content, what)
    except BadModelFile as error:
        raise BadManifest(error.message) from error


def _document(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_DOCUMENT_BYTES:
        raise BadManifest(f"the manifest is larger than {MAX_DOCUMENT_BYTES} bytes")
    return read_object(content, "the manifest")


def _descriptor(raw: Any, what: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise BadManifest(f"{what} of the manifest is not a descriptor")
    size = raw.get("size")
    if type(size) is not int or not 0 <= size <= MAX_BLOB_BYTES:
        raise BadManifest(f"{what} of the manifest has no size that can be")
    try:
        digest = Digest.parse(raw.get("digest", ""))
    except InvalidDigest as error:
        raise BadManifest(f"{what} of the manifest has no SHA-256 digest") from error
    kind = _text(raw.get("mediaType"))
    if not kind:
        raise BadManifest(f"{what} of the manifest has no media type")
    artifact = _text(raw.get("artifactType", ""))
    return Descriptor(kind, digest, size, _annotations(raw.get("annotations", {})), artifact)


def _refuse_two_sizes(layers: tuple[Descriptor, ...]) -> None:
    sizes: dict[Digest, int] = {}
    for layer in layers:
        if sizes.setdefault(layer.digest, layer.size_bytes) != layer.size_bytes:
            raise BadManifest(f"the manifest gives two sizes for {layer.digest.short}")


def _annotations(raw: Any) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or len(raw) > _MAX_ANNOTATIONS or not all(isinstance(v, str) for v in raw.values()):
        raise BadManifest("an annotation of the manifest is not text")
    return dict(raw)


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > _MAX_MEDIA_TYPE or not raw.isascii() or not raw.isprintable():
        raise BadManifest("a media type of the manifest is not text")
    return raw
