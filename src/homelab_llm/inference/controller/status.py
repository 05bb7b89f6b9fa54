"""Status: every slot as a row of plain JSON, and what is not as it should be."""

from __future__ import annotations

import asyncio
from typing import Any

from homelab_llm.core.errors import DatabaseUnavailable
from homelab_llm.core.registry.slots import Slot
from homelab_llm.inference.controller.board import Board
from homelab_llm.inference.controller.drift import Live, Stored, drift_of, state_of
from homelab_llm.inference.controller.seams import Holder
from homelab_llm.inference.controller.slots import Pointer


async def lives(board: Board) -> list[Live]:
    """Every slot as it is now; asks who holds the ports that are not ours, all at once."""
    unbound = set(board.ports.unbound()) & set(board.table.ports)
    asked = sorted(unbound)
    found = dict(zip(asked, await asyncio.gather(*map(board.ports.holder, asked)), strict=True))
    board.point_all()
    return [live_of(board, slot, bound=slot.port not in unbound, holder=found.get(slot.port))
            for slot in board.table.slots]  # fmt: skip


def live_of(board: Board, slot: Slot, *, bound: bool = True, holder: Holder | None = None) -> Live:
    """One slot beside what the registry says about it."""
    known, pointer = board.snapshot.state.assignment(slot.port), board.pointers.of(slot)
    entry = board.snapshot.desired(slot.port)
    row = board.fleet.loaded(pointer.digest) if pointer.digest else None
    turn = board.busy.get(slot.port)
    return Live(
        slot=slot,
        desired=known.desired,
        actual=known.actual,
        serves=pointer.slug if pointer.model is not None else "",
        loaded=row is not None,
        stored=_stored(board, pointer, known.desired),
        proven=bool(known.desired) and board.proven.get(slot.port) == known.desired,
        failure=known.last_failure,
        foreign=known.foreign,
        bound=bound,
        holder=holder,
        busy=turn.kind if turn else "",
        engine=row["engine"] if row else "",
        wanted_engine=entry.engine if entry else "",
    )


def _stored(board: Board, pointer: Pointer, desired: str) -> Stored:
    model = board.stored(board.snapshot.state.entries.get(desired))
    if model is None:
        return "missing"
    same = pointer.slug != desired or pointer.digest in ("", str(model.digest))
    return "same" if same else "newer"


async def status(board: Board) -> dict[str, Any]:
    """``{"slots": [row…], "drift": bool, "registry_drift": words}``."""
    found = await lives(board)
    words = await registry_drift(board)
    rows = [_row(board, live) for live in found]
    drifts = bool(words) or any(row["drift"] for row in rows)
    return {"slots": rows, "drift": drifts, "registry_drift": words, "revision": board.snapshot.state.revision}


async def registry_drift(board: Board) -> str:
    """How the exported file differs from the registry, or that nobody can say."""
    try:
        return await asyncio.to_thread(board.registry.file_drift)
    except DatabaseUnavailable as error:
        return f"the registry cannot be read: {error.message}"


def _row(board: Board, live: Live) -> dict[str, Any]:
    """A slot; ``model`` is the name of what it serves, loaded or not, and ``pid`` None where nothing runs.

    ``actual`` is the slug of what is loaded, or was proven last and is still wanted.
    """
    slot, pointer = live.slot, board.pointers.of(live.slot)
    known = board.snapshot.state.assignment(slot.port)
    entry = board.snapshot.state.entries.get(pointer.slug)
    worker = board.fleet.loaded(pointer.digest) or {} if pointer.digest else {}
    turn = board.busy.get(slot.port)
    holder = live.holder
    return {
        "port": slot.port,
        "alias": slot.alias,
        "address": f"http://{board.host}:{slot.port}/v1",
        "state": state_of(live),
        "desired": known.desired,
        "actual": live.serves if live.loaded else known.actual if known.actual == known.desired else "",
        "last_good": known.last_good,
        "model": pointer.target.model.name if pointer.target is not None else "",
        "changing_to": turn.model if turn else "",
        "engine": worker.get("engine", ""),
        "pid": worker.get("pid"),
        "since_unix_s": worker.get("loaded_unix_s"),
        "memory_bytes": worker.get("memory_bytes", 0),
        "in_flight": worker.get("leases", 0),
        "waiting": worker.get("waiting", 0) or _queued(board, pointer),
        "context_tokens": worker.get("context_tokens", 0),
        "pinned": entry.pinned if entry else False,
        "keep_alive_s": board.snapshot.keep_alive_s(entry) if entry else None,
        "drift": drift_of(live),
        "last_failure": known.last_failure,
        "foreign": {"pid": holder.pid or None, "name": holder.name, "model": holder.model} if holder else None,
    }


def _queued(board: Board, pointer: Pointer) -> int:
    """Requests that wait for a model that has no worker."""
    if pointer.model is None:
        return 0
    return sum(queue["waiting"] for queue in board.fleet.status()["queues"] if queue["model"] == pointer.model.name)


async def verify(board: Board) -> dict[str, Any]:
    """Everything that is not as it should be, with the next command; changes nothing."""
    problems = [
        {"port": live.slot.port, "text": text, "hint": _hint(live)}
        for live in await lives(board)
        if (text := drift_of(live))
    ]
    if words := await registry_drift(board):
        problems.append(
            {"port": 0, "text": words, "hint": "mlxctl registry import takes it over; registry export undoes it"}
        )
    return {"ok": not problems, "problems": problems}


def _hint(live: Live) -> str:
    if live.foreign:
        return f"mlxctl unload {live.slot.port}"
    if not live.bound:
        return f"mlxctl adopt {live.slot.port}" if live.holder and live.holder.models else "mlxctl daemon restart"
    return "mlxctl reconcile --apply"
