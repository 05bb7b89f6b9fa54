"""Reconciling: carries out what ``reconcile`` decided, one action after the other; one that fails stops no other."""

from __future__ import annotations

from functools import partial
from typing import Any

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.slots import Slot
from homelab_llm.core.registry.state import RegistryState, clear, serve
from homelab_llm.inference.controller.board import Board
from homelab_llm.inference.controller.loading import place, vacate
from homelab_llm.inference.controller.obtaining import obtain
from homelab_llm.inference.controller.reconcile import Action, actions
from homelab_llm.inference.controller.status import live_of, lives
from homelab_llm.inference.controller.work import Work


async def reconcile(board: Board, work: Work, *, apply: bool, gently: bool = False) -> dict[str, Any]:
    """Tell every action, and carry it out with ``apply``.

    Args:
        gently: a model that fits only without another slot's is left to its first request.

    Returns:
        The last step: the ``actions`` with what came of them, how many ``failed``, and how many would be ``left``.
    """
    found = actions(await lives(board))
    told: list[dict[str, Any]] = []
    for number, action in enumerate(found):
        row: dict[str, Any] = {"port": action.port, "alias": action.alias, "action": action.kind, "model": action.model,
               "why": action.why, "text": action.text}  # fmt: skip
        told.append(row)
        work.tell("applying" if apply else "would", action.text, done=number / len(found), action=dict(row))
        if not apply:
            continue
        try:
            result = await _carry_out(board, work, action, gently=gently)
            row["text"] = f"{action.text}: {result}"
        except (HomelabError, OSError) as error:
            row["text"] = f"{action.text}: failed: {error}"
            row["error"] = (
                error.as_dict() if isinstance(error, HomelabError) else {"code": "os_error", "message": str(error)}
            )
        work.tell("failed" if "error" in row else "applied", row["text"], done=(number + 1) / len(found))
    failures = sum("error" in row for row in told)
    return {
        "stage": "done",
        "done": 1.0,
        "place": 0,
        "text": _summary(len(found), failures, apply=apply),
        "applied": apply,
        "actions": told,
        "failed": failures,
        "left": len(actions(await lives(board))) if apply else len(found),
    }


def _summary(count: int, failures: int, *, apply: bool) -> str:
    if not count:
        return "everything is as the registry says"
    if not apply:
        return f"{count} to do; mlxctl reconcile --apply does it"
    return f"{count - failures} done, {failures} failed" if failures else f"{count} done"


async def _carry_out(board: Board, work: Work, action: Action, *, gently: bool) -> str:
    slot = board.table.find(action.port)
    pulled = action.kind == "pull"
    if pulled:
        await obtain(board, work, action.model)
    async with board.hold(slot.port):
        now = actions([live_of(board, slot)])
        if not now or (not pulled and (now[0].kind, now[0].model) != (action.kind, action.model)):
            return "pulled" if pulled else "somebody else did it"
        if action.kind == "record":
            await board.change(partial(_recorded, slot=slot, slug=action.model, now_s=board.clock.unix_s()))
            return "recorded"
        if action.kind == "unload":
            await vacate(board, work, slot)
            return "unloaded"
        return await _serve(board, work, slot, action, gently=gently)


async def _serve(board: Board, work: Work, slot: Slot, action: Action, *, gently: bool) -> str:
    entry = board.snapshot.state.entry(action.model)
    model = board.shelf.resolve(entry.model_id)
    if gently and action.kind == "load" and (names := _would_go(board, slot, model.name)):
        return f"left to its first request, for {', '.join(names)} would have to go"
    if action.kind == "reload":
        await board.fleet.unload(model)
    result = await place(board, work, slot, entry, model, force=True)
    return str(result["text"])


def _would_go(board: Board, slot: Slot, name: str) -> list[str]:
    """Models of other slots that would be evicted for this one, or that it would wait for."""
    numbers = board.fleet.fit(board.shelf.resolve(name))
    others = {p.model.name for p in board.pointers if p.model is not None and p.slot != slot}
    return sorted(others & {*numbers["evicts"], *numbers.get("waits_for", ())})


def _recorded(state: RegistryState, *, slot: Slot, slug: str, now_s: float) -> RegistryState:
    """What answers is what the slot serves; when the operator wants another model meanwhile, nothing changes."""
    if state.assignment(slot.port).desired != slug:
        return state
    return serve(state, slot.port, slug, now_s) if slug else clear(state, slot.port, now_s)
