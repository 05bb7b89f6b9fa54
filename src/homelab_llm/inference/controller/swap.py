"""Swap: another model behind a slot without a failed request.

When both fit, the new one is loaded first and the pointer flips to it when it answers. When they do not, the pointer
flips first, so that requests wait for the new one; the old one ends after those that it has, and then the new one is
loaded. What fails is put back. The registry hears of a model only after it has answered.

    both fit      load → flip → serve (registry) → drain and unload the old one
    they do not   flip → drain and unload the old one → load → serve (registry)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from secrets import token_hex

from homelab_llm.core.errors import DaemonUnavailable, HomelabError, InsufficientMemory, LoadFailed, SlotInUse
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.slots import Slot
from homelab_llm.core.registry.state import RegistryState, assign, fail, serve
from homelab_llm.core.units import format_bytes
from homelab_llm.inference.controller.board import Board, Turn
from homelab_llm.inference.controller.slots import Pointer
from homelab_llm.inference.controller.snapshot import FOR_EVER_S
from homelab_llm.inference.controller.work import Work

_DRAIN_S = 30.0
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Change:
    """One slot gets one model. ``before`` is where it pointed; ``force``: it may come from another slot."""

    slot: Slot
    entry: Entry
    model: StoredModel
    before: Pointer
    force: bool

    @property
    def leaving(self) -> StoredModel | None:
        """The other model that was put on the slot; the default model belongs to none."""
        same = self.before.digest == str(self.model.digest)
        return None if same or not self.before.slug else self.before.model


async def bring(board: Board, work: Work, turn: Turn, change: Change) -> None:
    """Make the slot serve the model; on failure it serves what it did, and the registry says why.

    Raises:
        HomelabError, OSError: what failed. After the registry took the model in, only the end of the old one can.
    """
    old = change.leaving
    there = old is not None and board.fleet.loaded(str(old.digest)) is not None
    fresh = board.fleet.loaded(str(change.model.digest)) is None
    try:
        beside = old is None or not there or _both_fit(board, change, old)
        if beside:
            await _warm(board, work, change)
        elif old is not None:
            await _cold(board, work, change, old)
        failpoint("controller.before_serve")
        await board.change(partial(_served, change=change, now_s=board.clock.unix_s()))
    except (HomelabError, OSError) as error:
        await _put_back(board, turn, change, error)
        await _tidy(board, change, old_again=there, new_away=fresh)
        raise
    board.proven[change.slot.port] = change.entry.slug
    turn.final.set()
    failpoint("controller.after_serve")
    if beside and old is not None:
        await retire(board, work, old)


async def _warm(board: Board, work: Work, change: Change) -> None:
    was_loaded = board.fleet.loaded(str(change.model.digest)) is not None
    try:
        await _load(board, work, change)
    except asyncio.CancelledError:
        if not was_loaded:
            await _call_off(board, change.model)
        raise
    work.safe = False
    failpoint("controller.before_flip")
    board.flip(change.slot, change.entry, change.model)


async def _cold(board: Board, work: Work, change: Change, old: StoredModel) -> None:
    work.safe = False
    failpoint("controller.before_flip")
    board.flip(change.slot, change.entry, change.model)
    await retire(board, work, old)
    await _load(board, work, change)


async def _load(board: Board, work: Work, change: Change) -> None:
    """Load and prove: the worker that is ready serves exactly this model.

    Raises:
        LoadFailed: it was gone as soon as it was ready.
    """
    failpoint("controller.before_load")
    lifetime_s = change.entry.keep_alive_s or FOR_EVER_S  # 0 ends it with its first request, not before
    request_id = f"slot-{change.slot.port}-{token_hex(4)}"
    name = change.model.name
    steps = board.fleet.load(change.model, request_id, keep_alive_s=lifetime_s)
    async for wait in steps:
        work.tell_wait(wait, name)
    failpoint("controller.after_load")
    if board.fleet.loaded(str(change.model.digest)) is None:
        raise LoadFailed(f"{name} was gone as soon as it was ready", hint="mlxctl logs", model=name)


def _served(state: RegistryState, *, change: Change, now_s: float) -> RegistryState:
    port, slug = change.slot.port, change.entry.slug
    return serve(assign(state, port, slug, now_s, force=change.force), port, slug, now_s)


async def retire(board: Board, work: Work | None, old: StoredModel) -> bool:
    """End a model that its slot does not serve any more, after all requests that came for it.

    Returns:
        False when it stays because another slot serves it, or was not loaded.
    """
    digest = str(old.digest)
    if board.pointers.uses(digest):
        return False
    if work is not None:
        work.tell("draining", old.name)
    patience_s = board.clock.monotonic_s() + _DRAIN_S
    # Those that wait for it would start it again. The fleet tells no end of a queue, so it is looked at.
    while _is_waited_for(board, digest) and board.clock.monotonic_s() < patience_s:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    failpoint("controller.before_unload")
    ended = await board.fleet.unload(old)
    failpoint("controller.after_unload")
    return ended


def _is_waited_for(board: Board, digest: str) -> bool:
    row = board.fleet.loaded(digest)
    return row is not None and row["waiting"] > 0


async def _call_off(board: Board, model: StoredModel) -> None:
    """End a load for which nobody waits any more."""
    digest = str(model.digest)
    rows = [row for row in board.fleet.status()["workers"] if row["digest"] == digest]
    if rows and all(row["state"] == "loading" and not row["waiting"] for row in rows):
        await board.fleet.unload(model)


async def _put_back(board: Board, turn: Turn, change: Change, error: HomelabError | OSError) -> None:
    """The slot points to what it served, and the failure is written down; a refusal and the daemon's end are none."""
    slot = change.slot
    board.pointers.put(change.before)
    turn.final.set()
    board.tell_failure("swap_failed" if change.leaving else "load_failed", slot, change.model.name, error)
    if isinstance(error, (SlotInUse, DaemonUnavailable)):
        return
    try:
        await board.change(partial(fail, port=slot.port, reason=str(error), now_s=board.clock.unix_s()))
    except (HomelabError, OSError) as second:
        board.tell_failure("record_failed", slot, change.model.name, second)


