"""Loading: the verbs that put models into slots and take them out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Literal

from homelab_llm.core.errors import HomelabError, SlotInUse
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.slots import Slot
from homelab_llm.core.registry.state import assign, clear
from homelab_llm.inference.controller.board import Board
from homelab_llm.inference.controller.obtaining import obtain
from homelab_llm.inference.controller.slots import Pointer
from homelab_llm.inference.controller.swap import Change, bring, retire
from homelab_llm.inference.controller.work import Work

AUTO = "auto"


async def load(board: Board, work: Work, model: str, where: str, *, force: bool) -> dict[str, Any]:
    """Put a model into a slot; ``auto`` takes the one it is on, else the first free one.

    Raises:
        SlotNotFound, SlotInUse: the slot; nothing was pulled.
        HomelabError: what failed; the slot serves what it did.
    """
    slot = None if where == AUTO else board.table.find(where)
    if slot is not None:
        await _check_port(board, slot, force=force)
        _check(board, slot, board.snapshot.find(model), force=force)
    entry, stored = await obtain(board, work, model)
    while True:
        chosen = slot or _free_slot(board, entry)
        other = board.snapshot.ports.get(entry.slug, chosen.port)
        async with board.hold(chosen.port, other):
            if board.snapshot.ports.get(entry.slug, chosen.port) not in (chosen.port, other):
                continue  # it was moved while we waited
            if slot is None and not _is_for(board, chosen, entry):
                continue  # somebody else was faster
            _check(board, chosen, entry, force=force)
            return await place(board, work, chosen, entry, stored, force=force)


async def swap(board: Board, work: Work, where: str, model: str) -> dict[str, Any]:
    """Put another model behind a slot; one that is there already is left alone.

    Raises:
        SlotInUse: the model is on another slot.
    """
    slot = board.table.find(where)
    await _check_port(board, slot, force=False)
    _check_elsewhere(board, slot, board.snapshot.find(model))
    entry, stored = await obtain(board, work, model)
    async with board.hold(slot.port):
        _check_elsewhere(board, slot, entry)
        return await place(board, work, slot, entry, stored, force=True)


async def place(
    board: Board, work: Work, slot: Slot, entry: Entry, model: StoredModel, *, force: bool
) -> dict[str, Any]:
    """Make a slot that is held serve a model, and say what came of it."""
    before = board.pointers.of(slot)
    swapping = before.model is not None and before.digest != str(model.digest) and before.slug != ""
    kind: Literal["loading", "swapping"] = "swapping" if swapping else "loading"
    known = board.snapshot.state.assignment(slot.port)
    other = board.snapshot.ports.get(entry.slug, slot.port)
    serving = board.fleet.loaded(str(model.digest)) is not None and before.digest == str(model.digest)
    if serving and known.desired == known.actual == entry.slug and not known.last_failure:
        return _result(board, slot, entry, model, changed=False)
    work.tell(kind, f"{model.name} on {slot.port} ({slot.alias})")
    board.tell(
        "swap_started" if swapping else "load_started", f"{slot.alias}: {model.name}", slot=slot, model=model.name
    )
    started_s = board.clock.monotonic_s()
    async with board.turn(slot, kind, model.name) as turn:
        await bring(board, work, turn, Change(slot, entry, model, before, force=force))
    took_s = round(board.clock.monotonic_s() - started_s, 3)
    board.tell("swapped" if swapping else "assigned", f"{slot.alias} serves {model.name}", slot=slot,
               model=model.name, took_s=took_s, before=before.slug)  # fmt: skip
    if other != slot.port and other in board.table.ports:
        left = board.table.find(other)
        board.tell("unassigned", f"{left.alias} serves nothing", slot=left, model=model.name)
    return _result(board, slot, entry, model, changed=True)


async def unload(board: Board, where: str) -> dict[str, Any]:
    """Empty a slot, or clear a port that is no slot any more.

    Raises:
        SlotNotFound: neither is there.
    """
    if where not in map(str, _strays(board)):
        return await _empty(board, board.table.find(where))
    cleared = board.snapshot.state.assignment(int(where)).desired
    await board.change(partial(clear, port=int(where), now_s=board.clock.unix_s()))
    return {"port": int(where), "alias": "", "model": "", "unloaded": False, "cleared": cleared}


async def _empty(board: Board, slot: Slot) -> dict[str, Any]:
    """Its model's process is proven ended when it returns. The assignment is cleared also when nothing ran."""
    async with board.hold(slot.port):
        pointer, known = board.pointers.of(slot), board.snapshot.state.assignment(slot.port)
        ours = pointer.model if pointer.slug else None
        ended = await vacate(board, None, slot)
        if known.desired or known.foreign or ended:
            name = ours.name if ours else known.foreign or known.desired
            board.tell("unassigned", f"{slot.alias} serves nothing", slot=slot, model=name)
    name = ours.name if ours is not None else known.foreign
    return {"port": slot.port, "alias": slot.alias, "model": name, "unloaded": ended, "cleared": known.desired}


