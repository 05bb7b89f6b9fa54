"""A worker host without a daemon around it, and a fake engine without a host."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.control import Control
from homelab_llm.inference.fleet.launch import HOST_ARGV, Lifetimes, WorkerFiles, write_spec
from homelab_llm.testing.engines import OWN_TRAITS
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import stored_fake_model, write_fake_model

NONCE = "a-nonce"


@dataclass
class Hosts:
    """Starts hosts of shell scripts and ends what is left of them."""

    home: Home
    files: WorkerFiles
    plan: LaunchPlan
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, script: str, *, prepare: str = "", **changes: Any) -> subprocess.Popen[bytes]:
        """A host whose engine is ``script``; ``changes`` replace values of its spec."""
        path = write_spec(self.files, self.plan, NONCE, Lifetimes(10.0, 5.0, 0.0, 10.0))
        spec: dict[str, Any] = json.loads(path.read_bytes())
        spec["argv"] = ["/bin/sh", "-c", script]
        spec["prepare"] = ["/bin/sh", "-c", prepare] if prepare else []
        path.write_text(json.dumps(spec | changes))
        host = subprocess.Popen([*HOST_ARGV, str(path)], start_new_session=True)
        self.running.append(host)
        return host

    def daemon(self) -> subprocess.Popen[bytes]:
        """Somebody to be watched."""
        return subprocess.Popen(["sleep", "600"])

    async def talk(self) -> Control:
        """A conversation with the host, its hello not yet read."""

        async def connected() -> list[Control]:
            try:
                return [await Control.open(self.files["ctl"])]
            except OSError:
                return []

        return (await eventually(connected, what="the control socket"))[0]

    def reason(self) -> dict[str, Any]:
        """The exit file."""
        told: dict[str, Any] = json.loads(self.files["exit"].read_bytes())
        return told


async def message(control: Control, kind: str) -> dict[str, Any]:
    """The next message of that type; others are passed over."""
    async with asyncio.timeout(10):
        while (found := await control.receive()) is not None:
            if found["type"] == kind:
                return found
    raise AssertionError(f"the host went without {kind}")


@pytest.fixture
def hosts(home: Home, tmp_path: Path) -> Iterator[Hosts]:
    model = stored_fake_model(write_fake_model(tmp_path / "m.gguf"), "m")
    plan = LaunchPlan("fake", model, ("/bin/true",), parallel=1, context_tokens=64, traits=OWN_TRAITS)
    found = Hosts(home, WorkerFiles.of(home, "abc12"), plan)
    yield found
    for host in found.running:
        if host.poll() is None:
            host.terminate()
        host.wait(10)
        assert not processes.group_members(host.pid)


@dataclass
class FakeProcess:
    """A running fake engine and a client for it."""

    process: subprocess.Popen[bytes]
    socket: Path
    http: aiohttp.ClientSession

    async def stats(self) -> dict[str, Any]:
        async with self.http.get("http://fake/stats") as response:
            told: dict[str, Any] = await response.json()
            return told

    def chat(self, text: str, **fields: Any) -> Any:
        """A request for a chat completion, to be used with ``async with``."""
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("http://fake/v1/chat/completions", json=body)


class FakeProcesses:
    """Starts fake engines with given options."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[FakeProcess] = []

    @staticmethod
    def _run(argv: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def start(self, *options: str, model: Mapping[str, Any] | None = None) -> FakeProcess:
        """A fake engine that listens; loaded or not."""
        path = self._folder / f"{len(self.started)}.sock"
        file = write_fake_model(self._folder / f"{len(self.started)}.gguf", **(model or {}))
        argv = [sys.executable, "-m", "homelab_llm.testing.fake_engine", "--socket", str(path), "--file", str(file)]
        process = self._run([*argv, *options])
        found = FakeProcess(process, path, aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path), limit=0)))
        self.started.append(found)

        async def answers() -> bool:
            try:
                return bool(await found.stats())
            except aiohttp.ClientError:
                return False

        await eventually(answers, what="the fake engine")
        return found


@pytest.fixture
async def fakes(home: Home) -> AsyncIterator[FakeProcesses]:
    found = FakeProcesses(home.runtime)
    yield found
    for fake in found.started:
        await fake.http.close()
        fake.process.kill()
        fake.process.wait(10)
