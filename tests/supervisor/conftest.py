"""A supervisor with real hosts and fake engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.events import Event as Notice
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import EngineOptions, LaunchPlan
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.record import WorkerRecord, read_records
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Event, Loaded, LoadFailed, WorkerExit
from homelab_llm.inference.fleet.worker import WorkerInfo
from homelab_llm.testing.engines import FakeEngine
from homelab_llm.testing.events import Recorded, eventually
from homelab_llm.testing.models import stored_fake_model, write_fake_model


@dataclass
class Bench:
    """A supervisor, what it reported, and models to run."""

    home: Home
    folder: Path
    events: Recorded[Event]
    supervisor: Supervisor
    notices: Recorded[Notice] = field(default_factory=Recorded)

    def plan(self, worker_id: str, **model: Any) -> LaunchPlan:
        """A plan for a fake model of its own, written with these arguments."""
        stored = stored_fake_model(write_fake_model(self.folder / f"{worker_id}.gguf", **model), f"model-{worker_id}")
        return FakeEngine().plan(stored, EngineOptions(), self.supervisor.sockets(worker_id), self.home.derived)

    async def ready(self, worker_id: str = "abc12", **model: Any) -> WorkerInfo:
        """Start a worker and wait until it is loaded."""
        self.supervisor.start(worker_id, self.plan(worker_id, **model))
        await self.events.until(lambda event: event.__class__ in {Loaded, LoadFailed} and of(event, worker_id))
        found = self.supervisor.info(worker_id)
        assert found is not None, self.events
        return found

    async def exit_of(self, worker_id: str = "abc12") -> WorkerExit:
        """The report of its end."""
        event = await self.events.until(lambda event: isinstance(event, WorkerExit) and of(event, worker_id), 20)
        assert isinstance(event, WorkerExit)
        return event

    async def failed_load(self, worker_id: str = "abc12", **model: Any) -> LoadFailed:
        """Start a worker whose load fails, and wait for its end too."""
        self.supervisor.start(worker_id, self.plan(worker_id, **model))
        event = await self.events.until(lambda event: isinstance(event, LoadFailed) and of(event, worker_id), 20)
        assert isinstance(event, LoadFailed)
        await self.exit_of(worker_id)
        return event


def of(event: Event, worker_id: str) -> bool:
    """Whether the event is about this worker."""
    return getattr(event, "worker_id", None) == worker_id


@pytest.fixture
async def bench(home: Home, tmp_path: Path) -> AsyncIterator[Bench]:
    events: Recorded[Event] = Recorded()
    notices: Recorded[Notice] = Recorded()
    supervisor = Supervisor(home, events, load_timeout_s=20, drain_s=5, measure_s=0.05, publish=notices)
    yield Bench(home, tmp_path, events, supervisor, notices)
    await supervisor.close()
    assert list(home.runtime.iterdir()) == []
    assert read_records(home) == {}


async def stream_until_token(socket: Path, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A streaming chat whose first token has come."""
    body = json.dumps({"messages": [{"role": "user", "content": text}], "stream": True}).encode()
    reader, writer = await asyncio.open_unix_connection(str(socket))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await asyncio.wait_for(reader.readuntil(b"tok0"), 10)
    return reader, writer


def record_of(worker_id: str, **changes: Any) -> WorkerRecord:
    """A record of a worker, as an earlier daemon may have left it."""
    usual: dict[str, Any] = {
        "boot_id": processes.boot_id(),
        "started_unix_s": 1.0,
        "probe": "",
        "ready_path": "/health",
    }
    proof: dict[str, Any] = {"nonce": "n", "digest": "sha256:" + "0" * 64, "engine": "fake", "model": "m"}
    return WorkerRecord(worker_id=worker_id, **(proof | usual | changes))


async def dead(*pids: int | None) -> None:
    """Wait until none of these processes lives."""

    def living() -> list[int]:
        sights = [processes.look(pid) for pid in pids if pid]
        return [sight.pid for sight in sights if sight is not None and not sight.zombie]

    await eventually(lambda: not living(), what=f"the end of {pids}")
