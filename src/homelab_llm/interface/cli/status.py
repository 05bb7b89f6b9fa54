"""``mlxctl status``: how the daemon, its slots, its models and its memory are. Starts no daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import homelab_llm
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.output import format_table
from homelab_llm.interface.cli.slots import slot_report

_COLUMNS = 100
_SLOT_HEADERS = ("PORT", "ALIAS", "STATE", "MODEL", "PID", "UP", "MEMORY", "BUSY")
_MODEL_COLUMN = 3
_SHORTEST_MODEL = 16


@verb("status")
def status(invocation: Invocation) -> None:
    """Say how the daemon, its slots, its models and its memory are, and where a slot differs from the registry."""
    client = invocation.daemon_if_running()
    if client is None:
        data = {"running": False, "home": str(invocation.home.root), "version": homelab_llm.__version__}
        invocation.output.result(
            data, lambda: ["the daemon is not running; it starts when a verb needs it", f"home  {data['home']}"]
        )
        return
    found: dict[str, Any] = {**client.get("/admin/status"), **slot_report(client)}
    invocation.output.result({"running": True, **found}, lambda: _lines(found))
    for warning in found.get("warnings") or ():
        invocation.output.warning(warning["text"], warning.get("hint") or "")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - float(found["uptime_s"])))
    yield f"daemon   {found['version']} (pid {found['pid']}), up {format_duration(found['uptime_s'])} since {started}"
    yield f"home     {found['home']}"
    for address in found.get("listeners") or ():
        yield f"serves   http://{address}"
    yield f"memory   {format_bytes(found['used_bytes'])} of {format_bytes(found['budget_bytes'])} for models"
    yield f"waiting  {found.get('waiting', 0)} requests"
    rows = found.get("slots") or ()
    shown = {row.get("model") for row in rows}
    for worker in found.get("workers") or ():
        if worker["model"] not in shown:
            memory = format_bytes(int(worker.get("memory_bytes") or worker.get("footprint_bytes") or 0))
            yield f"model    {worker['model']} on {worker.get('engine', '?')}, {worker['state']}, {memory}"
    if rows:
        yield ""
        yield from slot_lines(rows)
    if words := found.get("registry_drift"):
        yield f"drift    {words}"
    if found.get("registry_drift"):
        yield f"drift    registry: {found['registry_drift']}"


def slot_lines(rows: Sequence[Mapping[str, Any]], *, now_s: float | None = None) -> Iterator[str]:
    """A table of at most 100 columns; below it what a slot does that it shall not, and why the last load failed."""
    now = time.time() if now_s is None else now_s
    cells = [_cells(row, now) for row in rows]
    widths = [max(len(row[i]) for row in (_SLOT_HEADERS, *cells)) for i in range(len(_SLOT_HEADERS))]
    others = sum(width + 2 for i, width in enumerate(widths) if i != _MODEL_COLUMN)
    room = max(_SHORTEST_MODEL, _COLUMNS - others)
    yield from format_table(
        _SLOT_HEADERS, [tuple(_cut(c, room) if i == _MODEL_COLUMN else c for i, c in enumerate(row)) for row in cells]
    )
    for row in rows:
        if row.get("drift"):
            yield f"drift    {row['port']}: {row['drift']}"
        if row.get("last_failure"):
            yield f"failed   {row['port']}: {' '.join(str(row['last_failure']).split())}"


def _cells(row: Mapping[str, Any], now_s: float) -> tuple[str, ...]:
    foreign = row.get("foreign") or {}
    since = float(row.get("since_unix_s") or 0)
    memory = int(row.get("memory_bytes") or 0)
    running, waiting = int(row.get("in_flight") or 0), int(row.get("waiting") or 0)
    name = row.get("desired") or row.get("model") or foreign.get("model") or foreign.get("name") or "-"
    if (coming := row.get("changing_to")) and coming != name:
        name = coming if name == "-" else f"{name} → {coming}"
    return (
        str(row["port"]),
        str(row.get("alias") or "-"),
        str(row.get("state") or "?"),
        f"{name} (pinned)" if row.get("pinned") else str(name),
        str(row.get("pid") or foreign.get("pid") or "-"),
        format_duration(max(now_s - since, 0)) if since else "-",
        format_bytes(memory) if memory else "-",
        f"{running}+{waiting}" if waiting else str(running) if row.get("desired") else "-",
    )


def _cut(text: str, width: int) -> str:
    """``text`` in ``width`` columns: the middle of a long name says least."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
