"""CNCF ModelPack artifacts, those of its former name, and what early Docker Model Runners added to them.

Source: ModelPack model-spec v0.0.7, ``docs/config.md`` and ``docs/annotations.md``; docker/model-runner.
"""

from __future__ import annotations

import re

from homelab_llm.core.errors import BadManifest
from homelab_llm.store.file_names import is_document
from homelab_llm.store.foreign.documents import Descriptor, ForeignManifest
from homelab_llm.store.foreign.outline import Archive, Compression, Gathering, Outline, Part

_LAYER = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(?P<kind>weight|weight\.config|doc|code|dataset)\.v1\."
    r"(?P<form>raw|tar|tar\+gzip|tar\+zstd|gguf|safetensors)"
)
_CONFIG = re.compile(r"application/vnd\.(?:cncf|cnai)\.model\.config\.v1\+json")
_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath")


def knows(manifest: ForeignManifest) -> bool:
    """Whether it is a ModelPack artifact."""
    return bool(_CONFIG.fullmatch(manifest.config.media_type)) or bool(_LAYER.fullmatch(manifest.layers[0].media_type))


def outline(manifest: ForeignManifest, config: bytes) -> Outline:  # noqa: ARG001 — it says nothing the files do not
    """Weights and configuration; documents as well; no code, no data sets.

    Raises:
        BadManifest: a layer of an unknown kind, or without a name.
    """
    found = Gathering("ModelPack")
    for layer in manifest.layers:
        match = _LAYER.fullmatch(layer.media_type)
        path = path_of(layer)
        if match is None:
            if not is_document(path):
                raise unknown(layer)
        elif match["kind"] in {"code", "dataset"}:
            found.notes.append(f"{match['kind']} was left out: {path[:80] or layer.digest.short}")
        elif match["form"].startswith("tar"):
            found.archives.append(Archive(layer, compression_of(match["form"])))
        else:
            found.parts.append(Part(path or _unnamed(match["form"], manifest, layer), layer))
    return found.outline()


def path_of(layer: Descriptor) -> str:
    """The place of a layer's file inside the artifact, or empty."""
    named = next((layer.annotations[key] for key in _PATHS if layer.annotations.get(key)), "")
    return (named or layer.title).removeprefix("./")


def compression_of(form: str) -> Compression:
    """What a form like ``tar+gzip`` is packed with.

    Raises:
        BadManifest: something that cannot be unpacked here.
    """
    if form in {"tar", "tar+gzip"}:
        return "gzip" if form == "tar+gzip" else ""
    raise BadManifest(
        f"layers packed as {form[:40]} cannot be unpacked here", hint="pack the model without compression"
    )


def unknown(layer: Descriptor) -> BadManifest:
    """The error for a layer that is not understood."""
    return BadManifest(
        f"the manifest has a layer of an unknown kind: {layer.media_type[:100]!r}",
        hint="it may be made by a newer tool; pull the model from another source",
        media_type=layer.media_type[:100],
    )


def _unnamed(form: str, manifest: ForeignManifest, layer: Descriptor) -> str:
    if form == "gguf" and len(manifest.layers) <= 2:
        return "model.gguf"
    raise BadManifest(f"a layer of the manifest has no file name ({layer.digest.short})")
