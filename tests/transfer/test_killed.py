"""A pull that is killed at random moments, and on a disk that is too small: nothing is lost, nothing half shows."""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DiskFull
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.verify import verify
from homelab_llm.testing.file_server import FILE, REFERENCE, serving
from homelab_llm.testing.models import write_fake_model

FULL = os.environ.get("HOMELAB_SIZE") == "full"
KILLS = 200 if FULL else 8
SIZE_BYTES = 300_000_000 if FULL else 40_000_000
PACE_BYTES_PER_S = 20_000_000  # of each connection
MOST_LOST_BYTES = 16_000_000
PROGRAM = """
import sys
from pathlib import Path
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
def tell(report):
    print(report.done_bytes, flush=True)
settings = PullSettings(hf_endpoint=sys.argv[2], free_floor_bytes=0, environ={}, backoff_s=0.001)
pull(ModelStore(Path(sys.argv[1])), sys.argv[3], name="killed:1", settings=settings, progress=tell)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_model(tmp_path_factory.mktemp("served") / FILE, weights_bytes=SIZE_BYTES)


@pytest.fixture
def url(file: Path) -> Iterator[str]:
    with serving(file, PACE_BYTES_PER_S) as address:
        yield address


def killed_after(seconds: float, store: ModelStore, url: str, **environment: str) -> tuple[bool, int]:
    """Pull in a process that is killed so long after its first byte; whether it was, and the last bytes it reported."""
    command = [sys.executable, "-c", PROGRAM, str(store.root), url, REFERENCE]
    environ = {**os.environ, **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as program:
        assert program.stdout is not None
        reported, deadline = 0, float("inf")
        pending = b""
        while True:
            left = max(0.0, min(600.0, deadline - time.monotonic()))
            if not select.select([program.stdout], [], [], left)[0]:
                program.kill()
            received = os.read(program.stdout.fileno(), 65536)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            reported = max([reported, *map(int, lines)])
            if reported and deadline == float("inf"):
                deadline = time.monotonic() + seconds
    return program.returncode == -9, reported


@pytest.mark.timeout(1800 if FULL else 180)
@pytest.mark.requirement("R-M3", "R-M4", "R-S2")
def test_killed_at_random_moments_little_is_lost_and_the_model_is_whole_in_the_end(
    disk: Path, file: Path, url: str
) -> None:
    chance = random.Random(11)  # noqa: S311
    lasts_s = SIZE_BYTES / (8 * PACE_BYTES_PER_S)
    digest, store, number = Digest.of_file(file), ModelStore(disk / "store-0"), 0
    kills = 0
    while kills < KILLS:
        killed, reported = killed_after(chance.uniform(0, lasts_s * 0.6), store, url)
        kept = store.blobs.size_bytes(digest) or store.blobs.kept_bytes(str(digest))
        assert kept >= reported - MOST_LOST_BYTES
        assert all(Digest.of_file(path).hex == path.name for model in store.models() for path in model.files.values())
        kills += killed
        if not killed:
            assert verify(store).ok
            number += 1
            store = ModelStore(disk / f"store-{number}")
    killed_after(float("inf"), store, url)
    assert verify(store).ok
    assert [Digest.of_file(path) for model in store.models() for path in model.files.values()] == [digest]


@pytest.mark.requirement("R-M3", "R-S2")
@pytest.mark.full_size  # checkpoints come after more bytes than the CI's file has
@pytest.mark.parametrize("passage", [1, 2, 4])
def test_killed_at_a_checkpoint_the_pull_goes_on(disk: Path, file: Path, url: str, passage: int) -> None:
    store = ModelStore(disk / "store")
    killed, reported = killed_after(
        float("inf"), store, url, HOMELAB_FAILPOINTS=f"store.blob.checkpoint=kill@{passage}"
    )
    assert killed
    assert store.blobs.kept_bytes(str(Digest.of_file(file))) >= reported - MOST_LOST_BYTES
    assert killed_after(float("inf"), store, url)[0] is False
    assert verify(store).ok


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.mounts  # where nothing can be mounted, test_faults.py shows the same by failpoints
@pytest.mark.requirement("R-M5")
def test_on_a_disk_that_fills_up_what_came_is_kept_and_the_pull_goes_on_when_there_is_room(
    tmp_path: Path, file: Path, url: str
) -> None:
    with small_disk(tmp_path / "small", 2 * SIZE_BYTES) as folder:
        store = ModelStore(folder / "store")
        ballast = folder / "ballast"

        def fill(report: object) -> None:
            if not ballast.exists() and getattr(report, "done_bytes", 0) > SIZE_BYTES // 10:
                with contextlib.suppress(OSError):  # the pull takes room at the same time
                    ballast.write_bytes(bytes(2 * SIZE_BYTES))

        settings = PullSettings(hf_endpoint=url, free_floor_bytes=0, environ={})
        with pytest.raises(DiskFull):
            pull(store, REFERENCE, name="full:1", settings=settings, progress=fill)
        kept = store.blobs.kept_bytes(str(Digest.of_file(file)))
        assert kept >= SIZE_BYTES // 10
        assert store.models() == []
        ballast.unlink()
        pull(store, REFERENCE, name="full:1", settings=settings)
        assert verify(store).ok
