"""``init`` on a Hugging Face cache laid out by hand as the hub's library does (``tests/store`` uses the library)."""

from __future__ import annotations

import hashlib
from pathlib import Path
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

pytestmark = pytest.mark.requirement("R-F3")
COMMIT = "a" * 40


def add(hub: Path, repo: str, name: str, commit: str = COMMIT) -> Path:
    """A GGUF model in the cache; gives its link."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    content = write_fake_model(hub / "new", name=name).read_bytes()
    (hub / "new").unlink()
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    link = folder / "snapshots" / commit / f"{name}.gguf"
    link.symlink_to(f"../../blobs/{blob.name}")
    (folder / "refs" / "main").write_text(commit)
    return link


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one whole model and one whose content is lost, where ``HF_HOME`` says."""
    folder = tmp_path / "hf" / "hub"
    folder.mkdir(parents=True)
    add(folder, "Org/Whole", "whole")
    add(folder, "Org/Lost", "lost").resolve().unlink()
    for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


def registry_of(home: Home) -> RegistryState:
    database = Database(Address.of("", home.database))
    try:
        return Registry(database).read()
    finally:
        database.close()


def test_models_of_the_cache_are_linked_registered_and_the_others_named(mlxctl: Mlxctl, home: Home, hub: Path) -> None:
    told = mlxctl("init", "--dry-run")
    assert told.code == 0, told
    assert told.out.startswith("would import org/whole:f32 ")
    assert "passed over Org/Lost: revision aaaaaaaa: the content of lost.gguf is missing" in told.out
    assert ModelStore(home.store).models() == []
    done: dict[str, Any] = mlxctl("init", "--json").json()
    assert [row["name"] for row in done["imported"]] == ["org/whole:f32"]
    (model,) = ModelStore(home.store).models()
    assert model.source == f"hf:Org/Whole@{COMMIT}#whole.gguf"
    (path,) = model.files.values()
    assert path.stat().st_ino == next(hub.glob("models--Org--Whole/snapshots/*/*")).stat().st_ino
    (entry,) = registry_of(home).entries.values()
    assert (entry.slug, entry.model_id, entry.repo_id) == ("org-whole-f32", "org/whole:f32", model.source)
    assert entry.cache_path == str(path)


def test_a_second_init_changes_nothing_and_a_newer_revision_moves_the_name(
    mlxctl: Mlxctl, home: Home, hub: Path
) -> None:
    mlxctl("init", str(hub.parent))
    before = registry_of(home)
    again = mlxctl("init", str(hub), "--json").json()
    assert ([row["name"] for row in again["present"]], again["imported"]) == (["org/whole:f32"], [])
    assert registry_of(home) == before
    add(hub, "Org/Whole", "newer", "b" * 40)
    assert [row["commit"] for row in mlxctl("init", "--json").json()["imported"]] == ["b" * 40]
    (model,) = ModelStore(home.store).models()
    assert model.source.startswith(f"hf:Org/Whole@{'b' * 40}")
    assert len(registry_of(home).entries) == 1


def test_a_model_that_was_wanted_on_a_slot_completes_its_entry(mlxctl: Mlxctl, home: Home, hub: Path) -> None:
    upgraded(home.root, "")
    database = Database(Address.of("", home.database))
    wanted = Entry("mine", "org/whole:latest", repo_id="Org/Whole")
    Registry(database).change(lambda state: assign(register(state, wanted), 8100, "mine", 1.0))
    database.close()
    assert mlxctl("init").code == 0
    state = registry_of(home)
    assert (state.entry("mine").model_id, state.port_of("mine")) == ("org/whole:f32", 8100)
    assert len(state.entries) == 1


def test_a_name_that_is_another_model_is_left_alone(mlxctl: Mlxctl, home: Home, hub: Path, tmp_path: Path) -> None:
    own = ModelStore(home.store).import_path(write_fake_model(tmp_path / "own.gguf"), ModelRef.parse("org/whole:f32"))
    shown = mlxctl("init", "--json").json()
    assert shown["imported"] == []
    assert any("is another model (file:own.gguf)" in row["reason"] for row in shown["passed"])
    assert ModelStore(home.store).resolve("org/whole:f32").digest == own.digest


def test_servers_on_slot_ports_are_named_and_adopted_on_request(
    mlxctl: Mlxctl, hub: Path, daemon: ScriptedDaemon
) -> None:
    holder = {"pid": 77, "name": "llama-server", "model": "theirs"}
    row = {"port": 8102, "alias": "jerry-m", "state": "foreign", "foreign": holder}
    daemon.says("/admin/slots", 200, {"slots": [row, {"port": 8103, "alias": "jerry-s", "state": "empty"}]})
    daemon.says("/admin/registry/refresh", 200, {})
    daemon.says("/admin/slots/adopt", 200, {"port": 8102})
    shown = mlxctl("init")
    assert "port 8102 is held by llama-server theirs (pid 77); try: mlxctl adopt 8102" in shown.err
    assert ("/admin/registry/refresh", {}) in daemon.asked
    adopted = mlxctl("init", "--adopt", "--json").json()
    assert (adopted["adopted"], adopted["foreign"][0]["pid"]) == ([8102], 77)
    assert ("/admin/slots/adopt", {"slot": "8102"}) in daemon.asked


def test_a_cache_that_is_not_there_is_said(mlxctl: Mlxctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlxctl("init", str(tmp_path / "nowhere")).code == 4
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert mlxctl("init").out == f"no models in {tmp_path / 'nowhere'}\n"
