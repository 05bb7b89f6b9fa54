"""The store at the size of a household that keeps everything: listed, pruned, verified and mended."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.verify import verify
from homelab_llm.testing.big_store import fill_store
from homelab_llm.testing.homes import temporary_home

if TYPE_CHECKING:
    from tests.bars.conftest import Note

MEGABYTE = 1_000_000
_ROUNDS = 7


_PROGRAM = """
import atexit, resource, sys
from homelab_llm.interface.cli.main import main

def tell():
    try:
        lines = open("/proc/self/status").read().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # macOS, where it is in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stderr.write(f"peak {peak}\\n")

atexit.register(tell)
main()
"""


def timed(*argv: str, home: Home) -> tuple[float, float]:
    """Seconds of one call of ``mlxctl``, and the most memory it had, in MB."""
    environ = {**os.environ, "HOMELAB_HOME": str(home.root)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *argv], env=environ, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, int(done.stderr.split()[-1]) / MEGABYTE


@pytest.mark.requirement("R-M5")
def test_a_store_of_a_thousand_models_is_listed_and_pruned(full: bool, figure: Note) -> None:
    models, blobs = (1_000, 20_000) if full else (250, 2_000)
    with temporary_home() as home:
        store = ModelStore(home.store)
        fill_store(store, models, blobs, unreferenced=blobs // 50)
        assert len(store.models()) == models
        base = min(timed("version", home=home)[1] for _ in range(2))
        listed = [timed("list", "--json", home=home) for _ in range(_ROUNDS)]
        rehearsed = store.prune(dry=True)
        pruned = timed("prune", "--json", home=home)
        assert rehearsed.blobs == blobs // 50
        assert store.prune(dry=True).blobs == 0
        assert len(ModelStore(home.store).models()) == models
        figure("store.list_1000", min(seconds for seconds, _ in listed), "s", "<= 0.3")
        figure("store.prune_1000", pruned[0], "s", "<= 2")
        figure("store.memory_added", max(memory for _, memory in [*listed, pruned]) - base, "MB", "<= 100")


def hash_memory(threads: int, total_bytes: int) -> float:
    """Bytes per second that the processors hash out of memory that no cache holds, all together."""
    block = memoryview(os.urandom(1 << 20) * 128)
    each = max(1, total_bytes // threads // len(block))

    def work() -> None:
        running = hashlib.sha256()
        for _ in range(each):
            running.update(block)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return each * threads * len(block) / (time.perf_counter() - started)


@pytest.mark.requirement("R-M4", "B-9")
def test_verify_is_as_fast_as_the_processors_hash(full: bool, figure: Note, tmp_path: Path) -> None:
    files, size = (16, 256 << 20) if full else (4, 8 << 20)
    store = ModelStore(tmp_path / "store")
    store.layout.ensure()
    facts = ModelFacts(format="safetensors", architecture="x", size_bytes=files * size)
    digests = {}
    for number in range(files):
        content = os.urandom(1 << 20) * (size >> 20)
        digests[f"model-{number}.safetensors"] = Digest.of(content)
        store.layout.blob(Digest.of(content)).write_bytes(content)
    store.add(ModelRef.parse("large:1"), digests, facts, source="test")
    threads = os.cpu_count() or 1
    ratios, speeds = [], []
    for _ in range(_ROUNDS if full else 1):
        anchor = hash_memory(threads, files * size)
        report = verify(store)
        assert report.ok
        speeds.append(report.bytes_hashed / report.took_s)
        ratios.append(speeds[-1] / anchor)
    spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
    figure("store.verify_speed", max(speeds) / 1e9, "GB/s")
    figure("store.verify_ratio", sorted(ratios)[len(ratios) // 2], "x", ">= 0.9", spread)
