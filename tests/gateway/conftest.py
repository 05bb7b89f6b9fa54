"""The front door under test: a real ``FrontDoor`` on free ports, real fake engine processes, a small fleet between."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from homelab_llm.core.errors import HomelabError, ModelNotFound, WorkerCrashed
from homelab_llm.core.events import Event, EventBus
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.slots import ALIASES, SlotTable
from homelab_llm.core.settings import ServerSettings
from homelab_llm.core.shaping import Shaped
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.core.waits import Wait
from homelab_llm.data.database import Database
from homelab_llm.data.keys import KeyRing
from homelab_llm.gateway.app import App, Parts
from homelab_llm.gateway.listeners import Inherited
from homelab_llm.gateway.seams import RequestRow, Shaper
from homelab_llm.gateway.server import FrontDoor
from homelab_llm.testing.database import ready_database
from homelab_llm.testing.engines import LLAMA_CPP_TRAITS, OWN_TRAITS
from homelab_llm.testing.models import stored_fake_model, write_fake_model
from homelab_llm.testing.slots import NotingController, TableRouter

MODEL = "fake:latest"
EMBEDDER = "embedder:latest"


@dataclass(slots=True)
class Worker:
    """A fake engine process and what the fleet knows of it."""

    process: subprocess.Popen[bytes]
    socket: Path
    traits: WorkerTraits
    parallel: int
    context_tokens: int = 4096

    def stats(self) -> dict[str, Any]:
        """What the engine itself counts."""
        link = socket.socket(socket.AF_UNIX)
        with contextlib.closing(link):
            link.settimeout(10)
            link.connect(str(self.socket))
            link.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            reply = http.client.HTTPResponse(link)
            reply.begin()
            told: dict[str, Any] = json.loads(reply.read())
            return told


@dataclass(slots=True)
class OneLease:
    """A lease of ``OneFleet``."""

    fleet: OneFleet
    request_id: str
    ended: int = 0
    abandoned: bool = False

    @property
    def socket(self) -> Path:
        return self.fleet.worker.socket

    @property
    def traits(self) -> WorkerTraits:
        return self.fleet.worker.traits

    @property
    def context_tokens(self) -> int:
        return self.fleet.worker.context_tokens

    @property
    def worker_id(self) -> str:
        return "w1"

    def release(self, *, abandoned: bool = False) -> None:
        self.ended += 1
        self.abandoned = abandoned
        self.fleet.next_turn()

    def condemn(self) -> None:
        self.fleet.condemned.append(self.worker_id)

    async def failure(self) -> HomelabError:
        return WorkerCrashed("the worker ended", signal="KILL")


@dataclass(slots=True)
class OneFleet:
    """A fleet of one worker: slots, a queue, leases.

    ``refuse`` makes every request fail, each of ``failures`` one; ``hold`` makes it wait.
    """

    worker: Worker
    granted: list[OneLease] = field(default_factory=list)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    keep_alives: list[float | None] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    unloaded: list[tuple[str, bool]] = field(default_factory=list)
    condemned: list[str] = field(default_factory=list)
    refuse: HomelabError | None = None
    hold: asyncio.Event | None = None
    failures: deque[HomelabError] = field(default_factory=deque)
    stands: Wait | None = None
    steps: Sequence[Wait] = (Wait("loading", 0.5), Wait("ready", 1.0))

    @property
    def open_leases(self) -> int:
        return sum(1 for lease in self.granted if not lease.ended)

    async def acquire(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None, priority: int = 0
    ) -> OneLease:
        self.asked.append((model.name, priority))
        self.keep_alives.append(keep_alive_s)
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse is not None:
            raise self.refuse
        if self.failures:
            raise self.failures.popleft()
        while self.open_leases >= self.worker.parallel:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            try:
                await turn
            finally:
                with contextlib.suppress(ValueError):
                    self.waiting.remove(turn)
        lease = OneLease(self, request_id)
        self.granted.append(lease)
        return lease

    def next_turn(self) -> None:
        for turn in self.waiting:
            if not turn.done():
                turn.set_result(None)
                return

    async def load(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None
    ) -> AsyncIterator[Wait]:
        assert (model.name, request_id[:4]) == (MODEL, "req-")
        self.keep_alives.append(keep_alive_s)
        for step in self.steps:
            if self.hold is not None:
                await self.hold.wait()
            if self.refuse is not None:
                raise self.refuse
            yield step

    async def unload(self, model: StoredModel, *, force: bool = False) -> bool:
        self.unloaded.append((model.name, force))
        return True

    def standing(self, request_id: str) -> Wait | None:
        assert request_id.startswith("req-")
        return self.stands

    def status(self) -> dict[str, Any]:
        row = {"id": "w1", "model": MODEL, "state": "loading", "progress": {"stage": "load", "done": 0.4}}
        return {"budget_bytes": 10, "used_bytes": 4, "waiting": len(self.waiting), "workers": [row]}


@dataclass(slots=True)
class Shelf:
    """A catalogue of a chat model and an embedding model, both served by the fake engine."""

    held: dict[str, StoredModel]
    version: int = 1

    def resolve(self, name: str) -> StoredModel:
        found = self.held.get(str(ModelRef.parse(name)))
        if found is None:
            raise ModelNotFound(
                f"no model {name!r}", hint="did you mean fake:latest? mlxctl list", model=name, closest=[MODEL]
            )
        return found

    def models(self) -> Sequence[StoredModel]:
        return list(self.held.values())

    def stamp(self) -> object:
        return self.version


class NoShaper:
    """Leaves requests as they are."""

    def shape(self, body: dict[str, Any], facts: ModelFacts, traits: WorkerTraits) -> Shaped:  # noqa: ARG002
        return Shaped(body)


@dataclass(slots=True)
class Rows:
    """Keeps what is recorded."""

    rows: list[RequestRow] = field(default_factory=list)

    def record(self, row: RequestRow) -> None:
        self.rows.append(row)


@dataclass(slots=True)
class Door:
    """A front door that listens, and everything behind it."""

    front: FrontDoor
    app: App
    fleet: OneFleet
    shelf: Shelf
    keys: KeyRing
    rows: Rows
    home: Home
    shutdowns: list[bool]
    router: TableRouter
    controller: NotingController
    events: EventBus

    @property
    def port(self) -> int:
        return int(self.front.addresses[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, *, control: bool = False, **options: Any) -> httpx2.AsyncClient:
        """An HTTP client of the TCP listener, or of the daemon's own socket."""
        if control:
            options["transport"] = httpx2.AsyncHTTPTransport(uds=str(self.home.daemon_sock))
        return httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False, **options)

    async def post(self, path: str, body: Any, slot: int = 0, /, **headers: str) -> httpx2.Response:
        """One POST, to a slot port or the front address; ``body`` is JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client() as client:
            chosen = {"content-type": "application/json", **headers}
            return await client.post(self.at(path, slot), content=content, headers=chosen)

    async def get(self, path: str, slot: int = 0, /, **headers: str) -> httpx2.Response:
        """One GET, from a slot port or the front address."""
        async with self.client() as client:
            return await client.get(self.at(path, slot), headers=headers)

    def at(self, path: str, slot: int) -> str:
        """The URL of a path on a slot port; on the front address without one."""
        return f"http://127.0.0.1:{slot}{path}" if slot else path

    async def raw(self, content: bytes, *, port: int = 0) -> bytes:
        """Everything the server answers to these bytes until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        try:
            writer.write(content)
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def still_serves(self) -> None:
        """Assert that an ordinary request works."""
        reply = await self.post("/v1/chat/completions", chat("fake: tokens=2"))
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == "tok0 tok1"


