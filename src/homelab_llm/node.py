"""Node: one machine's platform in one process. The only place that names concrete classes.

Everything a part needs arrives as an argument; here the arguments are chosen.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from homelab_llm import __version__
from homelab_llm.core.clock import Clock, SystemClock
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.core.settings import Settings
from homelab_llm.data.database import Database
from homelab_llm.data.keys import KeyRing
from homelab_llm.data.recorder import Recorder
from homelab_llm.data.retention import Retention
from homelab_llm.gateway.app import App, Parts
from homelab_llm.inference.engines.base import Engine, EngineOptions
from homelab_llm.inference.engines.table import ENGINES
from homelab_llm.inference.fleet.awake import Awake
from homelab_llm.inference.fleet.budget import measure_budget
from homelab_llm.inference.fleet.planner import Planner
from homelab_llm.inference.fleet.run_loop import FleetLoop, Limits
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.kit.shaping import OpenAIShaper
from homelab_llm.store.model_store import ModelStore

if TYPE_CHECKING:
    from homelab_llm.inference.fleet.vocabulary import Event

RECORD_BUSY_S = 5.0


class Node:
    """The parts of one home, tied together. ``start`` and ``close`` run on the event loop that serves.

    Args:
        engines: replaces the table of engines.
        shutdown: what ``POST /admin/shutdown`` does; without it the daemon cannot be stopped over HTTP.
        restart: what ``POST /admin/restart`` does, with the Python to run the next daemon (empty = ours).

    ``listeners`` and ``warnings`` are filled by whoever binds the addresses, for ``/admin/status``.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        *,
        engines: Sequence[Engine] | None = None,
        clock: Clock | None = None,
        shutdown: Callable[[], None] | None = None,
        restart: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self.home = home
        self.settings = settings
        self.listeners: list[str] = []
        self.warnings: list[dict[str, str]] = []
        self._clock = clock or SystemClock()
        self._started_s = self._clock.monotonic_s()
        self.store = ModelStore(home.store)
        self.database = Database.open(settings.data.url, home.database)
        self.keys = KeyRing(self.database)
        self.recorder = self._recorder()
        self._awake = Awake()
        self._engines = ENGINES if engines is None else engines
        self.fleet = self._fleet(self._engines)
        self.app = App(
            Parts(
                catalogue=self.store,
                fleet=self.fleet,
                shaper=OpenAIShaper(),
                keys=self.keys,
                recorder=self.recorder,
                about=self.about,
                shutdown=shutdown,
                restart=restart,
            ),
            settings.server,
            stall_timeout_s=settings.fleet.stall_timeout_s,
        )

    async def start(self, leases: Mapping[str, int] | None = None) -> None:
        """Take over the workers of an earlier daemon, end what is left of it, and begin recording.

        The database has the newest schema already.

        Args:
            leases: requests that an earlier daemon, which hands over to this one, still runs, by worker.
        """
        await self.fleet.adopt(self._stored)
        for worker_id, count in (leases or {}).items():
            self.fleet.hold(worker_id, count)
        await self._supervisor.sweep()
        await asyncio.to_thread(self._open_records)
        # Looking for GPUs and installed servers may run programs for seconds; the first request must not wait for it.
        self._looking = asyncio.create_task(asyncio.to_thread(_look_around, self._engines))

    async def close(self, *, leave_workers: bool = False) -> None:
        """End every worker, wait for the proof, write the last rows.

        Args:
            leave_workers: end none of them: another daemon of this home has them, or will.
        """
        await self.fleet.close(leave_workers=leave_workers)
        await self._looking
        self.keys.close()
        self.recorder.close()
        self.database.close()

    def hand_over(self, on_end: Callable[[str], None]) -> dict[str, int]:
        """Begin nothing any more; gives the requests that run, by worker. They go on.

        Args:
            on_end: gets the worker each time one of them ends.
        """
        self.app.hand_over(self.home.daemon_sock)
        return self.fleet.hand_over(on_end)

    def take_back(self) -> None:
        """Go on as before ``hand_over``."""
        self._supervisor.reclaim()
        self.fleet.resume()
        self.app.resume()

    def let_go(self, worker_id: str) -> None:
        """A request that the earlier daemon ran in this worker ended."""
        self.fleet.let_go(worker_id)

    def _stored(self, digest: str) -> StoredModel | None:
        return next((model for model in self.store.models() if str(model.digest) == digest), None)

    def about(self) -> Mapping[str, Any]:
        """What ``/admin/status`` says besides the fleet."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "home": str(self.home.root),
            "uptime_s": round(self._clock.monotonic_s() - self._started_s, 3),
            "listeners": self.listeners,
            "warnings": self.warnings,
        }

    def _open_records(self) -> None:
        self.keys.import_file(self.home.keys)
        self.keys.open()
        self.recorder.open()

    def _recorder(self) -> Recorder:
        data = self.settings.data
        own = Database.open(data.url, self.home.database, durable=False, busy_s=RECORD_BUSY_S)
        return Recorder(own, requests=data.requests, retention=Retention(own, data.keep_requests, data.keep_events))

    def _fleet(self, engines: Sequence[Engine]) -> FleetLoop:
        settings = self.settings.fleet
        fixed_bytes = settings.memory_budget_bytes
        options = EngineOptions(
            context_tokens=self.settings.engine.context_tokens,
            parallel=self.settings.engine.parallel,
            threads=self.settings.engine.threads,
        )
        return FleetLoop(
            plan=Planner(engines, options, self.settings.engine.prefer, self.home.derived),
            workers=self._supervise,
            budget_bytes=fixed_bytes or measure_budget(settings.memory_fraction),
            measure=None if fixed_bytes else lambda ours: measure_budget(settings.memory_fraction, ours),
            limits=Limits(
                keep_alive_s=settings.keep_alive,
                queue_limit=settings.queue_limit,
                max_wait_s=settings.max_wait_s,
                turn_s=settings.turn_s,
                min_stay_s=settings.min_stay_s,
                max_running=settings.max_running,
                reserved_slots=settings.reserved_slots,
                quarantine_after=settings.quarantine_after,
            ),
            clock=self._clock,
            busy=self._awake.busy,
        )

    def _supervise(self, report: Callable[[Event], None]) -> Supervisor:
        fleet = self.settings.fleet
        self._supervisor = Supervisor(
            self.home,
            report,
            load_timeout_s=fleet.load_timeout_s,
            drain_s=fleet.drain_s,
            orphan_grace_s=fleet.orphan_grace_s,
            canary=fleet.canary,
        )
        return self._supervisor


def _look_around(engines: Sequence[Engine]) -> None:
    """Ask every engine once; what it finds on this machine, it keeps."""
    for engine in engines:
        engine.supports(ModelFacts(format="gguf", architecture="llama", size_bytes=0, quantization="Q4_0"))
