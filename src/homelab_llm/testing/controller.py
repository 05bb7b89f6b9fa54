"""A controller on a real fleet: every worker is a process of the fake engine, asked over its socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import Cancelled, EngineError, HomelabError, InsufficientMemory
from homelab_llm.core.events import Event
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.slots import ALIASES, SlotTable
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.inference.controller.controller import Controller
from homelab_llm.inference.controller.seams import Registry
from homelab_llm.inference.engines.base import EngineOptions, Footprint, LaunchPlan
from homelab_llm.inference.fleet.lease import FleetLease
from homelab_llm.inference.fleet.run_loop import FleetLoop, Limits, Planned
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Demand
from homelab_llm.inference.fleet.vocabulary import Event as FleetEvent
from homelab_llm.testing.engines import FakeEngine
from homelab_llm.testing.events import Recorded, eventually
from homelab_llm.testing.models import stored_fake_model, write_fake_model
from homelab_llm.testing.registry import MemoryRegistry, MemoryShelf, OwnPorts

MB = 10**6
FOOTPRINT = Footprint(weights_bytes=1 * MB, kv_bytes=800 * MB, overhead_bytes=99 * MB)
FIRST = 18100
"""The first of ten slots; nothing listens there in these tests."""

CLIENTS = 16
_TURNS = 8
_numbers = count(1)


class Rig:
    """A node without its front door.

    Args:
        room: how many models fit into the budget.
        registry: in place of one in memory.
        grace_s: how long workers wait for another daemon when this one is killed.
    """

    def __init__(
        self,
        home: Home,
        folder: Path,
        *,
        room: int = 2,
        auto_load: bool = True,
        default: str = "",
        registry: Registry | None = None,
        grace_s: float = 0.0,
    ) -> None:
        self.home = home
        self.folder = folder
        self.events: Recorded[Event] = Recorded()
        self.memory = MemoryRegistry()
        self.registry: Registry = registry or self.memory
        self._grace_s = grace_s
        self.shelf = MemoryShelf()
        self.ports = OwnPorts()
        self.engine = FakeEngine()
        self.room = room
        self.auto_load = auto_load
        self.default = default
        self.footprints: dict[str, Footprint] = {}
        self.fleet: FleetLoop
        self.controller: Controller

    async def start(self) -> None:
        """A new daemon on what is kept: registry, shelf."""
        self.fleet = FleetLoop(
            plan=self.plan,
            workers=self._supervise,
            budget_bytes=self.room * 900 * MB + 300 * MB,
            limits=Limits(keep_alive_s=300.0, turn_s=0.5),
            publish=self.events,
        )
        self.controller = Controller(
            registry=self.registry,
            shelf=self.shelf,
            fleet=self.fleet,
            slots=SlotTable.of(f"{FIRST}-{FIRST + 9}", ALIASES),
            publish=self.events,
            foreign=self.ports,
            default_model=self.default,
            auto_load=self.auto_load,
        )
        await self.controller.start()
        await self.fleet.adopt(self._of_digest)

    async def stop(self, *, leave_workers: bool = False) -> None:
        await self.controller.close()
        await self.fleet.close(leave_workers=leave_workers)

    def _supervise(self, report: Callable[[FleetEvent], None]) -> Supervisor:
        grace_s = self._grace_s
        return Supervisor(self.home, report, load_timeout_s=30.0, drain_s=2.0, orphan_grace_s=grace_s)

    def _of_digest(self, digest: str) -> StoredModel | None:
        return next((model for model in self.shelf.models() if str(model.digest) == digest), None)

    def plan(self, model: StoredModel, context_tokens: int | None = None) -> Planned:
        options = EngineOptions(context_tokens=context_tokens or 512, parallel=2)
        engine = self.controller.chosen(model).engine or self.engine.name
        key = f"{model.digest}/{engine}/{options.context_tokens}"
        footprint = self.footprints.get(model.name, FOOTPRINT)
        demand = Demand(key, model.name, footprint.total_bytes, options.parallel)

        def launch(socket: Path) -> LaunchPlan:
            return self.engine.plan(model, options, socket, self.home.derived)

        traits = self.engine.traits
        return Planned(demand, launch, engine, options.context_tokens, traits, footprint=footprint)

    def model(self, name: str, *, stored: bool = True, **more: Any) -> StoredModel:
        """A fake model; in the store unless told otherwise."""
        path = write_fake_model(self.folder / f"{name}-{next(_numbers)}.gguf", name=name, **more)
        model = stored_fake_model(path, f"{name}:latest")
        if stored:
            self.shelf.add(model)
        return model

    @property
    def state(self) -> RegistryState:
        """What the registry keeps."""
        return self.registry.read()

    async def load(self, model: str, slot: int | str, *, force: bool = False) -> dict[str, Any]:
        return await last(self.controller.load(model, str(slot), force=force))

    async def row(self, port: int = FIRST) -> dict[str, Any]:
        """The status row of one slot."""
        slots = (await self.controller.slots())["slots"]
        found: dict[str, Any] = next(row for row in slots if row["port"] == port)
        return found

    async def ask(self, name: str = "jerry-xl", *, port: int = 0, text: str = "hello") -> str:
        """What a client sees: the model that answered. Routes and waits as the front door does."""
        for _ in range(_TURNS):
            target = self.controller.route(name, port)
            try:
                lease = await self.fleet.acquire(target.model, f"r{next(_numbers)}", keep_alive_s=target.keep_alive_s)
            except (EngineError, InsufficientMemory, Cancelled):
                if not await self.controller.settled(target):
                    raise
                continue
            try:
                return await answer_of(lease, text)
            finally:
                lease.release()
        raise RuntimeError(f"no answer after {_TURNS} turns")

    def loaded(self) -> set[str]:
        """Names of the models with a ready worker."""
        return {worker["model"] for worker in self.fleet.status()["workers"] if worker["state"] == "ready"}


class Clients:
    """Sixteen clients that ask an alias without a pause. ``answers``: the model, when it came, and after how long."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.answers: list[tuple[str, float, float]] = []
        self.failures: list[BaseException] = []
        self._stop = False

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.create_task(self._live()) for _ in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _live(self) -> None:
        while not self._stop:
            started_s = time.monotonic()
            try:
                model = await self.rig.ask(text="fake: tokens=4 rate=200")
            except (HomelabError, OSError, RuntimeError, asyncio.IncompleteReadError) as error:
                self.failures.append(error)
                await asyncio.sleep(0)
            else:
                self.answers.append((model, time.monotonic(), time.monotonic() - started_s))

    async def more(self, count: int) -> None:
        """Wait for that many further answers."""
        wanted = len(self.answers) + count
        await eventually(lambda: self.failures or len(self.answers) >= wanted, 60)


async def last(steps: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The result of a command that tells steps."""
    told = [step async for step in steps]
    return told[-1]


async def answer_of(lease: FleetLease, text: str) -> str:
    """Ask a worker; the model it says it is."""
    reader, writer = await asyncio.open_unix_connection(lease.socket)
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 8})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    try:
        async with asyncio.timeout(30):
            status = await reader.readline()
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            told = json.loads(await reader.readexactly(length))
    finally:
        writer.close()
    if status.split()[1] != b"200":
        raise RuntimeError(f"the worker answered {told}")
    return str(told["model"])
