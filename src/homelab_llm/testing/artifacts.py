"""Artifacts as other tools make them, written by hand: manifests, layers and tars, put into a real registry."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from homelab_llm.core.digests import Digest
from homelab_llm.testing.registries import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
FILE_PATH = "org.cncf.model.filepath"
OLLAMA = "application/vnd.ollama.image."
DOCKER = "application/vnd.docker.ai."
MODELPACK = "application/vnd.cncf.model."
KIT = "application/vnd.kitops.modelkit."


@dataclass(frozen=True, slots=True)
class LayerOf:
    """One layer: its media type, content and annotations."""

    media_type: str
    content: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self) -> dict[str, Any]:
        """What a manifest says of it."""
        out: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(Digest.of(self.content)),
            "size": len(self.content),
        }
        return {**out, "annotations": dict(self.annotations)} if self.annotations else out


def manifest_of(layers: Iterable[LayerOf], config: LayerOf, media_type: str = MANIFEST, **more: Any) -> bytes:
    """The manifest of these layers."""
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def index_of(*manifests: bytes, **more: Any) -> bytes:
    """An index of these manifests."""
    entries = [LayerOf(MANIFEST, content).descriptor() | more for content in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


def tar_of(files: Mapping[str, bytes], *, packed: bool = False, links: Mapping[str, str] | None = None) -> bytes:
    """A tar of files, and of symbolic links (name → target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return gzip.compress(out.getvalue(), mtime=0) if packed else out.getvalue()


def ollama_layers(weights: bytes, **texts: str) -> list[LayerOf]:
    """An Ollama model: weights, and layers by the names of their kinds (``template``, ``params``, ``license``, …)."""
    more = [LayerOf(f"{OLLAMA}{kind}", text.encode()) for kind, text in texts.items()]
    return [LayerOf(f"{OLLAMA}model", weights), *more]


def put(
    registry: Registry,
    repository: str,
    tag: str,
    layers: Iterable[LayerOf],
    config: LayerOf | None = None,
    *,
    media_type: str = MANIFEST,
    **more: Any,
) -> Digest:
    """Put an artifact into a registry, as its pusher would; the digest of its manifest."""
    config = config or LayerOf(EMPTY, b"{}")
    layers = list(layers)
    for layer in (*layers, config):
        put_blob(registry, repository, layer.content)
    return put_manifest(registry, repository, tag, manifest_of(layers, config, media_type, **more), media_type)


def put_blob(registry: Registry, repository: str, content: bytes) -> None:
    """One blob, in one piece."""
    status, headers = _ask(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"", "application/octet-stream")
    if status != 202:
        raise RuntimeError(f"the registry answered {status}")
    target = urlsplit(headers["location"])
    path = f"{target.path}?{target.query}&digest={Digest.of(content)}"
    status, _ = _ask(registry, "PUT", path, content, "application/octet-stream")
    if status != 201:
        raise RuntimeError(f"the registry answered {status}")


def put_manifest(registry: Registry, repository: str, tag: str, content: bytes, media_type: str = MANIFEST) -> Digest:
    """One manifest or index, under a tag or its digest."""
    status, _ = _ask(registry, "PUT", f"/v2/{repository}/manifests/{tag}", content, media_type)
    if status != 201:
        raise RuntimeError(f"the registry answered {status}")
    return Digest.of(content)


def _ask(registry: Registry, method: str, path: str, content: bytes, media_type: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(registry.host, timeout=60)
    try:
        connection.request(method, path, content, {"content-type": media_type})
        reply = connection.getresponse()
        reply.read()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}
    finally:
        connection.close()
