"""Give: the side of an exchange that has the model."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import HomelabError, ModelDamaged, ModelNotFound, SourceUnavailable
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.exchange.wire import PROTOCOL, Wire
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress, Progress

_MOST_BYTES = 1 << 60


def give(
    store: ModelStore, model: StoredModel, wire: Wire, progress: Callable[[JobProgress], None] | None = None
) -> str:
    """Send what the other side lacks of ``model``; blocks. Returns the digest it ended with.

    Raises:
        ModelNotFound, ModelDamaged: it was removed meanwhile, or a file of it is not as long as it was.
        SourceUnavailable: the other side went away. Whatever else it could not do, as it said it.
    """
    try:
        return _give(store, model, wire, Progress(progress or (lambda _: None), doing="uploading"))
    except HomelabError as error:
        wire.refuse(error)
        raise


def _give(store: ModelStore, model: StoredModel, wire: Wire, report: Progress) -> str:
    try:
        manifest = store.blobs.path(model.digest).read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFound(f"{model.name} was removed meanwhile", model=model.name) from error
    wire.tell({"hello": PROTOCOL, "name": model.name, "manifest": base64.b64encode(manifest).decode("ascii")})
    names = {path.name: name for name, path in model.files.items()}
    while "need" in (said := wire.hear("need", "done")):
        blob, offset = _wanted(said, names)
        if type(total := said.get("total_bytes")) is int and 0 <= total < _MOST_BYTES:
            report.total([total])
        _send(wire, store.blobs.path(Digest(blob)), offset, names[blob], report)
    report.stage("done")
    return str(said["done"])


def _send(wire: Wire, path: Path, offset: int, name: str, report: Progress) -> None:
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - offset
        wire.tell({"blob": f"sha256:{path.name}", "offset": offset, "size_bytes": left})
        report.begin(name, 0)
        file.seek(offset)
        sent = 0
        while sent < left:
            chunk = file.read(min(CHUNK_BYTES, left - sent))
            if not chunk:
                raise ModelDamaged(f"{name} is shorter than it was", hint="mlxctl verify --store", files=[name])
            wire.pour(chunk)
            sent += len(chunk)
            report.bytes(sent)
    wire.flush()
    report.end(sent)


def _wanted(said: dict[str, Any], names: dict[str, str]) -> tuple[str, int]:
    """Hex and offset of one wish; only blobs of this model are given, whatever is asked for."""
    name, offset = str(said["need"]).removeprefix("sha256:"), said.get("offset")
    if name not in names or type(offset) is not int or offset < 0:
        raise SourceUnavailable("the other store asks for something that is not of this model")
    return name, offset
