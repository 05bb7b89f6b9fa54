"""Live: one job in the daemon's memory, with those who watch it and those who need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from homelab_llm.core.jobs import Job, Report, reported
from homelab_llm.ops.jobs.child import Child

EACH_S = 0.2
QUIET_S = 10.0


class Live:
    """A job that is not over, or was not a moment ago.

    ``asked``: somebody ordered it for its own sake; else it ends when nobody holds it any more. ``holders`` wait for
    it. ``deaths`` counts its programs that died without a word. ``cancelling``: it was called off.
    """

    def __init__(self, job: Job, *, asked: bool) -> None:
        self.job = job
        self.asked = asked
        self.holders = 0
        self.deaths = 0
        self.cancelling = False
        self.child: Child | None = None
        self.saved: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._watched = True

    def set(self, job: Job) -> None:
        """It stands differently now."""
        self.job = job
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def told(self, report: Report) -> None:
        """Its program said how far it is."""
        self.set(reported(self.job, report))

    def leave(self) -> None:
        """End every watch: this daemon will not see its end."""
        self._watched = False
        self._changed.set()

    def stay(self) -> None:
        """It sees it after all."""
        self._watched = True

    async def watch(self) -> AsyncIterator[Job]:
        """How it stands now and after each change, several times a second at most, and from time to time in any case.

        Ends when it is over, or with the daemon.
        """
        while True:
            seen, changed = self.job, self._changed
            yield seen
            if seen.over or not self._watched:
                return
            await _either(changed, QUIET_S)
            if not self.job.over and self._watched:
                await asyncio.sleep(EACH_S)


async def _either(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
