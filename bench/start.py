"""How fast things start and how little they take: daemon, command line, LiteLLM beside them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from bench.figures import Figure, spread
from bench.rig import LITELLM, temporary_home
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model

MLXCTL = Path(sys.executable).parent / "mlxctl"
ROUNDS = 9


def measure() -> Iterator[Figure]:
    """Ready time and idle memory of the daemon, wall time of verbs that only read."""
    yield from _daemon()
    yield from _verbs()


def _daemon() -> Iterator[Figure]:
    ready, memory = [], []
    for _ in range(ROUNDS):
        with temporary_home() as home, Daemon(home) as daemon:
            ready.append(daemon.ready_s)
            memory.append(psutil.Process(daemon.pid).memory_info().rss / 1e6)
    yield Figure("daemon.ready", statistics.median(ready), "s", "<= 0.7", "", spread(ready))
    yield Figure("daemon.idle_memory", statistics.median(memory), "MB", "<= 80", "", spread(memory, 1))


def _verbs() -> Iterator[Figure]:
    with temporary_home() as home:
        store = ModelStore(home.store)
        for number in range(20):
            model = write_fake_model(home.root / "fake.gguf", name=f"m{number}")
            store.import_path(model, ModelRef.parse(f"m{number}"))
        environ = {**os.environ, "HOMELAB_HOME": str(home.root)}
        litellm = statistics.median(_walls_s([str(LITELLM), "--version"], environ, 3))
        python = statistics.median(_walls_s([sys.executable, "-c", "pass"], environ, ROUNDS))
        for verb in ("version", "list"):
            walls = _walls_s([str(MLXCTL), verb], environ, ROUNDS)
            against = f"litellm --version {litellm:.2f} s, bare python {python:.3f} s"
            yield Figure(f"cli.{verb}", statistics.median(walls), "s", "<= 0.12", against, spread(walls, 3))


def _walls_s(command: Sequence[str], environ: dict[str, str], rounds: int) -> list[float]:
    walls = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run(command, env=environ, check=True, capture_output=True)
        walls.append(time.perf_counter() - started)
    return walls[1:]
