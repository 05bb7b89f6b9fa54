"""Out and in again: the same model, the same digest, wherever it went through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pack import pack
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.push import push
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.registry_front import FaultyRegistry, TokenAuth

Settings = Callable[..., PullSettings]


@pytest.fixture
def model(store: ModelStore, disk: Path) -> StoredModel:
    path = write_fake_model(disk / "m.gguf", weights_bytes=12_000_000)
    return store.import_path(path, ModelRef.parse("mine:1"))


def assert_same(pulled: StoredModel, model: StoredModel) -> None:
    assert pulled.digest == model.digest
    assert {name: path.read_bytes() for name, path in pulled.files.items()} == {
        name: path.read_bytes() for name, path in model.files.items()
    }


@pytest.mark.requirement("R-M1", "R-M7")
def test_through_a_registry_with_tokens(
    shared_registry: Registry,
    store: ModelStore,
    model: StoredModel,
    disk: Path,
    settings: Settings,
    log_in: Callable[..., None],
) -> None:
    with TokenAuth(shared_registry, anonymous="") as front:
        log_in(front.host)
        target = f"oci://{front.host}/trip/mine:1"
        push(store, "mine:1", target, settings=settings())
        other = ModelStore(disk / "other")
        assert_same(pull(other, target, settings=settings()), model)


def test_a_pull_of_what_is_here_and_a_push_of_what_is_there_move_nothing(
    shared_registry: Registry, store: ModelStore, model: StoredModel, disk: Path, settings: Settings
) -> None:
    with FaultyRegistry(shared_registry) as front:
        target = f"oci://{front.host}/trip/still:1"
        push(store, "mine:1", target, settings=settings())
        other = ModelStore(disk / "other")
        pulled = pull(other, target, settings=settings())
        front.seen.clear()
        pull(other, target, settings=settings())
        report = push(other, pulled.name, target, settings=settings())
        assert (report.sent_bytes, front.uploaded_bytes) == (0, 0)
        assert [seen.path for seen in front.seen if seen.method == "GET" and "/blobs/" in seen.path] == []


@pytest.mark.parametrize("output", ["mine.tar", "mine"])
def test_through_a_packed_file(
    store: ModelStore, model: StoredModel, disk: Path, settings: Settings, output: str
) -> None:
    pack(store, "mine:1", disk / output)
    other = ModelStore(disk / "other")
    assert_same(pull(other, f"file:{disk / output}", settings=settings()), model)
