"""The supervisor: carries out the scheduler's start, drain and kill, and reports what became of each worker.

It decides nothing. All calls and all reports happen in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core import events
from homelab_llm.core.errors import EngineError, EngineReplyInvalid, HomelabError
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import graves, processes
from homelab_llm.inference.fleet.canary import probe_of
from homelab_llm.inference.fleet.launch import HOST_ARGV, Lifetimes, WorkerFiles, new_nonce
from homelab_llm.inference.fleet.record import WorkerRecord, read_records
from homelab_llm.inference.fleet.seams import Survivor
from homelab_llm.inference.fleet.vocabulary import Event
from homelab_llm.inference.fleet.worker import Worker, WorkerInfo

_log = logging.getLogger(__name__)
_ADOPT_S = 1.0
_FAILURE_S = 0.9
_REMEMBERED = 64


class Supervisor:
    """The workers of this daemon. ``unproven`` says of others why they may not be touched.

    Args:
        report: gets every event of every worker, in the event loop; must not block or raise.
        load_timeout_s: from start to ready, a conversion included.
        drain_s: between TERM and KILL.
        orphan_grace_s: how long workers outlive a daemon that died, waiting to be adopted; 0 = they end with it.
        measure_s: how often the memory of a serving worker is measured.
        canary: a worker must answer one request before it is reported ``Loaded``.
        host_argv: the worker host; the path of its spec is appended.
        publish: gets an event of kind ``unproven`` for what may not be touched.
    """

    def __init__(
        self,
        home: Home,
        report: Callable[[Event], None],
        *,
        load_timeout_s: float,
        drain_s: float,
        orphan_grace_s: float = 0.0,
        measure_s: float = 10.0,
        canary: bool = True,
        host_argv: Sequence[str] = HOST_ARGV,
        publish: Callable[[events.Event], None] | None = None,
    ) -> None:
        self._home = home
        self._report = report
        self._lifetimes = Lifetimes(load_timeout_s, drain_s, orphan_grace_s, measure_s)
        self._canary = canary
        self._host_argv = host_argv
        self._publish = publish
        self.unproven: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, HomelabError | None] = OrderedDict()

    def sockets(self, worker_id: str) -> Path:
        """Where the engine of this worker serves HTTP.

        Raises:
            ValueError: not five of a-z and 0-9.
        """
        return WorkerFiles.of(self._home, worker_id)["http"]

    def start(self, worker_id: str, plan: LaunchPlan, note: Mapping[str, Any] | None = None) -> None:
        """Start a worker and return at once. ``note`` is kept for the daemon that adopts it; JSON values only.

        Reports ``LoadProgress``*, then ``Loaded`` or ``LoadFailed``, and in the end exactly one ``WorkerExit``;
        a worker that is drained or killed while it loads reports ``WorkerExit`` alone.

        Raises:
            ValueError: the id is malformed or in use.
        """
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} lives")
        WorkerFiles.of(self._home, worker_id)
        record = WorkerRecord(
            worker_id=worker_id,
            nonce=new_nonce(),
            digest=str(plan.model.digest),
            engine=plan.engine,
            model=plan.model.name,
            ready_path=plan.ready_path,
            probe=probe_of(plan.model.facts.capabilities) if self._canary else "",
            boot_id=processes.boot_id(),
            started_unix_s=time.time(),
            note=dict(note or {}),
        )
        _log.info("worker starts", extra={"worker": worker_id, "digest": record.digest, **_audit(plan)})
        worker = Worker(self._home, record, lifetimes=self._lifetimes, report=self._report)
        self._begin(worker, plan)

    def drain(self, worker_id: str) -> None:
        """End it in order: TERM, and KILL after ``drain_s``. Does nothing when it has ended."""
        if worker := self._workers.get(worker_id):
            worker.end(self._lifetimes.drain_s)

    def kill(self, worker_id: str) -> None:
        """End it at once. Does nothing when it has ended."""
        if worker := self._workers.get(worker_id):
            worker.end(0.0)

    def info(self, worker_id: str) -> WorkerInfo | None:
        """What is known of a living worker."""
        worker = self._workers.get(worker_id)
        return worker.info if worker else None

    async def failure(self, worker_id: str) -> HomelabError:
        """Why a worker broke off a reply: waits up to 0.9 s for the typed reason of its death."""
        cause = self._ended.get(worker_id)
        if worker := self._workers.get(worker_id):
            try:
                cause = await asyncio.wait_for(asyncio.shield(worker.cause), _FAILURE_S)
            except TimeoutError:
                return EngineError("the worker broke off the reply, but lives", worker=worker_id)
        return cause or EngineError("the model was unloaded before the reply was complete", worker=worker_id)

    async def survivors(self) -> list[Survivor]:
        """Adopt the workers of an earlier daemon of this home that prove to be ours; milliseconds, at most a second.

        Call before ``sweep``, holding the daemon's lock; again to take back what was released. Their events are
        reported from the next turn of the event loop on.
        """
        records = {key: value for key, value in read_records(self._home).items() if key not in self._workers}
        found = await asyncio.gather(*(self._adopt(worker_id, record) for worker_id, record in records.items()))
        survivors = [worker for worker in found if worker is not None]
        for worker in survivors:
            self._begin(worker)
        return [_survivor(worker) for worker in survivors]

    async def sweep(self) -> list[str]:
        """Clean up after an earlier daemon of this home: end what is left of its workers, remove sockets and old logs.

        Call once at start, holding the daemon's lock; ends what could be adopted when ``survivors`` was not called.
        What cannot be proven ours is left alone. Gives the ids of workers that still lived and were ended.
        """
        swept = await graves.sweep(self._home, {*self._workers, *self.unproven})
        for worker_id in swept.unproven:
            self._leave_alone(worker_id, "something answers for a worker that is not known here")
        return swept.ended

    def reclaim(self) -> None:
        """A daemon that was to take all workers over failed: they shall watch this one again."""
        for worker in self._workers.values():
            worker.reclaim()

    async def release(self) -> None:
        """Leave all workers as they are and watch them no more; ``survivors`` takes them back."""
        for worker in self._workers.values():
            worker.release()
        lives = list(self._lives.values())
        self._workers.clear()
        self._lives.clear()
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    async def close(self) -> None:
        """End all workers, in order, and wait for the proof of their death."""
        for worker_id in list(self._workers):
            self.drain(worker_id)
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    async def _adopt(self, worker_id: str, record: WorkerRecord | None) -> Worker | None:
        """The worker, when it is ours now; what is not is left to ``sweep``, or left alone."""
        if record is None or record.boot_id != processes.boot_id():
            return None
        worker = Worker(self._home, record, lifetimes=self._lifetimes, report=self._report)
        try:
            async with asyncio.timeout(_ADOPT_S):
                return worker if await worker.adopt() else None
        except EngineReplyInvalid as error:
            self._leave_alone(worker_id, error.message, record)
        except TimeoutError:
            if record.host is not None:  # else it was never started
                self._leave_alone(worker_id, f"it does not answer within {_ADOPT_S:g} s", record)
        except OSError as error:
            self._leave_alone(worker_id, f"it cannot be asked: {error.strerror}", record)
        return None

    def _leave_alone(self, worker_id: str, why: str, record: WorkerRecord | None = None) -> None:
        self.unproven[worker_id] = why
        model = record.model if record is not None else ""
        if self._publish is not None:
            text = f"worker {worker_id} is left alone: {why}"
            self._publish(events.Event("unproven", text, "warning", f"worker:{worker_id}", model))

    def _begin(self, worker: Worker, plan: LaunchPlan | None = None) -> None:
        worker_id = worker.record.worker_id
        self._workers[worker_id] = worker
        self._lives[worker_id] = asyncio.create_task(self._live(worker_id, worker, plan), name=f"worker {worker_id}")

    async def _live(self, worker_id: str, worker: Worker, plan: LaunchPlan | None) -> None:
        try:
            await worker.live(plan, self._host_argv)
        finally:
            self._ended[worker_id] = worker.cause.result()
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            self._workers.pop(worker_id, None)
            self._lives.pop(worker_id, None)
            graves.prune_logs(self._home.worker_logs, {*self._workers, *self.unproven})


def _survivor(worker: Worker) -> Survivor:
    record, info = worker.record, worker.info
    return Survivor(
        worker_id=record.worker_id,
        note=record.note,
        ready=record.ready,
        engine_pid=info.engine_pid,
        memory_bytes=info.memory_bytes,
        started_unix_s=info.started_unix_s,
    )


def _audit(plan: LaunchPlan) -> dict[str, Any]:
    """What exactly is started (R-I9)."""
    told = {"engine": plan.engine, "engine_version": plan.version, "argv": list(plan.argv)}
    return {**told, "prepare": list(plan.prepare)} if plan.prepare else told
