"""A real registry, and a store on a fast disk with models in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.http import HttpLimits
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.sources.table import PullSettings
from homelab_llm.testing.registries import Registry

Settings = Callable[..., PullSettings]
Client = Callable[..., RegistryClient]


@pytest.fixture(scope="session")
def shared_registry() -> Iterator[Registry]:
    """One registry for the tests that use a repository of their own."""
    with Registry() as running:
        yield running


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry of this test alone."""
    with Registry() as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody without any credentials."""
    return {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    """Makes settings without the machine's own environment or long pauses."""

    def make(**changes: object) -> PullSettings:
        values: dict[str, object] = {
            "free_floor_bytes": 0,
            "environ": environ,
            "limits": HttpLimits(read_s=10, backoff_s=0.001),
            "backoff_s": 0.001,
            **changes,
        }
        return PullSettings(**values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """Opens clients that may push."""
    opened: list[RegistryClient] = []

    def make(host: str, *, push: bool = True, **changes: object) -> RegistryClient:
        opened.append(open_registry(host, settings(**changes), push=push))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="hl-oci-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def store(disk: Path) -> ModelStore:
    return ModelStore(disk / "store")
