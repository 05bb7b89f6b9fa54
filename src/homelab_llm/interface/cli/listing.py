"""``mlxctl list``: stored and registered models with size, slot and state, at click speed.

The store is read in this process. Slots and states come from a running daemon; without one, the slots come from the
database, by one read-only query where it is SQLite.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.data.glance import Glimpse, glance
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import summary
from homelab_llm.interface.cli.slots import slots_of

_HEADERS = ("NAME", "ID", "SIZE", "FORMAT", "STATE", "SLOT", "ADDED")


@verb("list")
@click.argument("prefix", default="", shell_complete=model_names)
def list_(invocation: Invocation, prefix: str) -> None:
    """List stored and registered models, those whose name begins with PREFIX.

    `wanted` is a model that the registry names and that is not stored yet. Without a running daemon the state says
    only what is stored.
    """
    registered = _registered(invocation)
    slots, loaded = _running(invocation)
    models = [m for m in invocation.store.models() if m.name.startswith(prefix)]
    stored = {model.name for model in models}
    by_name = {glimpse.model_id: glimpse for glimpse in registered}
    data = [_stored(model, by_name.get(model.name), slots, loaded) for model in models]
    wanted = [g for g in registered if g.wanted and g.model_id not in stored and g.model_id.startswith(prefix)]
    data += [_wanted(found, slots) for found in wanted]
    invocation.output.table(_HEADERS, map(_row, data), {"models": data})
    if not data and not prefix:
        invocation.output.note("no models yet; try: mlxctl pull smollm2:135m")


def _registered(invocation: Invocation) -> list[Glimpse]:
    database = invocation.home.database
    if invocation.may_be_set("data", "url") and (url := invocation.settings.data.url):
        from homelab_llm.data.address import Address

        address = Address.of(url, database)
        if address.dialect != "sqlite":
            return _read_slowly(invocation)
        database = address.path
    return glance(database)


def _read_slowly(invocation: Invocation) -> list[Glimpse]:
    """As ``glance``, from any database."""
    with invocation.registry() as registry:
        state = registry.read()
    return [
        Glimpse(e.slug, e.model_id, e.repo_id, e.format, e.is_intent, e.pinned, state.port_of(e.slug) or 0)
        for e in state.entries.values()
    ]


def _running(invocation: Invocation) -> tuple[dict[int, Mapping[str, Any]], dict[str, str]]:
    """Slots by port, and the state of each loaded model, as the daemon says; empty without one."""
    client = invocation.daemon_if_running()
    if client is None:
        return {}, {}
    loaded = {entry["model"]: str(entry["state"]) for entry in client.get("/admin/models")["models"]}
    return {row["port"]: row for row in slots_of(client)}, loaded


def _stored(
    model: StoredModel, found: Glimpse | None, slots: Mapping[int, Mapping[str, Any]], loaded: Mapping[str, str]
) -> dict[str, Any]:
    place = _place(found, slots)
    state = loaded.get(model.name) or place["state"] or "stored"
    return {**summary(model), **place, "state": "loaded" if state == "ready" else state}


def _wanted(found: Glimpse, slots: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    place = _place(found, slots)
    return {
        "name": found.model_id,
        "digest": "",
        "size_bytes": 0,
        "format": found.format,
        "source": found.repo_id,
        **place,
        "state": "wanted",
    }


def _place(found: Glimpse | None, slots: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    port = found.port if found else 0
    row = slots.get(port, {})
    return {
        "slug": found.slug if found else "",
        "pinned": bool(found and found.pinned),
        "port": port or None,
        "alias": str(row.get("alias") or ""),
        "state": str(row.get("state") or ""),
    }


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    slot = str(entry["port"] or "-")
    added = entry.get("created_unix_s") or 0
    return (
        str(entry["name"]),
        str(entry["digest"]).removeprefix("sha256:")[:12] or "-",
        format_bytes(entry["size_bytes"]) if entry["size_bytes"] else "-",
        f"{entry['format']} {entry.get('quantization', '')}".strip(),
        f"{entry['state']}, pinned" if entry["pinned"] else str(entry["state"]),
        f"{slot} {entry['alias']}".strip(),
        f"{format_duration(max(time.time() - added, 1))} ago" if added else "-",
    )
