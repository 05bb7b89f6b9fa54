"""Verbs about loaded models: ``ps`` and ``stop``. Neither starts a daemon."""

from __future__ import annotations

from typing import Any

import click

from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb


def _until(entry: dict[str, Any]) -> str:
    if entry["state"] == "draining":
        return "stopping"
    left_s = entry.get("expires_in_s")
    if entry.get("leases"):
        return "in use"
    return "for ever" if left_s is None else f"in {format_duration(max(left_s, 0))}"


def _state(entry: dict[str, Any]) -> str:
    progress = entry.get("progress") or {}
    if entry["state"] == "loading" and progress:
        return f"{progress.get('stage', 'loading')} {100 * float(progress.get('done') or 0):.0f} %"
    return str(entry["state"])


def _warning(entry: dict[str, Any]) -> tuple[str, str]:
    found = entry.get("warning") or ""
    if isinstance(found, dict):
        return str(found.get("text", "")), str(found.get("hint", ""))
    return str(found), str(entry.get("hint") or "")


@verb("ps")
def ps(invocation: Invocation) -> None:
    """List the loaded models: engine, state, memory, requests, and when each is unloaded."""
    client = invocation.daemon_if_running()
    entries: list[dict[str, Any]] = client.get("/admin/models")["models"] if client else []
    rows = (
        (
            entry["model"],
            str(entry["id"]),
            str(entry["engine"]),
            _state(entry),
            format_bytes(int(entry.get("memory_bytes") or entry.get("footprint_bytes") or 0)),
            f"{entry.get('leases', 0)}/{entry.get('parallel', 0)}",
            str(entry.get("context_tokens") or ""),
            _until(entry),
        )
        for entry in entries
    )
    headers = ("MODEL", "WORKER", "ENGINE", "STATE", "MEMORY", "BUSY", "CONTEXT", "UNLOADS")
    invocation.output.table(headers, rows, {"running": client is not None, "models": entries})
    if client is None:
        invocation.output.note("the daemon is not running, so nothing is loaded")
    for text, hint in dict.fromkeys(_warning(entry) for entry in entries):
        if text:
            invocation.output.warning(text, hint)


@verb("stop")
@click.argument("models", nargs=-1, shell_complete=model_names)
@click.option("--all", "everything", is_flag=True, help="Unload every model.")
@click.option("--force", is_flag=True, help="Break off running requests too.")
def stop(invocation: Invocation, models: tuple[str, ...], everything: bool, force: bool) -> None:
    """Unload models from memory and wait until their processes are gone. Running requests end first.

    A slot keeps its model: it rests, and is loaded again by the next request. `unload` empties a slot.
    """
    if bool(models) == everything:
        raise click.UsageError("name the models to stop, or --all")
    client = invocation.daemon_if_running()
    if client is None:
        invocation.output.result({"running": False, "unloaded": []}, "the daemon is not running, so nothing is loaded")
        return
    names = list(models) or [entry["model"] for entry in client.get("/admin/models")["models"]]
    unloaded = [
        name
        for name in names
        if client.post("/admin/models/unload", {"model": name, "force": force}, timeout_s=3700)["unloaded"]
    ]
    lines = [f"stopped {name}" if name in unloaded else f"{name} was not loaded" for name in names]
    invocation.output.result({"running": True, "unloaded": unloaded}, lambda: lines or ["nothing is loaded"])
