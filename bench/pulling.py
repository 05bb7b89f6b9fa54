"""How fast and how small a pull is: against ``hf_hub_download``, ``curl`` and ``dd``, from the same cheap server."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.figures import BUILD, Figure, spread
from bench.rig import ROOT
from homelab_llm.testing.file_server import FILE, REFERENCE, REPO, serving
from homelab_llm.testing.models import write_fake_model

SIZE_BYTES = 10**9
PACE_BYTES_PER_S = 20 * 10**6
ROUNDS = 5
_PACED_ROUNDS = 3
_SHARED = Path("/dev/shm")  # noqa: S108 — a folder of our own is made in it
_MEMORY = _SHARED if _SHARED.is_dir() else None

PULL = f"""
import json, resource, sys, time
from pathlib import Path
from homelab_llm.store import writer
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
url, root, connections, hashing = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "hash"
def skip(self, at_least_bytes=1):
    there = self.part.frontier - self._hashed_bytes
    self._hashed_bytes += there
    self.offset = self._hashed_bytes
    return there
def believe(self):
    skip(self)
    return self._expected
if not hashing:
    writer.BlobWriter.follow, writer.BlobWriter._checked = skip, believe
store = ModelStore(root)
settings = PullSettings(hf_endpoint=url, free_floor_bytes=0, environ={{}}, connections_per_host=connections)
import homelab_llm.store.transfer.download, homelab_llm.store.sources.huggingface
def peak_bytes():  # on Linux ru_maxrss begins with that of who started us
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before = peak_bytes()
started = time.perf_counter()
pull(store, {REFERENCE!r}, name="m:1", settings=settings)
wall = time.perf_counter() - started
print(json.dumps([wall, peak_bytes() - before]))
"""
HUB_DOWNLOAD = f"""
import json, sys, time
from huggingface_hub import hf_hub_download
started = time.perf_counter()
hf_hub_download({REPO!r}, {FILE!r}, endpoint=sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps([time.perf_counter() - started, 0]))
"""


def measure() -> Iterator[Figure]:
    """A file of 1 GB: in memory, on disk, and over connections of 20 MB/s."""
    with tempfile.TemporaryDirectory(prefix="hl-pulling-", dir=_MEMORY) as folder:
        file = write_fake_model(Path(folder) / FILE, weights_bytes=SIZE_BYTES)
        with serving(file) as url:
            yield from _in_memory(url)
            yield from _on_disk(url, file)
        with serving(file, PACE_BYTES_PER_S) as url:
            yield from _paced(url)


def _in_memory(url: str) -> Iterator[Figure]:
    memory: list[float] = []

    def ours() -> float:
        wall, added = _pulled(url, _MEMORY)
        memory.append(added / 1e6)
        return wall

    walls = _in_turns(
        ROUNDS,
        ours=ours,
        hub=lambda: _hub_download(url),
        curl=lambda: _curl(url),
        unhashed=lambda: _pulled(url, _MEMORY, hashing="none")[0],
    )
    mb_per_s = {name: SIZE_BYTES / 1e6 / statistics.median(times) for name, times in walls.items()}
    anchors = f"hf_hub_download {mb_per_s['hub']:.0f} MB/s, curl {mb_per_s['curl']:.0f} MB/s (no digest)"
    yield Figure("pull.memory", mb_per_s["ours"], "MB/s", "", anchors, f"s: {spread(walls['ours'])}")
    yield Figure("pull.against_hub_download", mb_per_s["ours"] / mb_per_s["hub"], "x", ">= 3", anchors)
    yield Figure("pull.hash_on_loopback", mb_per_s["unhashed"] / mb_per_s["ours"], "x", "", "the same without a hash")
    yield Figure("pull.added_memory", max(memory), "MB", "<= 80", "", spread(memory, 1))


def _on_disk(url: str, file: Path) -> Iterator[Figure]:
    BUILD.mkdir(exist_ok=True)
    walls = _in_turns(
        ROUNDS,
        ours=lambda: _pulled(url, BUILD)[0],
        dd=lambda: _dd(file),
        memory=lambda: _pulled(url, _MEMORY)[0],
    )
    ours, dd, memory = (statistics.median(walls[name]) for name in ("ours", "dd", "memory"))
    against = (
        f"dd conv=fsync {SIZE_BYTES / 1e6 / dd:.0f} MB/s, this pull in memory {SIZE_BYTES / 1e6 / memory:.0f} MB/s"
    )
    yield Figure("pull.disk", SIZE_BYTES / 1e6 / ours, "MB/s", "", against, f"s: {spread(walls['ours'])}")
    yield Figure("pull.against_plain_dd", dd / ours, "x", "", f"dd conv=fsync {SIZE_BYTES / 1e6 / dd:.0f} MB/s")
    # A disk that takes more than network, copy and SHA-256 bring on these cores is not what bounds a pull.
    yield Figure("pull.against_dd", max(dd, memory) / ours, "x", ">= 0.9", f"the slower of {against}")


def _paced(url: str) -> Iterator[Figure]:
    (one,) = _in_turns(1, one=lambda: _pulled(url, _MEMORY, connections=1)[0])["one"]
    walls = _in_turns(
        _PACED_ROUNDS,
        eight=lambda: _pulled(url, _MEMORY)[0],
        unhashed=lambda: _pulled(url, _MEMORY, hashing="none")[0],
    )
    eight, unhashed = statistics.median(walls["eight"]), statistics.median(walls["unhashed"])
    against = f"one connection {SIZE_BYTES / 1e6 / one:.1f} MB/s"
    yield Figure("pull.eight_connections", one / eight, "x", ">= 7", against, spread(walls["eight"]))
    against = f"the same without a hash {unhashed:.2f} s"
    yield Figure("pull.verified", eight / unhashed, "x", "<= 1.05", against, spread(walls["eight"]))


def _in_turns(rounds: int, **ways: Callable[[], float]) -> dict[str, list[float]]:
    """Each way once per round, one after the other: what disturbs the machine disturbs all."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            walls[name].append(way())
    return walls


def _pulled(url: str, where: Path | None, *, connections: int = 8, hashing: str = "hash") -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="hl-pulled-", dir=where) as folder:
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
        return _run([sys.executable, "-c", PULL, url, f"{folder}/store", str(connections), hashing], environ)


def _hub_download(url: str) -> float:
    with tempfile.TemporaryDirectory(prefix="hl-hub-", dir=_MEMORY) as folder:
        environ = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": folder}
        return _run([sys.executable, "-c", HUB_DOWNLOAD, url, f"{folder}/cache"], environ)[0]


def _curl(url: str) -> float:
    with tempfile.TemporaryDirectory(prefix="hl-curl-", dir=_MEMORY) as folder:
        return _wall_s(["curl", "-sS", "-o", f"{folder}/{FILE}", f"{url}/{REPO}/resolve/main/{FILE}"])


def _dd(file: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="hl-dd-", dir=BUILD) as folder:
        return _wall_s(["dd", f"if={file}", f"of={folder}/copy", "bs=1M", "conv=fsync", "status=none"])


def _wall_s(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def _run(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    wall, added = json.loads(done.stdout.splitlines()[-1])
    return wall, added
