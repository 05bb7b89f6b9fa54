"""Node: one machine's platform in one process. The only place that names concrete classes.

Everything a part needs arrives as an argument; here the arguments are chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from homelab_llm import __version__
from homelab_llm.core.clock import Clock, SystemClock
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.events import Event as HouseEvent
from homelab_llm.core.events import EventBus
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.jobs import Job
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.handles import ManagedBy
from homelab_llm.core.settings import Settings
from homelab_llm.data.inventory import Forecast, Service
from homelab_llm.data.jobs import JobRows
from homelab_llm.data.system import SystemData
from homelab_llm.gateway.app import App, Parts
from homelab_llm.gateway.routes import ROUTES, Route
from homelab_llm.gateway.seams import Jobs
from homelab_llm.inference.controller.controller import Controller
from homelab_llm.inference.controller.foreign import SlotPorts
from homelab_llm.inference.engines.base import Engine, EngineOptions, ModelOptions
from homelab_llm.inference.engines.table import ENGINES
from homelab_llm.inference.fleet.awake import Awake
from homelab_llm.inference.fleet.budget import measure_budget
from homelab_llm.inference.fleet.planner import Planner
from homelab_llm.inference.fleet.run_loop import FleetLoop, Limits
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.kit.shaping import OpenAIShaper
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.shelf import Shelf
from homelab_llm.store.templates.catalogue import named
from homelab_llm.store.trust import StoreTrust

if TYPE_CHECKING:
    from homelab_llm.inference.fleet.vocabulary import Event

log = logging.getLogger(__name__)

STOCK_AFTER_S = 1.0  # the first requests come first
STOCK_EVERY_S = 10.0
_SLOTS_GUIDE = "docs/guides/slots.md"
_ENDPOINTS_PAGE = "docs/reference/endpoints.md"


class JobRunner(Jobs, Protocol):
    """Who does long work on models for a node."""

    async def start(self) -> None:
        """Go on with what an earlier daemon left."""
        ...

    async def pause(self) -> None:
        """End every program; its job waits as if its turn had not come yet."""
        ...

    def hand_over(self) -> None:
        """Take nothing any more. After ``pause``."""
        ...

    async def settled(self) -> None:
        """After ``hand_over``: what was asked for until then is in the database."""
        ...

    def resume(self) -> None:
        """Go on after ``pause``."""
        ...

    async def close(self) -> None:
        """End every program; unfinished jobs go on when a daemon starts again."""
        ...

    async def pull(self, reference: str, progress: Callable[[str, float], None]) -> str:
        """Bring a model into the store by a job and give its name there."""
        ...


@dataclass(frozen=True, slots=True)
class JobParts:
    """What a job runner gets of a node. ``done`` is to be told each job that succeeded."""

    rows: JobRows
    publish: Callable[[HouseEvent], None]
    unix_s: Callable[[], float]
    done: Callable[[Job], Awaitable[None]]


class Node:
    """The parts of one home, tied together. ``start`` and ``close`` run on the event loop that serves.

    Args:
        engines: replaces the table of engines.
        shutdown: what ``POST /admin/shutdown`` does; without it the daemon cannot be stopped over HTTP.
        restart: what ``POST /admin/restart`` does, with the Python to run the next daemon (empty = ours).
        jobs: makes the runner of long work; without one there are no jobs, and a load pulls in a thread of its own.
        managed_by: what keeps the daemon running, for ``handles.jsonl``.

    ``listeners``, ``warnings`` and ``slot_problems`` are filled by whoever binds the addresses, for ``/admin/status``
    and for the controller: ``slot_problems`` are the slot ports that are not ours, with ``{pid, name, text}``.
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
        jobs: Callable[[JobParts], JobRunner] | None = None,
        managed_by: ManagedBy = "manual",
    ) -> None:
        self.home = home
        self.settings = settings
        self._managed_by = managed_by
        self.listeners: list[str] = []
        self.warnings: list[dict[str, str]] = []
        self.slot_problems: Mapping[int, dict[str, Any]] = {}
        self._clock = clock or SystemClock()
        self._started_s = self._clock.monotonic_s()
        self.store = ModelStore(home.store)
        self.events = EventBus(self._clock.unix_s, self._record)
        self.data = SystemData(home, settings.data, os.environ, self.events.publish)
        self.keys = self.data.keys
        self._awake = Awake()
        self._engines = ENGINES if engines is None else engines
        self.fleet = self._fleet(self._engines)
        parts = JobParts(self.data.jobs, self.events.publish, self._clock.unix_s, self._job_done)
        self._jobs = jobs(parts) if jobs is not None else None
        self.controller = self._controller()
        self._chores: list[asyncio.Task[None]] = []
        self.app = App(
            Parts(
                catalogue=self.store,
                fleet=self.fleet,
                shaper=OpenAIShaper(),
                keys=self.keys,
                recorder=self.data.recorder,
                about=self.about,
                shutdown=shutdown,
                restart=restart,
                router=self.controller,
                controller=self.controller,
                events=self.events,
                jobs=self._jobs,
            ),
            settings.server,
            stall_timeout_s=settings.fleet.stall_timeout_s,
        )

    async def start(self, leases: Mapping[str, int] | None = None) -> None:
        """Take over what an earlier daemon left, and begin to bring up what the registry assigns.

        The database has the newest schema already. Models that are assigned load while requests are served.

        Args:
            leases: requests that an earlier daemon, which hands over to this one, still runs, by worker.
        """
        self.data.bind(asyncio.get_running_loop())
        await asyncio.to_thread(self.data.open, self.settings.slots.table())
        await self.controller.start()
        adopted = await self.fleet.adopt(self._stored, leases)
        if adopted:
            log.info("adopted the workers of the daemon before", extra={"workers": adopted})
        self.data.begin(adopted)
        await self._supervisor.sweep()
        if self._jobs is not None:
            await self._jobs.start()
        self._chores = [
            asyncio.create_task(self.controller.boot()),
            asyncio.create_task(self._keep_stock()),
            # Looking for GPUs and installed servers may run programs for seconds; no request must wait for it.
            asyncio.create_task(asyncio.to_thread(_look_around, self._engines)),
        ]

    async def close(self, *, leave_workers: bool = False) -> None:
        """End every worker, wait for the proof, write the last rows.

        Args:
            leave_workers: end none of them: another daemon of this home has them, or will.
        """
        for chore in self._chores:
            chore.cancel()
        await self.controller.close()
        if self._jobs is not None:
            await self._jobs.close()
        await self.fleet.close(leave_workers=leave_workers)
        await asyncio.gather(*self._chores, return_exceptions=True)
        with contextlib.suppress(HomelabError, OSError):  # then models are hashed once more after the next boot
            await asyncio.to_thread(self.store.verification.seal)
        self._awake.close()
        self.events.close()
        await asyncio.to_thread(self.data.close, succeeded=leave_workers)

    @property
    def busy(self) -> bool:
        """Whether slots are being changed."""
        return self.controller.busy

    async def prepare_hand_over(self) -> None:
        """End the programs that do jobs, before requests have to wait; the next daemon goes on with them."""
        if self._jobs is not None:
            await self._jobs.pause()

    async def settled(self) -> None:
        """After ``hand_over``: the next daemon finds every job in the database."""
        if self._jobs is not None:
            await self._jobs.settled()

    def hand_over(self, on_end: Callable[[str], None]) -> dict[str, int]:
        """Begin nothing any more; gives the requests that run, by worker. They go on.

        Args:
            on_end: gets the worker each time one of them ends.
        """
        self.app.hand_over(self.home.daemon_sock)
        if self._jobs is not None:
            self._jobs.hand_over()
        self.data.database.release()
        return self.fleet.hand_over(on_end)

    def take_back(self) -> None:
        """Go on as before ``hand_over``."""
        self._supervisor.reclaim()
        self.data.database.claim()
        if self._jobs is not None:
            self._jobs.resume()
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

    def _record(self, event: HouseEvent) -> None:
        self.data.recorder.record_event(event)

    def services(self) -> list[Service]:
        """Who can be asked here: the daemon and each slot."""
        address = self.listeners[0] if self.listeners else ""
        url = f"http://{address}" if address else ""
        bind = self.settings.slots.bind
        return [
            Service("mlxserve", "gateway", "front door", url, doc=_ENDPOINTS_PAGE, endpoints=_endpoints()),
            *(
                Service(
                    f"slot:{slot.port}",
                    "inference",
                    slot.alias,
                    f"http://{bind}:{slot.port}",
                    doc=_SLOTS_GUIDE,
                    endpoints=_endpoints(on_slots=True),
                )
                for slot in self.settings.slots.table().slots
            ),
        ]

    def _foresee(self, model: StoredModel) -> Forecast:
        """What running a model here would take by calculation; why not, where no engine here runs it."""
        try:
            planned = self._planner(model)
            return Forecast(
                footprint_bytes=planned.demand.footprint_bytes,
                memory_4k_bytes=self._memory_bytes(model, 4096),
                memory_32k_bytes=self._memory_bytes(model, 32_768),
                memory_full_bytes=self._memory_bytes(model, model.facts.context_tokens),
                engine=planned.engine,
                engine_reason=planned.warning,
            )
        except HomelabError as error:
            return Forecast(engine_reason=error.message)

    def _memory_bytes(self, model: StoredModel, context_tokens: int) -> int:
        """For one request with so much context; 0 where the model was not made for as much."""
        if not context_tokens or context_tokens > model.facts.context_tokens:
            return 0
        return self._alone(model, context_tokens).demand.footprint_bytes

    async def _keep_stock(self) -> None:
        """Write down what this node consists of, and again whenever the store changed."""
        counted: object = None
        named: object = None
        told: list[Service] = []
        await asyncio.sleep(STOCK_AFTER_S)
        while True:
            stamp = self.store.stamp()
            try:
                if told != (services := self.services()):
                    await asyncio.to_thread(self.data.take_services, services)
                    told = services
                if stamp != counted:
                    await asyncio.to_thread(self.data.take_models, self.store.models(), self._foresee)
                if (stamp, revision := await asyncio.to_thread(self.data.registry.revision)) != named:
                    slots = self.settings.slots.table()
                    await asyncio.to_thread(self.data.export_handles, self.store.models(), slots, self._managed_by)
                    named = (stamp, revision)
                counted = stamp
            except HomelabError as error:
                log.warning("the inventory could not be written", extra={"reason": error.message})
            await asyncio.sleep(STOCK_EVERY_S)

    def _controller(self) -> Controller:
        slots = self.settings.slots
        return Controller(
            registry=self.data.registry,
            shelf=Shelf(self.store, self.settings.store, self._jobs.pull if self._jobs is not None else None),
            fleet=self.fleet,
            slots=slots.table(),
            publish=self.events.publish,
            foreign=SlotPorts(slots.bind, lambda: self.slot_problems, self._holder_of),
            default_model=slots.default_model,
            auto_load=slots.auto_load,
            clock=self._clock,
        )

    async def _job_done(self, job: Job) -> None:
        """The registry learns of a pulled model that it wanted."""
        if job.kind != "pull":
            return
        try:
            await self.controller.pulled(str(job.parameters["model"]), str(job.result["model"]))
        except HomelabError as error:
            log.warning("the registry does not know of a pulled model", extra={"reason": error.message})

    def _holder_of(self, port: int) -> tuple[int, str] | None:
        found = self.slot_problems.get(port)
        return (found["pid"], found["name"]) if found and found.get("pid") else None

    def _fleet(self, engines: Sequence[Engine]) -> FleetLoop:
        settings = self.settings.fleet
        fixed_bytes = settings.memory_budget_bytes
        options = EngineOptions(
            context_tokens=self.settings.engine.context_tokens,
            parallel=self.settings.engine.parallel,
            threads=self.settings.engine.threads,
        )
        self._planner = Planner(engines, options, self.settings.engine.prefer, self.home.derived, self._chosen)
        one = replace(options, parallel=1)
        self._alone = Planner(engines, one, self.settings.engine.prefer, self.home.derived, self._chosen)
        return FleetLoop(
            plan=self._planner,
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
            publish=self.events.publish,
            known_bytes=self.data.footprints.known_bytes,
            learned=self.data.footprints.learned,
            busy=self._awake.busy,
            trust=StoreTrust(self.store) if self.settings.store.verify == "changed" else None,
        )

    def _chosen(self, model: StoredModel) -> ModelOptions:
        chosen = self.controller.chosen(model)
        entry = named(chosen.chat_template) if chosen.chat_template else None
        return replace(chosen, chat_template=entry.text) if entry else chosen

    def _supervise(self, report: Callable[[Event], None]) -> Supervisor:
        fleet = self.settings.fleet
        self._supervisor = Supervisor(
            self.home,
            report,
            load_timeout_s=fleet.load_timeout_s,
            drain_s=fleet.drain_s,
            orphan_grace_s=fleet.orphan_grace_s,
            canary=fleet.canary,
            publish=self.events.publish,
        )
        return self._supervisor


def _endpoints(*, on_slots: bool = False) -> tuple[tuple[str, str, str], ...]:
    """Kind, method and path of what is served."""

    def kind(route: Route) -> str:
        if route.path in ("/healthz", "/readyz"):
            return "health"
        return "admin" if route.access == "admin" else "api"

    found = [route for route in ROUTES if route.on_slots or not on_slots]
    return tuple((kind(route), method, route.path) for route in found for method in route.methods)


def _look_around(engines: Sequence[Engine]) -> None:
    """Ask every engine once; what it finds on this machine, it keeps."""
    for engine in engines:
        engine.supports(ModelFacts(format="gguf", architecture="llama", size_bytes=0, quantization="Q4_0"))
