"""A real registry, and a store on a fast disk with models in it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.http import HttpLimits
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.oci.sending import CHUNK_BYTES
from homelab_llm.store.settings import PullSettings
from homelab_llm.testing.registries import PASSWORD, USER, Registry

Settings = Callable[..., PullSettings]
Client = Callable[..., RegistryClient]

FACTS = ModelFacts(format="gguf", architecture="fake", size_bytes=7, licence="apache-2.0", capabilities=("chat",))


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
def log_in(environ: dict[str, str]) -> Callable[..., None]:
    """Leaves credentials for a registry as ``docker login`` does."""

    def write(host: str, **entry: str) -> None:
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        path = Path(environ["HOME"]) / ".docker" / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {host: entry or {"auth": auth}}}))

    return write


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


@pytest.fixture
def add() -> Callable[..., StoredModel]:
    """Adds a model of files given as bytes."""

    def make(store: ModelStore, name: str, files: Mapping[str, bytes], *, pulled_from: str = "") -> StoredModel:
        digests = {}
        for file, content in files.items():
            with store.blobs.open_writer(f"test:{Digest.of(content)}", expected=Digest.of(content)) as writer:
                writer.write(content[writer.offset :])
                digests[file] = writer.commit()
        return store.add(ModelRef.parse(name), digests, FACTS, source=f"test:{name}", pulled_from=pulled_from)

    return make


@pytest.fixture(scope="session")
def large() -> bytes:
    """More than three chunks of content that does not repeat."""
    return random.Random(4).randbytes(3 * CHUNK_BYTES + 1_000_003)  # noqa: S311
