"""Requests beside a job: a running pull neither delays them nor grows the daemon."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

Note = Callable[..., None]
ASKED = {"model": "fake", "messages": [{"role": "user", "content": "fake: tokens=4"}], "max_tokens": 4}


@contextmanager
def _hub(folder: Path, megabytes: int) -> Iterator[str]:
    """A hub in a process of its own, with one large model; its address."""
    place = folder / "org" / "large"
    place.mkdir(parents=True)
    write_fake_model(place / "large.gguf", name="large", weights_bytes=megabytes << 20)
    command = ["nice", "-n", "19", sys.executable, "-m", "homelab_llm.testing.hub", str(folder)]  # elsewhere in life
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        try:
            yield hub.stdout.readline().strip()
        finally:
            hub.terminate()


def _state(daemon: Daemon, job: dict[str, Any]) -> str:
    return str(daemon.call("GET", f"/admin/jobs/{job['job_id']}")[1]["state"])


def _ask(client: httpx2.Client) -> float:
    started = time.perf_counter()
    assert client.post("/v1/chat/completions", json=ASKED).status_code == 200
    return (time.perf_counter() - started) * 1000


@pytest.mark.requirement("R-M2")
def test_requests_do_not_notice_a_pull(tmp_path: Path, full: bool, figure: Note) -> None:
    rounds = 500 if full else 30
    with temporary_home() as home, _hub(tmp_path / "hub", 2048 if full else 64) as hub:
        ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
        environ = {
            "XDG_RUNTIME_DIR": str(home.runtime.parent),
            "HOMELAB_STORE__HF_ENDPOINT": hub,
            "HOMELAB_STORE__ALLOW_PRIVATE_HOSTS": "true",
        }
        with Daemon(home, fake=True, environ=environ) as daemon, httpx2.Client(base_url=daemon.url) as client:
            for _ in range(rounds):
                _ask(client)
            idle_ms = [_ask(client) for _ in range(rounds)]
            process = psutil.Process(daemon.pid)
            before_bytes = process.memory_info().rss
            order = {"kind": "pull", "parameters": {"model": "hf:org/large", "name": "large"}}
            job = daemon.call("POST", "/admin/jobs", order)[1]
            busy_ms: list[float] = []
            largest_bytes = 0
            while (state := _state(daemon, job)) in ("queued", "running") and len(busy_ms) < 10 * rounds:
                busy_ms += [_ask(client) for _ in range(10)]
                largest_bytes = max(largest_bytes, process.memory_info().rss)
            job = daemon.call("GET", f"/admin/jobs/{job['job_id']}")[1]
            assert state in ("running", "succeeded"), job["error"]
            assert largest_bytes - before_bytes < 32 << 20
    idle, busy = (statistics.quantiles(values, n=100)[-1] for values in (idle_ms, busy_ms))
    told = f"p50 {statistics.median(idle_ms):.2f} and {statistics.median(busy_ms):.2f} ms, {len(busy_ms)} requests"
    figure("jobs.front_door_p99_idle", idle, "ms", "", told)
    figure("jobs.front_door_p99_while_pulling", busy, "ms", "", told)
    figure("jobs.daemon_grew", (largest_bytes - before_bytes) / 1e6, "MB", "<= 32")
