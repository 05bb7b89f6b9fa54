"""The supervisor: carries out the scheduler's start, drain and kill, and reports what became of each worker.

It decides nothing. All calls and all reports happen in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from homelab_llm.core.errors import EngineError, HomelabError
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import graves
from homelab_llm.inference.fleet.launch import HOST_ARGV, Lifetimes, WorkerFiles
from homelab_llm.inference.fleet.vocabulary import Event
from homelab_llm.inference.fleet.worker import Worker, WorkerInfo

_FAILURE_S = 0.9
_REMEMBERED = 64


class Supervisor:
    """The workers of this daemon.

    Args:
        report: gets every event of every worker, in the event loop; must not block or raise.
        load_timeout_s: from start to ready, a conversion included.
        drain_s: between TERM and KILL.
        orphan_grace_s: how long workers outlive a daemon that died, waiting to be adopted.
        measure_s: how often the memory of a serving worker is measured.
        host_argv: the worker host; the path of its spec is appended.
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
        host_argv: Sequence[str] = HOST_ARGV,
    ) -> None:
        self._home = home
        self._report = report
        self._lifetimes = Lifetimes(load_timeout_s, drain_s, orphan_grace_s, measure_s)
        self._host_argv = host_argv
        self._workers: dict[str, Worker] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, HomelabError | None] = OrderedDict()

    def sockets(self, worker_id: str) -> Path:
        """Where the engine of this worker serves HTTP.

        Raises:
            ValueError: not five of a-z and 0-9.
        """
        return WorkerFiles.of(self._home, worker_id)["http"]

    def start(self, worker_id: str, plan: LaunchPlan) -> None:
        """Start a worker and return at once.

        Reports ``LoadProgress``*, then ``Loaded`` or ``LoadFailed``, and in the end exactly one ``WorkerExit``;
        a worker that is drained or killed while it loads reports ``WorkerExit`` alone.

        Raises:
            ValueError: the id is malformed or in use.
        """
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} lives")
        files = WorkerFiles.of(self._home, worker_id)
        worker = Worker(files, plan, lifetimes=self._lifetimes, report=self._report, host_argv=self._host_argv)
        self._workers[worker_id] = worker
        self._lives[worker_id] = asyncio.create_task(self._live(worker_id, worker), name=f"worker {worker_id}")

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

    async def sweep(self) -> list[str]:
        """Clean up after an earlier daemon of this home: end its workers, remove their sockets, old logs too.

        Call once at start, holding the daemon's lock. Gives the ids of workers that still lived.
        """
        return await graves.sweep(self._home, self._workers.keys())

    async def close(self) -> None:
        """End all workers, in order, and wait for the proof of their death."""
        for worker_id in list(self._workers):
            self.drain(worker_id)
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    async def _live(self, worker_id: str, worker: Worker) -> None:
        try:
            await worker.live()
        finally:
            self._ended[worker_id] = worker.cause.result()
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            del self._workers[worker_id], self._lives[worker_id]
            graves.prune_logs(self._home.worker_logs, self._workers.keys())
