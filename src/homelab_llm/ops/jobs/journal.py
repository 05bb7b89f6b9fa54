"""Journal: jobs into the database, off the event loop; what cannot be written now is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Protocol

from homelab_llm.core.errors import DatabaseUnavailable, HomelabError
from homelab_llm.core.jobs import Job, JobState

log = logging.getLogger(__name__)

EVERY_S = 3.0


class Rows(Protocol):
    """Jobs as they are kept; every call blocks (``data.jobs.JobRows``)."""

    def save(self, *changed: Job) -> None: ...
    def find(self, job_id: str) -> Job | None: ...
    def unfinished(self) -> list[Job]: ...
    def recent(self, limit: int, *, states: Collection[JobState] = (), kind: str = "") -> list[Job]: ...


class Journal:
    """The latest of each job, written in turns: progress every few seconds, what is urgent at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._latest: dict[str, Job] = {}
        self._writing = asyncio.Lock()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    def note(self, job: Job, *, urgent: bool = False) -> None:
        """Write it soon."""
        self._latest[job.job_id] = job
        if urgent:
            self._urgent.set()

    async def keep(self, job: Job) -> None:
        """Write a new job now.

        Raises:
            DatabaseUnavailable: it is not kept.
        """
        async with self._writing:
            await asyncio.to_thread(self._rows.save, job)

    async def flush(self) -> bool:
        """Write what was noted; False when that has to wait for the database."""
        async with self._writing:
            taken, self._latest = self._latest, {}
            if not taken:
                return True
            try:
                await asyncio.to_thread(self._rows.save, *taken.values())
            except DatabaseUnavailable as error:
                self._latest = taken | self._latest
                log.warning("jobs wait to be written down", extra={"reason": error.message})
                return False
            except HomelabError as error:
                log.error("jobs could not be written down", extra={"reason": error.message})
            return True

    async def close(self) -> None:
        """Write the last of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._urgent.clear()
            if not await self.flush():
                await asyncio.sleep(EVERY_S)
