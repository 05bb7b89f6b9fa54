"""``verify`` for models, ``repair``, ``prune``, ``gc`` and ``du``: what they say, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli import exit_codes
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.damage import flip_a_bit
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, Outcome


@pytest.fixture
def store(home: Home, tmp_path: Path) -> ModelStore:
    """Two models: one imported, one that a hub still has."""
    store = ModelStore(home.store)
    store.import_path(write_fake_model(tmp_path / "mine.gguf", name="mine"), ModelRef.parse("mine:1"))
    return store


def ask(mlxctl: Mlxctl, *argv: str, code: int = exit_codes.OK) -> Outcome:
    """Call it, and see that it ends with this code."""
    done = mlxctl(*argv)
    assert done.code == code, done
    return done


def blob(store: ModelStore, name: str) -> Path:
    return next(iter(store.resolve(name).files.values()))


@pytest.mark.requirement("R-M4", "B-9")
def test_verify_names_what_is_damaged_and_the_command_that_mends_it(mlxctl: Mlxctl, store: ModelStore) -> None:
    assert "whole: 1 model" in ask(mlxctl, "verify", "--store").out
    flip_a_bit(blob(store, "mine:1"))
    done = ask(mlxctl, "verify", "mine:1", code=exit_codes.FAILED)
    assert "damaged  mine:1: model.gguf has other content" in done.out
    assert "mlxctl repair mine:1" in done.err
    assert "mlxctl repair mine:1" in mlxctl("doctor").out
    last = json.loads(ask(mlxctl, "verify", "--store", "--json", code=exit_codes.FAILED).out.splitlines()[-1])
    assert last["damages"][0]["model"] == "mine:1"
    assert not last["ok"]


def test_verify_wants_names_or_the_whole_store(mlxctl: Mlxctl, store: ModelStore) -> None:
    ask(mlxctl, "verify", "mine:1", "--store", code=3)
    ask(mlxctl, "verify", "absent", code=4)


@pytest.mark.requirement("R-M4", "B-9")
def test_repair_mends_what_has_a_source_and_says_what_cannot_be_mended(
    mlxctl: Mlxctl, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_fake_model(tmp_path / "tiny.gguf", name="tiny").read_bytes()
    with FakeHub(repos={"Org/Tiny": {"tiny.gguf": content}}) as hub:
        monkeypatch.setenv("HOMELAB_STORE__HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HOMELAB_STORE__FREE_FLOOR_BYTES", "0")
        ask(mlxctl, "pull", "hf:Org/Tiny", "tiny:1")
        assert ask(mlxctl, "repair", "tiny:1").out.strip() == "tiny:1 is whole"
        flip_a_bit(blob(store, "tiny:1"))
        flip_a_bit(blob(store, "mine:1"))
        done = ask(mlxctl, "repair", "--all", code=exit_codes.FAILED)
        assert "tiny:1 is whole again" in done.out
        assert "mlxctl import PATH mine:1" in done.err
        assert "mlxctl import" in ask(mlxctl, "repair", "mine:1", code=exit_codes.FAILED).err
    ask(mlxctl, "repair", code=exit_codes.USAGE)
    ask(mlxctl, "rm", "-y", "mine:1")
    assert "nothing is damaged" in ask(mlxctl, "repair", "--all").out


def test_a_rehearsed_prune_takes_nothing_away(mlxctl: Mlxctl, store: ModelStore) -> None:
    with store.blobs.open_writer("loose") as writer:
        writer.write(b"loose" * 1000)
        loose = writer.commit()
    store.blobs.release([loose])
    for verb in ("prune", "gc"):
        assert "would free" in ask(mlxctl, verb, "--dry-run").out
        told = ask(mlxctl, verb, "--dry-run", "--json").json()
        assert (told["dry_run"], told["blobs"], told["bytes_freed"]) == (True, 1, 5000)
        assert [item["name"] for item in told["items"]] == [loose.hex]
    assert store.blobs.has(loose)
    done = ask(mlxctl, "gc", "--json").json()
    assert {**told, "dry_run": False} == done
    assert not store.blobs.has(loose)


def test_du_says_what_is_owned_and_what_is_shared(mlxctl: Mlxctl, store: ModelStore) -> None:
    size = store.resolve("mine:1").size_bytes
    (store.root / "notes.txt").write_text("mine")
    one = ask(mlxctl, "du", "mine:1", "--json").json()
    assert one["own_bytes"] > size
    store.copy(ModelRef.parse("mine:1"), ModelRef.parse("mine:2"))
    with store.blobs.open_writer("loose") as writer:
        writer.write(b"loose" * 1000)
        writer.commit()
    told = ask(mlxctl, "du", "--json").json()
    assert [(row["name"], row["own_bytes"]) for row in told["models"]] == [("mine:1", 0), ("mine:2", 0)]
    assert told["unreferenced_bytes"] == 5000
    assert told["unknown"] == ["notes.txt"]
    assert told["models_bytes"] == one["size_bytes"]
    assert "mlxctl prune" in ask(mlxctl, "du").out
    ask(mlxctl, "du", "absent", code=4)


def test_a_damaged_model_is_refused_by_name_and_can_be_removed(mlxctl: Mlxctl, store: ModelStore) -> None:
    blob(store, "mine:1").unlink()
    shown = ask(mlxctl, "show", "mine:1", code=exit_codes.FAILED)
    assert "mlxctl repair mine:1" in shown.err
    ask(mlxctl, "rm", "-y", "mine:1")
    ask(mlxctl, "show", "mine:1", code=4)
