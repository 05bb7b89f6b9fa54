"""Plain OCI artifacts, as ORAS makes them: every layer is a file with a title; a folder is a tar with a mark.

Source: oras-project, ``content/file``; OCI image-spec, ``annotations.md``.
"""

from __future__ import annotations

from homelab_llm.core.errors import BadManifest
from homelab_llm.store.foreign.documents import ForeignManifest
from homelab_llm.store.foreign.outline import Archive, Compression, Gathering, Outline, Part

_UNPACK = "io.deis.oras.content.unpack"
_IMAGES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


def outline(manifest: ForeignManifest, config: bytes) -> Outline:  # noqa: ARG001 — every reader takes the same
    """The files that have a title.

    Raises:
        BadManifest: a layer without one, or a container image.
    """
    untitled = [layer for layer in manifest.layers if not layer.title]
    if untitled and manifest.config.media_type in _IMAGES:
        raise BadManifest("a container image, not a model", hint="a model's layers have titles or model media types")
    if untitled:
        raise BadManifest(
            f"the manifest has a layer of an unknown kind: {untitled[0].media_type[:100]!r}",
            hint="layers need a title (org.opencontainers.image.title) or the media types of a model",
            media_type=untitled[0].media_type[:100],
        )
    found = Gathering("OCI")
    for layer in manifest.layers:
        title = layer.title.removeprefix("./")
        if layer.annotations.get(_UNPACK) == "true":
            packed: Compression = "" if layer.media_type.endswith(".tar") else "gzip"
            found.archives.append(Archive(layer, packed))
        else:
            found.parts.append(Part(title, layer))
    return found.outline()