async def _tidy(board: Board, change: Change, *, old_again: bool, new_away: bool) -> None:
    """After a failure the old model is loaded again, and the new one does not stay; does its best."""
    old = change.leaving
    try:
        if new_away and not board.pointers.uses(str(change.model.digest)):
            await board.fleet.unload(change.model)
        if old is not None and old_again and board.fleet.loaded(str(old.digest)) is None:
            async for _ in board.fleet.load(old, f"slot-{change.slot.port}-{token_hex(4)}"):
                pass
    except (HomelabError, OSError) as error:
        board.tell_failure("restore_failed", change.slot, old.name if old else "", error)


def _both_fit(board: Board, change: Change, old: StoredModel) -> bool:
    """Whether the new model fits beside the old one and those of the other slots.

    Raises:
        EngineUnavailable, UnsupportedRequest: it cannot be run here at all.
        InsufficientMemory: not even without the old one; with all numbers.
    """
    if board.fleet.loaded(str(change.model.digest)):
        return True
    numbers = board.fleet.fit(change.model)
    kept = {pointer.model.name for pointer in board.pointers if pointer.model} | {old.name}
    if numbers["fits"] and not kept & {*numbers["evicts"], *numbers.get("waits_for", ())}:
        return True
    stays_bytes = sum(
        int(row["footprint_bytes"])
        for row in board.fleet.status()["workers"]
        if row["digest"] != str(old.digest) and board.pinned(row["digest"])
    )
    room_bytes = int(numbers["budget_bytes"]) - stays_bytes
    if numbers["needed_bytes"] > room_bytes:
        raise InsufficientMemory(
            f"{change.model.name} needs {format_bytes(numbers['needed_bytes'])}; without {old.name} there would be "
            f"{format_bytes(room_bytes)}",
            hint=f"mlxctl fit {change.model.name}",
            needed_bytes=int(numbers["needed_bytes"]),
            free_bytes=room_bytes,
            budget_bytes=int(numbers["budget_bytes"]),
            model=change.model.name,
        )
    return False
