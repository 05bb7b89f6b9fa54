"""A hub with one model that is large enough for several connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.failpoints import arm
from homelab_llm.core.http import HttpLimits
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

Settings = Callable[..., PullSettings]
SIZE_BYTES = 24_000_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="hl-transfer-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def store(disk: Path) -> ModelStore:
    return ModelStore(disk / "store")


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file in which no two blocks are alike."""
    file = write_fake_model(tmp_path_factory.mktemp("gguf") / "m.gguf", weights_bytes=SIZE_BYTES)
    header = file.read_bytes()[:-SIZE_BYTES]
    noise = random.Random(7).randbytes(SIZE_BYTES).replace(b"\0", b"\1")  # noqa: S311
    return header + noise


@pytest.fixture
def hub(content: bytes) -> Iterator[FakeHub]:
    with FakeHub(repos={"Org/Large-GGUF": {"m-F32.gguf": content}}) as running:
        yield running


@pytest.fixture
def settings(hub: FakeHub) -> Settings:
    """Makes settings for that hub; without the machine's own environment, floors or long pauses."""

    def make(**changes: object) -> PullSettings:
        values: dict[str, object] = {
            "hf_endpoint": hub.url,
            "free_floor_bytes": 0,
            "environ": {},
            "limits": HttpLimits(read_s=5, backoff_s=0.001),
            "backoff_s": 0.001,
            **changes,
        }
        return PullSettings(**values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    arm("")
