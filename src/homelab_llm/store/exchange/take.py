"""Take: the side of an exchange that gets the model. It believes nothing: sizes, digests, names, facts are its own."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, Cancelled, HomelabError, SourceUnavailable, StoreDamaged
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.exchange.wire import Wire
from homelab_llm.store.inspect.model import inspect_model
from homelab_llm.store.layout import disk_full, free_bytes
from homelab_llm.store.manifests import Layer, Manifest, parse_manifest
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress, Progress


def take(
    store: ModelStore,
    wire: Wire,
    ref: ModelRef | None = None,
    *,
    free_floor_bytes: int = 0,
    progress: Callable[[JobProgress], None] | None = None,
) -> StoredModel:
    """Receive one model; blocks. What had arrived when it was cut is kept, and the next time goes on from there.

    Args:
        ref: under which name to keep it; None takes the other side's.

    Raises:
        BadManifest: what is offered is not a model of this product.
        DiskFull, DigestMismatch, BadModelFile, UnsafeModel: as for a pull; the other side is told.
        SourceUnavailable: the other side went away.
    """
    try:
        return _take(store, wire, ref, free_floor_bytes, Progress(progress or (lambda _: None)))
    except HomelabError as error:
        wire.refuse(error)
        raise
    except KeyboardInterrupt:
        wire.refuse(Cancelled("the other side was interrupted; what arrived is kept"))
        raise


def _take(store: ModelStore, wire: Wire, ref: ModelRef | None, floor_bytes: int, report: Progress) -> StoredModel:
    report.stage("resolving")
    hello = wire.hear("manifest")
    manifest = _offered(hello["manifest"])
    chosen = ref or ModelRef.parse(str(hello.get("name", "")))
    layers = list({layer.digest: layer for layer in manifest.layers}.values())
    missing_bytes = sum(layer.size_bytes for layer in layers if not store.blobs.has(layer.digest))
    if missing_bytes > (free := max(0, free_bytes(store.root) - floor_bytes)):
        raise disk_full(missing_bytes, free)
    report.total([missing_bytes])
    got: list[Digest] = []
    try:
        got.extend(_receive(store, wire, layer, missing_bytes, report) for layer in layers)
        model = _add(store, chosen, manifest, report)
    except BaseException:
        store.blobs.release(got)
        raise
    wire.tell({"done": str(model.digest)})
    report.stage("done")
    return model


def _offered(text: Any) -> Manifest:
    """The manifest of what is offered, read as strictly as one of our own."""
    try:
        content = base64.b64decode(str(text), validate=True)
    except ValueError as error:
        raise BadManifest("what the other store offers is not a manifest") from error
    digest = Digest.of(content)
    try:
        return parse_manifest(content, digest, Path("manifest"))
    except StoreDamaged as error:
        raise BadManifest(f"what the other store offers is not a model: {error.message}") from error


def _receive(store: ModelStore, wire: Wire, layer: Layer, missing_bytes: int, report: Progress) -> Digest:
    """One blob: found here, or asked for from where its kept bytes end."""
    key = str(layer.digest)
    with store.blobs.open_writer(key, expected=layer.digest, size_bytes=layer.size_bytes) as writer:
        if not writer.complete:
            wire.tell({"need": key, "offset": writer.offset, "total_bytes": missing_bytes})
            said = wire.hear("blob")
            left = layer.size_bytes - writer.offset
            if (said["blob"], said.get("offset"), said.get("size_bytes")) != (key, writer.offset, left):
                raise SourceUnavailable("the other store sends something else than was asked for")
            report.begin(layer.name, writer.offset)
            for chunk in wire.catch(left):
                writer.write(chunk)
                report.bytes(writer.offset)
            report.end(layer.size_bytes)
        return writer.commit()


def _add(store: ModelStore, ref: ModelRef, manifest: Manifest, report: Progress) -> StoredModel:
    """Add it with the facts its files have here; where another version told more or less, the digest differs."""
    report.stage("inspecting")
    files = {layer.name: layer.digest for layer in manifest.layers}
    facts = inspect_model({name: store.blobs.path(digest) for name, digest in files.items()})
    facts = replace(facts, licence=facts.licence or manifest.facts.licence)
    report.stage("storing")
    return store.add(
        ref,
        files,
        facts,
        source=manifest.source,
        defaults=manifest.defaults,
        provenance=manifest.provenance,
    )
