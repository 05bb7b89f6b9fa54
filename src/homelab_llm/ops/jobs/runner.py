"""Runner: jobs of one daemon. Asked for once, they are done, whatever becomes of who asked or of this process.

Lives on one event loop; the work is done by programs (``child.py``), so it takes neither time nor memory from requests.
Meets ``gateway.seams.Jobs`` and ``node.JobRunner`` by its shape.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from homelab_llm.core.errors import (
    Cancelled,
    DaemonUnavailable,
    HandedOver,
    JobFailed,
    JobNotFound,
    QueueFull,
    error_of,
)
from homelab_llm.core.events import Event, Level
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.jobs import CANCELLING, Job, JobState, Report, key_of, moved
from homelab_llm.gateway.job_kinds import parameters_of
from homelab_llm.ops.jobs.child import Child, Outcome
from homelab_llm.ops.jobs.journal import Journal, Rows
from homelab_llm.ops.jobs.kinds import KINDS
from homelab_llm.ops.jobs.live import Live

log = logging.getLogger(__name__)

FAILPOINTS = ("jobs.kept", "jobs.begun", "jobs.ended")
_REMEMBERED = 64  # jobs that are over; the others are in the database
_MOST_WAITING = 1000


class Runner:
    """At most ``limit`` programs at once, first come first served.

    Args:
        order: what a program needs besides its kind and parameters: ``{"home", "settings"}``.
        publish: gets every event; must not block.
        done: told each job that succeeded, before anybody else hears of it.
    """

    def __init__(
        self,
        rows: Rows,
        order: Mapping[str, Any],
        *,
        limit: int,
        publish: Callable[[Event], None],
        unix_s: Callable[[], float],
        host_id: str = "",
        done: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:
        self._rows = rows
        self._order = dict(order)
        self._limit = limit
        self._publish = publish
        self._unix_s = unix_s
        self._host_id = host_id
        self._done = done
        self._journal = Journal(rows)
        self._live: dict[str, Live] = {}
        self._by_key: dict[str, Live] = {}
        self._queue: deque[Live] = deque()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._over: deque[str] = deque()
        self._paused = True
        self._away = False

    # --- life ---

    async def start(self) -> None:
        """Go on with what an earlier daemon left: running ones first, as they were asked for."""
        for job in await asyncio.to_thread(self._rows.unfinished):
            live = self._add(job, asked=True)
            if job.stage == CANCELLING or job.kind not in KINDS:
                self._set(live, moved(job, "cancelled", self._unix_s()))
                continue
            if job.state == "running":
                self._set(live, moved(job, "queued", self._unix_s()))
            self._queue.append(live)
        self._journal.open()
        self.resume()

    async def pause(self) -> None:
        """Begin nothing any more and end every program; its job waits as if its turn had not come yet.

        What the programs had is kept: the next daemon, or ``resume``, goes on from there.
        """
        self._paused = True
        for live in self._live.values():
            if live.child is not None:
                live.child.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await self._journal.flush()

    def hand_over(self) -> None:
        """Nothing is asked of this one any more; who watches is let go. After ``pause``."""
        self._away = True
        for live in self._live.values():
            live.leave()

    async def settled(self) -> None:
        """After ``hand_over``: what was asked for until then is in the database."""
        waiting = [live.saved for live in self._live.values() if live.saved is not None]
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._journal.flush()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._paused = self._away = False
        for live in self._live.values():
            live.stay()
        self._pump()

    async def close(self) -> None:
        """End every program; unfinished jobs go on when a daemon starts again."""
        self.hand_over()
        await self.pause()
        await self._journal.close()

    # --- gateway.seams.Jobs ---

    async def submit(self, kind: str, parameters: Mapping[str, Any], *, hold: bool = False) -> Job:
        """Ask for a job; the same work that is not over yet is joined. It is kept when this returns.

        Args:
            hold: for as long as the caller needs it, until ``let_go``; else for its own sake.

        Raises:
            InvalidInput: no such kind, or parameters it does not take.
            QueueFull: too many wait. DatabaseUnavailable: it could not be kept.
        """
        checked = parameters_of(kind, dict(parameters))
        if self._away:
            raise HandedOver("another daemon does the jobs now")
        live = self._by_key.get(key_of(kind, checked))
        if live is None:
            self._check_room()
            job = Job(_new_id(), kind, checked, created_unix_s=self._unix_s(), host_id=self._host_id)
            live = self._add(job, asked=not hold)
            live.saved = asyncio.ensure_future(self._keep(live))
        live.asked = live.asked or not hold
        live.holders += hold
        try:
            if live.saved is not None:
                await asyncio.shield(live.saved)
        except BaseException:
            if hold:
                self.let_go(live.job.job_id)
            raise
        return live.job

    async def find(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound: there is none, or it ended long ago.
        """
        if live := self._live.get(job_id):
            return live.job
        found = await asyncio.to_thread(self._rows.find, job_id) if job_id.isascii() else None
        if found is None:
            raise JobNotFound(f"no job has the id {job_id[:40]!r}", hint="mlxctl jobs --all", job_id=job_id[:40])
        return found

    async def recent(self, limit: int, *, states: Collection[JobState] = (), kind: str = "") -> list[Job]:
        """The newest ones, newest first."""
        await self._journal.flush()
        kept = await asyncio.to_thread(lambda: self._rows.recent(limit, states=states, kind=kind))
        return [self._live[job.job_id].job if job.job_id in self._live else job for job in kept]

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """How a job stands, until it is over; a watch that ends before that was ended with the daemon.

        Raises:
            JobNotFound: as ``find``.
        """
        live = self._live.get(job_id)
        if live is None:
            yield await self.find(job_id)
            return
        async for job in live.watch():
            yield job

    async def cancel(self, job_id: str) -> Job:
        """Call a job off and give it as it then is, its program ended; one that is over stays what it is.

        Raises:
            JobNotFound: as ``find``.
        """
        live = self._live.get(job_id)
        if live is None:
            return await self.find(job_id)
        self._call_off(live)
        if task := self._tasks.get(job_id):
            await asyncio.wait({task})
        await self._journal.flush()
        return live.job

    def let_go(self, job_id: str) -> None:
        """The caller of ``submit`` with ``hold`` does not need it any more; nobody else does: it is called off."""
        live = self._live.get(job_id)
        if live is not None:
            live.holders -= 1
            if live.holders <= 0 and not live.asked and not self._paused:
                self._call_off(live)

    async def pull(self, reference: str, progress: Callable[[str, float], None]) -> str:
        """Bring a model into the store by a job and give its name there; cancelling the call lets go of it.

        Raises:
            HomelabError: what the pull ended with.
            Cancelled: somebody called it off. DaemonUnavailable: this daemon is ending.
        """
        job = await self.submit("pull", {"model": reference}, hold=True)
        try:
            async for seen in self.watch(job.job_id):
                job = seen
                progress(job.stage or job.state, job.done_bytes / job.total_bytes if job.total_bytes else 0.0)
        finally:
            self.let_go(job.job_id)
        if job.state == "succeeded":
            return str(job.result["model"])
        if job.error is not None:
            raise error_of(job.error)
        if job.state == "cancelled":
            raise Cancelled(f"pulling {reference} was called off; what was received is kept", job_id=job.job_id)
        raise DaemonUnavailable("the daemon is stopping", hint="mlxctl daemon start")

    # --- inside ---

    def _check_room(self) -> None:
        if len(self._queue) >= _MOST_WAITING:
            raise QueueFull(f"{len(self._queue)} jobs wait already", hint="mlxctl jobs", waiting=len(self._queue))

    def _add(self, job: Job, *, asked: bool) -> Live:
        live = self._live[job.job_id] = self._by_key[job.key] = Live(job, asked=asked)
        return live

    async def _keep(self, live: Live) -> None:
        try:
            await self._journal.keep(live.job)
        except BaseException:
            self._forget(live)
            raise
        live.saved = None
        failpoint("jobs.kept")
        self._tell("job_queued", live.job, f"{live.job.kind} {live.job.subject}")
        if not live.job.over:
            self._queue.append(live)
            self._pump()

    def _pump(self) -> None:
        while self._queue and len(self._tasks) < self._limit and not self._paused:
            live = self._queue.popleft()
            self._set(live, moved(live.job, "running", self._unix_s()))
            task = self._tasks[live.job.job_id] = asyncio.create_task(self._work(live))
            task.add_done_callback(partial(self._ended, live))

    def _ended(self, live: Live, task: asyncio.Task[None]) -> None:
        del self._tasks[live.job.job_id]
        if not task.cancelled() and (defect := task.exception()):
            log.error("a job failed by a defect", extra={"job_id": live.job.job_id}, exc_info=defect)
            if not live.job.over:
                self._fail(live, JobFailed("the daemon failed at it", hint="mlxctl logs daemon").as_dict())
        self._pump()

    async def _work(self, live: Live) -> None:
        """Run one program for a job and take what came of it."""
        job = live.job
        self._tell("job_started", job, f"{job.kind} {job.subject}")
        order = {**self._order, "kind": job.kind, "parameters": dict(job.parameters)}
        live.child = Child(order, lambda report: self._report(live, report))
        if live.cancelling or self._paused:
            live.child.stop()
        failpoint("jobs.begun")
        try:
            outcome = await live.child.run()
        except OSError as error:
            outcome = Outcome(error=JobFailed(f"its program cannot be started: {error}").as_dict())
        finally:
            live.child = None
        failpoint("jobs.ended")
        await self._take(live, outcome)

    def _report(self, live: Live, report: Report) -> None:
        live.told(report)
        self._journal.note(live.job)

    async def _take(self, live: Live, outcome: Outcome) -> None:
        now_s = self._unix_s()
        if outcome.result is not None:
            job = moved(live.job, "succeeded", now_s, result=outcome.result, stage="done")
            if self._done is not None:
                await self._done(job)
            self._set(live, job)
            self._tell("job_succeeded", job, f"{job.kind} {job.subject}", took_s=_took_s(job))
        elif live.cancelling:
            self._end_cancelled(live)
        elif self._paused:
            self._set(live, moved(live.job, "queued", now_s))
            self._queue.appendleft(live)
        elif outcome.error is not None:
            self._fail(live, outcome.error)
        elif KINDS[live.job.kind].again and not live.deaths:
            live.deaths += 1
            log.warning("the program of a job died and is started again", extra=_why(live.job, outcome))
            self._set(live, moved(live.job, "queued", now_s))
            self._queue.appendleft(live)
        else:
            self._fail(live, _death(outcome).as_dict())

    def _fail(self, live: Live, error: Mapping[str, Any]) -> None:
        self._set(live, moved(live.job, "failed", self._unix_s(), error=dict(error)))
        text = f"{live.job.kind} {live.job.subject}: {error.get('message', '')}"
        self._tell("job_failed", live.job, text, level="error", code=error.get("code", ""))

    def _call_off(self, live: Live) -> None:
        if live.job.over or live.cancelling:
            return
        live.cancelling = True
        if live.child is not None:
            live.child.stop()
            self._set(live, replace(live.job, stage=CANCELLING))
        elif live.job.job_id not in self._tasks:
            if live in self._queue:
                self._queue.remove(live)
            self._end_cancelled(live)

    def _end_cancelled(self, live: Live) -> None:
        self._set(live, moved(live.job, "cancelled", self._unix_s(), stage=""))
        self._tell("job_cancelled", live.job, f"{live.job.kind} {live.job.subject}")

    def _set(self, live: Live, job: Job) -> None:
        """A change of state: everybody sees it, and it is written down."""
        live.set(job)
        self._journal.note(job, urgent=True)
        if job.over:
            if self._by_key.get(job.key) is live:
                del self._by_key[job.key]
            self._over.append(job.job_id)
            while len(self._over) > _REMEMBERED:
                self._live.pop(self._over.popleft(), None)

    def _forget(self, live: Live) -> None:
        self._live.pop(live.job.job_id, None)
        if self._by_key.get(live.job.key) is live:
            del self._by_key[live.job.key]

    def _tell(self, kind: str, job: Job, text: str, *, level: Level = "info", **facts: Any) -> None:
        model = str(job.result.get("model") or job.parameters.get("model") or "")
        facts = {"job_id": job.job_id, "job": job.kind, **facts}
        self._publish(Event(kind, text, level, f"job:{job.job_id}", model, facts=facts))


def _new_id() -> str:
    return f"job-{secrets.token_hex(4)}"


def _took_s(job: Job) -> float:
    return round((job.finished_unix_s or 0) - (job.started_unix_s or 0), 3)


def _why(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {"job_id": job.job_id, "exit_code": outcome.exit_code, "last_words": outcome.last_words[-3:]}


def _death(outcome: Outcome) -> JobFailed:
    code = outcome.exit_code
    how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    told = "".join(f"\n  {line}" for line in outcome.last_words[-5:])
    return JobFailed(
        f"the program that did it {how} and without a result{told}",
        hint="mlxctl logs daemon; then ask for the same again",
        signal=-code if code < 0 else None,
        exit_code=code if code >= 0 else None,
        log=outcome.last_words,
    )
