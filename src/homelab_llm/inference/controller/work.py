"""Work: one of the operator's commands under way. A task tells steps; whoever watches may leave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from homelab_llm.core.errors import DaemonUnavailable
from homelab_llm.core.waits import Wait

_STEPS_KEPT = 256


class Work:
    """Runs ``run`` as a task once somebody reads ``steps``.

    While ``safe`` is true the work is called off when its reader leaves; after that it goes on to its end, because
    half of it would be worse.
    """

    def __init__(self, run: Callable[[Work], Awaitable[dict[str, Any]]], keep: set[Work]) -> None:
        self._run = run
        self._keep = keep
        self._steps: deque[dict[str, Any]] = deque(maxlen=_STEPS_KEPT)
        self._told = asyncio.Event()
        self._task: asyncio.Future[dict[str, Any]] | None = None
        self.safe = True

    def tell(self, stage: str, text: str = "", *, done: float = 0.0, place: int = 0, **more: Any) -> None:
        """Add a step; never blocks."""
        self._steps.append({"stage": stage, "done": done, "place": place, "text": text, **more})
        self._told.set()

    def tell_wait(self, wait: Wait, text: str) -> None:
        """A step of the fleet."""
        self.tell(wait.stage if wait.stage != "ready" else "loaded", text, done=wait.done, place=wait.place)

    async def steps(self) -> AsyncIterator[dict[str, Any]]:
        """Every step, at last the result. Raises what the work raised."""
        self._task = task = asyncio.ensure_future(self._run(self))
        self._keep.add(self)
        task.add_done_callback(self._ended)
        try:
            while True:
                while self._steps:
                    yield self._steps.popleft()
                if task.done():
                    break
                self._told.clear()
                await self._told.wait()
            if task.cancelled():
                raise DaemonUnavailable("the daemon is stopping", hint="mlxctl daemon start")
            yield task.result()
        finally:
            if self.safe:
                await self.stop()

    async def stop(self) -> None:
        """Call it off and wait until it has ended; nothing when it has."""
        if self._task is None or self._task.done():
            return
        self._task.cancel()
        await asyncio.wait({self._task})

    def _ended(self, task: asyncio.Future[dict[str, Any]]) -> None:
        self._keep.discard(self)
        self._told.set()
        if not task.cancelled():
            task.exception()  # nobody may be left to hear it