async def vacate(board: Board, work: Work | None, slot: Slot) -> bool:
    """Clear a slot that is held, and end its model; False when there was none to end. The default model stays."""
    pointer = board.pointers.of(slot)
    async with board.turn(slot, "swapping", ""):
        board.pointers.put(Pointer(slot))
        await board.change(partial(clear, port=slot.port, now_s=board.clock.unix_s()))
        board.proven.pop(slot.port, None)
        return pointer.model is not None and bool(pointer.slug) and await retire(board, work, pointer.model)


async def unload_all(board: Board) -> dict[str, Any]:
    """Empty every slot, and clear assignments of ports that are no slots any more."""
    results = await asyncio.gather(*(_empty(board, slot) for slot in board.table.slots), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, HomelabError):
            raise result
    strays = _strays(board)
    for port in strays:
        await board.change(partial(clear, port=port, now_s=board.clock.unix_s()))
    failed = [result.as_dict() for result in results if isinstance(result, HomelabError)]
    rows = [row for row in results if isinstance(row, dict) and (row["unloaded"] or row["cleared"] or row["model"])]
    return {"slots": rows, "cleared_ports": strays, "failed": failed}


def _strays(board: Board) -> list[int]:
    """Ports that the registry assigns and that are no slots by the settings."""
    known = board.snapshot.state.assignments.items()
    return [port for port, a in known if port not in board.table.ports and (a.desired or a.actual or a.foreign)]


async def _check_port(board: Board, slot: Slot, *, force: bool) -> None:
    """A port that another process holds is left to it, unless forced: then only the alias serves the model."""
    if force or slot.port not in board.ports.unbound():
        return
    holder = await board.ports.holder(slot.port)
    if holder is not None:
        raise SlotInUse(
            f"port {slot.port} is held by process {holder.pid or '?'} ({holder.name or 'not ours'})",
            hint=f"mlxctl adopt {slot.port}; with --force the model is served by the name {slot.alias} only",
            port=slot.port,
            model=holder.model or None,
        )


def _check(board: Board, slot: Slot, entry: Entry | None, *, force: bool) -> None:
    if force:
        return
    if entry is not None:
        assign(board.snapshot.state, slot.port, entry.slug, 0.0)
        return
    desired = board.snapshot.state.assignment(slot.port).desired
    if desired:
        hint = f"mlxctl load MODEL {slot.port} --force swaps it; mlxctl unload {slot.port} empties it"
        raise SlotInUse(f"port {slot.port} serves {desired}", hint=hint, port=slot.port, model=desired)


def _check_elsewhere(board: Board, slot: Slot, entry: Entry | None) -> None:
    other = board.snapshot.ports.get(entry.slug, slot.port) if entry else slot.port
    if entry is not None and other != slot.port:
        raise SlotInUse(f"{entry.slug} is on port {other}", hint=f"mlxctl unload {other}", port=other, model=entry.slug)


def _free_slot(board: Board, entry: Entry) -> Slot:
    """The slot the model is on, else the first free one; one that nobody changes right now before others.

    Raises:
        SlotInUse: none is free.
    """
    if (port := board.snapshot.ports.get(entry.slug)) in board.table.ports:
        return board.table.find(str(port))
    unbound = set(board.ports.unbound())
    free = [slot for slot in board.table.slots if _is_free(board, slot) and slot.port not in unbound]
    if not free:
        hint = "mlxctl status; mlxctl unload PORT empties one"
        raise SlotInUse("no slot is free" if board.table.slots else "this node has no slots", hint=hint)
    return min(free, key=lambda slot: (board.held(slot.port), slot.port))


def _is_free(board: Board, slot: Slot) -> bool:
    known = board.snapshot.state.assignment(slot.port)
    return not known.desired and not known.foreign


def _is_for(board: Board, slot: Slot, entry: Entry) -> bool:
    return board.snapshot.ports.get(entry.slug) == slot.port or (
        entry.slug not in board.snapshot.ports and _is_free(board, slot)
    )


def _result(board: Board, slot: Slot, entry: Entry, model: StoredModel, *, changed: bool) -> dict[str, Any]:
    row = board.fleet.loaded(str(model.digest)) or {}
    return {
        "stage": "ready",
        "done": 1.0,
        "place": 0,
        "text": f"{model.name} answers on {slot.port} ({slot.alias})",
        "port": slot.port,
        "alias": slot.alias,
        "slug": entry.slug,
        "model": model.name,
        "engine": row.get("engine", ""),
        "context_tokens": row.get("context_tokens", 0),
        "memory_bytes": row.get("memory_bytes", 0),
        "changed": changed,
    }
