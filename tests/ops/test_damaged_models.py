"""The daemon loads no model whose files are not what they should be, and knows at once when they are mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.verify import verify
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.damage import DAMAGES, Damaging, flip_a_bit
from homelab_llm.testing.models import write_fake_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_fake_model(tmp_path / "tiny.gguf", name="tiny", weights_bytes=3_000_000)


@pytest.fixture
def store(home: Home, source: Path) -> ModelStore:
    store = ModelStore(home.store)
    store.import_path(source, ModelRef.parse("tiny:1"))
    return store


@pytest.fixture
def daemon(home: Home, store: ModelStore) -> Iterator[Daemon]:
    with Daemon(home, fake=True) as running:
        yield running


def ask(daemon: Daemon) -> tuple[int, Any]:
    body = {"model": "tiny:1", "messages": [{"role": "user", "content": "hello"}]}
    return daemon.call("POST", "/v1/chat/completions", body)


def blob(store: ModelStore) -> Path:
    return next(iter(store.resolve("tiny:1").files.values()))


@pytest.mark.requirement("R-M4", "B-9")
@pytest.mark.parametrize("damaging", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused_with_the_command_that_mends_it(
    daemon: Daemon, store: ModelStore, source: Path, damaging: Damaging
) -> None:
    damaging(blob(store))
    for _ in range(4):  # as often as one likes: it is no failure of the engine, so nothing is quarantined
        status, told = ask(daemon)
        assert (status, told["error"]["code"]) == (500, "model_damaged")
        assert told["error"]["hint"] == "mlxctl repair tiny:1"
    store.import_path(source, ModelRef.parse("tiny:1"))
    assert ask(daemon)[0] == 200


@pytest.mark.requirement("R-M4", "B-9")
def test_what_verify_found_is_refused_at_once(daemon: Daemon, store: ModelStore) -> None:
    flip_a_bit(blob(store))
    assert not verify(ModelStore(store.root)).ok
    assert ask(daemon)[1]["error"]["code"] == "model_damaged"


def test_a_model_that_is_known_to_be_good_is_not_hashed(daemon: Daemon, store: ModelStore) -> None:
    before = store.layout.verified.read_bytes()
    assert ask(daemon)[0] == 200
    assert store.layout.verified.read_bytes() == before


def test_a_touched_model_is_hashed_once_and_loads(daemon: Daemon, store: ModelStore) -> None:
    os.utime(blob(store), ns=(1, 1))
    assert ask(daemon)[0] == 200
    known = store.layout.verified.read_bytes()
    daemon.call("POST", "/admin/models/unload", {"model": "tiny:1"})
    assert ask(daemon)[0] == 200
    assert store.layout.verified.read_bytes() == known


@pytest.mark.requirement("R-M4", "B-9")
def test_after_a_crash_of_the_daemon_nothing_is_believed_and_after_its_end_everything(
    daemon: Daemon, store: ModelStore
) -> None:
    assert ask(daemon)[0] == 200
    daemon.stop()
    assert store.layout.verified.read_bytes().endswith(b"sealed\n")
    daemon.start()
    assert store.layout.verified.exists()
    daemon.kill()
    daemon.start()
    assert not store.layout.verified.exists()
    assert ask(daemon)[0] == 200
    assert store.layout.verified.exists()


def test_with_verify_never_every_model_is_loaded(home: Home, store: ModelStore) -> None:
    flip_a_bit(blob(store))
    with Daemon(home, fake=True, environ={"HOMELAB_STORE__VERIFY": "never"}) as daemon:
        assert ask(daemon)[0] == 200