def chat(prompt: str = "fake: tokens=3", **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


def start_worker(
    folder: Path, traits: WorkerTraits, *, parallel: int = 4, name: str = "w1", context_tokens: int = 4096
) -> Worker:
    """Start a fake engine and wait until it answers."""
    path = folder / f"{name}.http"
    argv = [sys.executable, "-m", "homelab_llm.testing.fake_engine", "--socket", str(path), "--model", MODEL]
    argv += ["--parallel", str(parallel), "--context", str(context_tokens), *([] if traits.pooled else ["--unpooled"])]
    argv += [] if traits.notices_abort else ["--deaf"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    worker = Worker(process, path, traits, parallel, context_tokens)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if worker.stats()["loaded"]:
                return worker
        os.sched_yield()
    process.kill()
    raise AssertionError("the fake engine did not start")


def stop_worker(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait(10)
    worker.socket.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """One worker of each kind, for tests that do not hurt it."""
    folder = Path(f"/tmp/hlg-{os.getpid()}")
    folder.mkdir(mode=0o700)
    started = {
        "own": start_worker(folder, OWN_TRAITS, name="own"),
        "llama": start_worker(folder, LLAMA_CPP_TRAITS, name="llama"),
    }
    yield started
    for worker in started.values():
        stop_worker(worker)
    folder.rmdir()


@pytest.fixture
def own_worker(home: Home) -> Iterator[Worker]:
    """A worker for one test, which may kill it."""
    worker = start_worker(home.runtime, OWN_TRAITS)
    yield worker
    stop_worker(worker)


@pytest.fixture
def talkative_worker(home: Home) -> Iterator[Worker]:
    """A worker whose answers are larger than any socket's buffers."""
    worker = start_worker(home.runtime, OWN_TRAITS, name="w3", context_tokens=400_000)
    yield worker
    stop_worker(worker)


@pytest.fixture
def llama_worker(home: Home) -> Iterator[Worker]:
    """A worker that behaves as llama.cpp's server, for one test."""
    worker = start_worker(home.runtime, LLAMA_CPP_TRAITS, name="w2")
    yield worker
    stop_worker(worker)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    model = stored_fake_model(write_fake_model(tmp_path / "fake.gguf"), MODEL)
    facts = replace(model.facts, capabilities=("embedding",))
    return Shelf({MODEL: model, EMBEDDER: replace(model, name=EMBEDDER, facts=facts)})


OpenDoor = Callable[..., contextlib.AbstractAsyncContextManager[Door]]


@pytest.fixture
def open_door(home: Home, shelf: Shelf) -> OpenDoor:
    """Opens a front door for a block: ``async with open_door(worker, receive_deadline_s=1) as door``."""

    @contextlib.asynccontextmanager
    async def opened(
        worker: Worker,
        *,
        stall_timeout_s: float = 60,
        shaper: Shaper | None = None,
        named: bool = True,
        slots: SlotTable | None = None,
        slot_bind: str = "127.0.0.1",
        inherited: Inherited | None = None,
        news: Callable[[Event], None] | None = None,
        again_s: float = 60,
        before: Callable[[KeyRing], None] = lambda _keys: None,
        at: Home | None = None,
        controlled: bool = True,
        **settings: Any,
    ) -> AsyncIterator[Door]:
        own_home = at or home
        chosen = ServerSettings(**{"listen": ("127.0.0.1:0",), **settings})
        database = Database.open("", ready_database(own_home.database))
        fleet, keys, rows, shutdowns = OneFleet(worker), KeyRing(database), Rows(), list[bool]()
        before(keys)
        about: dict[str, Any] = {"version": "0", "pid": os.getpid(), "warnings": []}
        router, controller, events = TableRouter(shelf, slots or SlotTable()), NotingController(), EventBus(lambda: 0.0)
        parts = Parts(shelf, fleet, shaper or NoShaper(), keys, rows, lambda: about, lambda: shutdowns.append(True))
        parts.router = router
        if controlled:
            parts.controller, parts.events = controller, events
        app = App(parts, chosen, stall_timeout_s=stall_timeout_s)
        front = FrontDoor(
            app,
            chosen,
            own_home.daemon_sock,
            keys,
            named=named,
            slots=slots,
            slot_bind=slot_bind,
            inherited=inherited,
            news=news,
            again_s=again_s,
        )
        await front.start()
        try:
            yield Door(front, app, fleet, shelf, keys, rows, own_home, shutdowns, router, controller, events)
        finally:
            await front.stop(drain_s=0.2)
            database.close()

    return opened


def free_slots(count: int) -> SlotTable:
    """Slots on ports that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        ports = sorted(probe.getsockname()[1] for probe in probes)
    return SlotTable.of(",".join(map(str, ports)), ALIASES)


@pytest.fixture
async def slot_door(workers: dict[str, Worker], open_door: OpenDoor) -> AsyncIterator[Door]:
    """A front door with two slots, ``jerry-xl`` and ``jerry-l``, which serve nothing yet."""
    async with open_door(workers["own"], slots=free_slots(2)) as opened:
        yield opened
        assert opened.fleet.open_leases == 0


@pytest.fixture(params=["own", "llama"])
async def door(request: pytest.FixtureRequest, workers: dict[str, Worker], open_door: OpenDoor) -> AsyncIterator[Door]:
    """A front door before each kind of worker."""
    async with open_door(workers[request.param]) as opened:
        yield opened
        assert opened.fleet.open_leases == 0
        assert all(lease.ended == 1 for lease in opened.fleet.granted)


@pytest.fixture
async def one_door(workers: dict[str, Worker], open_door: OpenDoor) -> AsyncIterator[Door]:
    """A front door before our own kind of worker."""
    async with open_door(workers["own"]) as opened:
        yield opened
        assert opened.fleet.open_leases == 0
