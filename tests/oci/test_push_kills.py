"""Killed at every failpoint and at random moments: no tag without its blobs, and what was sent is not sent again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import homelab_llm.store.oci
from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.oci.sending import CHUNK_BYTES
from homelab_llm.store.push import FAILPOINTS, JobProgress, PullSettings, push
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.registry_front import FaultyRegistry, RegistryFaults

Settings = Callable[..., PullSettings]
Add = Callable[..., StoredModel]
FULL = os.environ.get("HOMELAB_SIZE") == "full"
MOMENTS = 200 if FULL else 2
LOST_BYTES = 16_000_000
SHARED = b"known to another repository"
FOLDER = Path(homelab_llm.store.oci.__file__).parent
IN_COURIER = ("push.upload", "push.chunk")


class Pushes:
    """The program that pushes and is killed."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("push_scenario.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, store: Path, target: str, failpoints: str = "") -> int:
        """Start a push; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"store": str(store), "target": target, "failpoints": failpoints}) + "\n")
        self._process.stdin.flush()
        return int(self._heard()["pid"])

    def end(self) -> dict[str, Any]:
        """How it ended."""
        return self._heard()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def pushes() -> Iterator[Pushes]:
    running = Pushes()
    yield running
    running.close()


@pytest.fixture
def front(shared_registry: Registry) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(shared_registry) as running:
        yield running


def assert_no_tag_without_its_blobs(registry: Registry, repository: str) -> dict[str, str]:
    """The tags of the repository; every one leads to a whole model."""
    tags = registry.tags(repository)
    for digest in tags.values():
        manifest = json.loads(blob(registry, digest))
        assert Digest.of(blob(registry, digest)) == Digest.parse(digest)
        for described in [manifest["config"], *manifest["layers"]]:
            assert str(Digest.of(blob(registry, described["digest"]))) == described["digest"]
    return tags


def blob(registry: Registry, digest: str) -> bytes:
    hexadecimal = digest.removeprefix("sha256:")
    folder = registry.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal
    return (folder / "data").read_bytes()


def uploads_bytes(front: FaultyRegistry) -> int:
    """Content that went out, without manifests."""
    sent = ("PATCH", "PUT", "POST")
    return sum(s.body_bytes for s in front.seen if s.method in sent and "/manifests/" not in s.path)


def test_the_list_of_failpoints_is_the_failpoints_of_the_code() -> None:
    written = {name for path in FOLDER.glob("*.py") for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    assert written == set(FAILPOINTS)


@pytest.mark.requirement("R-S2", "R-M7")
@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_at_a_failpoint_nothing_half_is_shown_and_the_next_push_goes_on(
    shared_registry: Registry,
    front: FaultyRegistry,
    pushes: Pushes,
    store: ModelStore,
    add: Add,
    settings: Settings,
    name: str,
    large: bytes,
) -> None:
    slug = name.replace(".", "-")
    content = slug.encode() + (large if name.startswith(IN_COURIER) else b"small")
    add(store, "before:1", {"model.gguf": SHARED})
    push(store, "before:1", f"oci://{front.host}/kills/{slug}-before:1", settings=settings())
    model = add(store, "killed:1", {"model.gguf": content, "README.md": SHARED})
    target, repository = f"oci://{front.host}/kills/{slug}:1", f"kills/{slug}"
    before = uploads_bytes(front)
    pushes.begin(store.root, target, f"{name}=kill")
    ended = pushes.end()
    tags = assert_no_tag_without_its_blobs(shared_registry, repository)
    if name.startswith(IN_COURIER):  # who sent it sends another one, and gives up when all are killed
        assert ended["signal"] == 0
        assert bool(tags) == ("sent_bytes" in ended)
    else:
        assert ended == {"signal": 9}
        assert tags == ({"1": str(model.digest)} if name in ("push.manifest.sent", "push.noted") else {})
    pushes.begin(store.root, target)
    assert pushes.end()["signal"] == 0
    assert assert_no_tag_without_its_blobs(shared_registry, repository) == {"1": str(model.digest)}
    # The one place where a courier may lose what it sent, here a chunk each: the registry has moved on, and its word
    # on where to go on is not written down yet.
    lost = 3 * CHUNK_BYTES if name == "push.chunk.sent" else LOST_BYTES
    assert uploads_bytes(front) - before <= len(content) + 10_000 + lost


@pytest.mark.timeout(1800 if FULL else 180)
@pytest.mark.requirement("R-S2", "R-M7")
def test_killed_at_random_moments_a_push_loses_little_and_shows_nothing_half(
    shared_registry: Registry, front: FaultyRegistry, pushes: Pushes, store: ModelStore, add: Add, large: bytes
) -> None:
    chance = random.Random(11)  # noqa: S311 — moments, not secrets
    contents = {"model-1.gguf": large + large[:7_000_000], "model-2.gguf": large[::-1], "README.md": SHARED}
    model = add(store, "killed:1", contents)
    total = sum(map(len, contents.values())) + 10_000
    killed = 0
    for moment in range(MOMENTS):
        shutil.rmtree(store.root / "tmp" / "uploads", ignore_errors=True)
        repository = f"kills/random-{moment}"
        target = f"oci://{front.host}/{repository}:1"
        front.seen.clear()
        kills = chance.randint(1, 3)
        for kill in range(kills):
            at = uploads_bytes(front) + chance.randrange(total // kills)
            pid = pushes.begin(store.root, target)
            front.trip = (at, lambda pid=pid: os.kill(pid, signal.SIGKILL))
            ended = pushes.end()
            tags = assert_no_tag_without_its_blobs(shared_registry, repository)
            assert tags in ({}, {"1": str(model.digest)}), (moment, kill)
            killed += ended["signal"] == signal.SIGKILL
            if ended["signal"] == 0:
                break
        front.trip = None
        pushes.begin(store.root, target)
        assert pushes.end()["signal"] == 0
        assert assert_no_tag_without_its_blobs(shared_registry, repository) == {"1": str(model.digest)}
        assert uploads_bytes(front) <= total + LOST_BYTES, (moment, kills)
        shutil.rmtree(shared_registry.storage / "docker/registry/v2/repositories" / repository)
    assert killed > MOMENTS / 2
    assert list((store.root / "tmp" / "uploads").glob("[0-9a-f]*.json")) == []


def test_a_courier_that_is_killed_is_replaced(
    shared_registry: Registry, front: FaultyRegistry, store: ModelStore, add: Add, settings: Settings, large: bytes
) -> None:
    model = add(store, "killed:1", {"model.gguf": b"courier" + large})
    killed: list[int] = []

    def kill(progress: JobProgress) -> None:
        if progress.done_bytes > 10_000_000 and not killed:
            for child in psutil.Process().children():
                if "homelab_llm.store.oci.courier" in child.cmdline():
                    killed.append(child.pid)
                    child.kill()

    front.faults = RegistryFaults(bytes_per_s=60_000_000)
    push(store, "killed:1", f"oci://{front.host}/kills/courier:1", settings=settings(), progress=kill)
    assert len(killed) == 1
    assert assert_no_tag_without_its_blobs(shared_registry, "kills/courier") == {"1": str(model.digest)}
