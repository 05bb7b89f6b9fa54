"""Verbs of the model store; they work in this process, with or without a daemon."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from homelab_llm.core.errors import ModelDamaged, ModelInUse, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb


def summary(model: StoredModel) -> dict[str, Any]:
    """What every verb with ``--json`` says of a stored model."""
    facts = model.facts
    return {
        "name": model.name,
        "digest": str(model.digest),
        "size_bytes": model.size_bytes,
        "format": facts.format,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "quantization": facts.quantization,
        "context_tokens": facts.context_tokens,
        "capabilities": list(facts.capabilities),
        "created_unix_s": model.created_unix_s,
        "source": model.source,
    }


def next_step(model: StoredModel) -> str:
    """The command a person types next: a model that makes no text cannot be run, only served."""
    talks = not model.facts.capabilities or {"chat", "completion"} & set(model.facts.capabilities)
    return f"mlxctl run {model.name}" if talks else f"mlxctl load {model.name}"


@verb("rm")
@click.argument("models", nargs=-1, required=True, shell_complete=model_names)
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal.")
@click.option("--force", is_flag=True, help="Stop a model that is loaded first.")
def rm(invocation: Invocation, models: tuple[str, ...], yes: bool, force: bool) -> None:
    """Remove models. Their bytes go when no other name refers to them."""
    references = [ModelRef.parse(name) for name in models]
    names = ", ".join(map(str, references))
    if not yes and invocation.output.can_ask() and not invocation.output.confirm(f"remove {names}?"):
        invocation.output.note("nothing removed")
        return
    for reference in references:
        with contextlib.suppress(ModelDamaged):  # no worker can be loading it
            if model := resolve_or_none(invocation, str(reference)):
                _release(invocation, model, force=force)
    freed = sum(invocation.store.remove(reference).bytes_freed for reference in references)
    data = {"removed": [str(reference) for reference in references], "bytes_freed": freed}
    invocation.output.result(data, f"removed {names}, freed {format_bytes(freed)}")


def _release(invocation: Invocation, model: StoredModel, *, force: bool) -> None:
    """Make sure the daemon does not serve the model under this name.

    Raises:
        ModelInUse: it does, and ``force`` was not given.
    """
    client = invocation.daemon_if_running()
    if client is None:
        return
    loaded = {entry["model"]: entry for entry in client.get("/admin/models")["models"]}
    others = [m for m in invocation.store.models() if m.digest == model.digest and m.name != model.name]
    same = [entry for entry in loaded.values() if entry.get("digest") == str(model.digest)]
    if model.name not in loaded and (others or not same):
        return
    name = model.name if model.name in loaded else str(same[0]["model"])
    if not force:
        raise ModelInUse(f"{name} is loaded", hint=f"mlxctl stop {name}, or rm --force", model=name)
    client.post("/admin/models/unload", {"model": name, "force": True})


@verb("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("name")
def import_(invocation: Invocation, path: Path, name: str) -> None:
    """Take a GGUF file or a folder in Hugging Face's format into the store as NAME.

    Bytes are cloned where the file system can, linked only from a Hugging Face cache, else copied.
    """
    reference = ModelRef.parse(name)
    with invocation.output.transfer(f"importing {name}") as progress:
        model = invocation.store.import_path(
            path, reference, progress=lambda done, total: progress.update("copy", done, total)
        )
    invocation.output.result(
        summary(model), f"imported {model.name} ({format_bytes(model.size_bytes)}); try: {next_step(model)}"
    )


def resolve_or_none(invocation: Invocation, name: str) -> StoredModel | None:
    """The stored model of that name, or None; a name outside the grammar is an error."""
    try:
        return invocation.store.resolve(name)
    except ModelNotFound:
        return None
