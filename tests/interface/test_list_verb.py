"""``list``: stored and wanted models, with slot and state, with and without a daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState, assign, register
from homelab_llm.data.address import Address
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry
from homelab_llm.data.upgrade import upgraded
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon


@pytest.fixture
def filled(home: Home) -> Home:
    """A stored model on slot 8100, a pinned one without a slot, and one that is wanted on 8101."""
    store = ModelStore(home.store)
    for name in ("tiny", "other"):
        path = write_fake_model(home.root / f"{name}.gguf", name=name)
        store.import_path(path, ModelRef.parse(name))
    entries = [
        Entry("tiny", "tiny:latest", cache_path="/somewhere/tiny.gguf"),
        Entry("other", "other:latest", cache_path="/somewhere/other.gguf", pinned=True),
        Entry("big", "org/big:latest", repo_id="org/big"),
    ]

    def move(state: RegistryState) -> RegistryState:
        for entry in entries:
            state = register(state, entry)
        return assign(assign(state, 8100, "tiny", 1.0), 8101, "big", 1.0)

    upgraded(home.root, "")
    database = Database(Address.of("", home.database))
    Registry(database).change(move)
    database.close()
    return home


def shown(mlxctl: Mlxctl, *argv: str) -> dict[str, Any]:
    return {model["name"]: model for model in mlxctl("list", "--json", *argv).json()["models"]}


@pytest.mark.requirement("R-F3")
def test_without_a_daemon_the_database_says_which_slot_and_what_is_wanted(mlxctl: Mlxctl, filled: Home) -> None:
    models = shown(mlxctl)
    assert {name: (m["state"], m["port"], m["pinned"]) for name, m in models.items()} == {
        "other:latest": ("stored", None, True),
        "tiny:latest": ("stored", 8100, False),
        "org/big:latest": ("wanted", 8101, False),
    }
    assert models["org/big:latest"]["source"] == "org/big"
    lines = mlxctl("list").out.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "FORMAT", "STATE", "SLOT", "ADDED"]
    assert lines[1].split()[6:8] == ["stored,", "pinned"]
    assert lines[3].split() == ["org/big:latest", "-", "-", "gguf", "wanted", "8101", "-"]
    assert set(shown(mlxctl, "org/")) == {"org/big:latest"}


@pytest.mark.requirement("R-F3")
def test_with_a_daemon_the_state_is_what_it_says(mlxctl: Mlxctl, filled: Home, daemon: ScriptedDaemon) -> None:
    rows = [
        {"port": 8100, "alias": "jerry-xl", "state": "resting"},
        {"port": 8101, "alias": "jerry-l", "state": "empty"},
    ]
    daemon.says("/admin/slots", 200, {"slots": rows, "drift": False})
    daemon.says("/admin/models", 200, {"models": [{"model": "other:latest", "state": "ready"}]})
    models = shown(mlxctl)
    assert {name: m["state"] for name, m in models.items()} == {
        "other:latest": "loaded",
        "tiny:latest": "resting",
        "org/big:latest": "wanted",
    }
    assert models["tiny:latest"]["alias"] == "jerry-xl"


def test_a_database_elsewhere_is_found_by_the_settings(mlxctl: Mlxctl, filled: Home) -> None:
    moved = filled.root / "elsewhere.db"
    for suffix in ("", "-wal", "-shm"):
        source = filled.database.with_name(filled.database.name + suffix)
        if source.exists():
            source.rename(moved.with_name(moved.name + suffix))
    assert shown(mlxctl)["tiny:latest"]["port"] is None
    (filled.root / "config.yaml").write_text(f"data:\n  url: {json.dumps(f'sqlite:///{moved}')}\n")
    assert shown(mlxctl)["tiny:latest"]["port"] == 8100


def test_a_database_that_cannot_be_read_is_a_typed_error(mlxctl: Mlxctl, home: Home) -> None:
    home.database.write_bytes(b"nonsense" * 1000)
    failed = mlxctl("list", "--json")
    assert failed.code == 12
    assert failed.json()["error"]["code"] == "database_unavailable"
