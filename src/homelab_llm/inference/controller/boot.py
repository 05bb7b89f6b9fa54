"""Boot and watch: the registry alone decides what starts; afterwards its changes are noticed."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import Any

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.state import serve
from homelab_llm.inference.controller.board import Board, Kind
from homelab_llm.inference.controller.drift import Live, drift_of
from homelab_llm.inference.controller.reconciling import reconcile
from homelab_llm.inference.controller.status import live_of, lives, registry_drift
from homelab_llm.inference.controller.work import Work

WATCH_S = 5.0
_DRIFT_EVERY = 12  # looks: foreign servers are asked and the exported file is read, which is not for nothing


async def boot(board: Board, work: Work, *, auto_load: bool) -> dict[str, Any]:
    """Match adopted workers to slots, then load what the registry assigns, one model at a time.

    A model that fits only in place of another slot's is left to its first request.
    """
    await recognise(board)
    if not auto_load:
        return {}
    result = await reconcile(board, work, apply=True, gently=True)
    for row in result["actions"]:
        if "error" in row:
            slot = board.table.find(row["port"])
            board.tell("boot_failed", row["text"], slot=slot, level="error", code=row["error"]["code"])
    return result


async def recognise(board: Board) -> None:
    """Write down for each slot whose model answers by now that it does: adopted workers, loads by a request."""
    for slot in board.table.slots:
        live = live_of(board, slot)
        if live.busy or not live.desired or not live.loaded or live.serves != live.desired:
            continue
        board.proven[slot.port] = live.desired
        if live.actual != live.desired or live.failure:
            await board.change(partial(serve, port=slot.port, slug=live.desired, now_s=board.clock.unix_s()))


class Watch:
    """Notices what changed outside: the registry by another process, workers, files; tells drift once per change."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told: dict[int, str] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Look again and again; ends when it is cancelled. What fails, the database above all, is tried again."""
        for number in count(1):
            await asyncio.sleep(WATCH_S)
            try:
                if await self._changed() or number % _DRIFT_EVERY == 0:
                    await self.look()
                self._trouble = ""
            except (HomelabError, OSError) as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    self._board.tell("registry_unreadable", self._trouble, level="warning")

    async def _changed(self) -> bool:
        """Take over the registry when another process changed it; cheap when none did."""
        board = self._board
        changed = await asyncio.to_thread(board.registry.revision) != board.snapshot.state.revision
        if changed:
            await board.read()
        board.point_all()
        await recognise(board)
        return changed

    async def look(self) -> None:
        """Tell what drifts, and what does not any more."""
        board = self._board
        board.point_all()
        await recognise(board)
        for live in await lives(board):
            self._tell(live, drift_of(live))
        self._tell(None, await registry_drift(board))

    def _tell(self, live: Live | None, words: str) -> None:
        port = live.slot.port if live else 0
        before = self._told.get(port, "")
        self._told[port] = words
        if words == before:
            return
        slot = live.slot if live else None
        kind: Kind = "foreign" if words and live is not None and live.holder is not None else "drift"
        text = f"{slot.alias}: {words}" if slot and words else words or "all is as the registry says again"
        self._board.tell(kind, text, slot=slot, level="warning" if words else "info")


async def read_or_tell(board: Board) -> None:
    """The first read; without a registry the daemon serves its models by their names all the same."""
    try:
        await board.read()
    except HomelabError as error:
        board.tell("registry_unreadable", error.message, level="error", code=error.code)
