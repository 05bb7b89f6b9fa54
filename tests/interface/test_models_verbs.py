"""Verbs of the store, on a real store with a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon


@pytest.fixture
def tiny(home: Home, mlxctl: Mlxctl) -> str:
    """A model in the store, by name."""
    path = write_fake_model(home.root / "tiny.gguf")
    assert mlxctl("import", str(path), "tiny:1").code == 0
    return "tiny:1"


def test_an_empty_store_lists_nothing_and_says_how_to_begin(mlxctl: Mlxctl) -> None:
    shown = mlxctl("list")
    assert shown.code == 0
    assert "mlxctl pull smollm2:135m" in shown.err


@pytest.mark.requirement("R-M5")
def test_import_list_show_copy_and_remove(mlxctl: Mlxctl, tiny: str) -> None:
    (listed,) = mlxctl("list", "--json").json()["models"]
    assert listed["name"] == tiny
    assert listed["format"] == "gguf"
    copied = mlxctl("cp", tiny, "other").out
    assert copied.startswith("other:latest is ")
    assert [line.split()[0] for line in mlxctl("list").out.splitlines()] == ["NAME", "other:latest", tiny]
    assert [line.split()[0] for line in mlxctl("list", "oth").out.splitlines()] == ["NAME", "other:latest"]
    shown = mlxctl("show", tiny)
    assert "architecture    fake\n" in shown.out
    assert mlxctl("show", tiny, "--json").json()["facts"]["context_tokens"] == 4096
    assert "message.role" in mlxctl("show", tiny, "--template").out
    assert mlxctl("rm", tiny, "--json").json()["bytes_freed"] == 0, "the other name still needs the bytes"
    assert mlxctl("rm", "other", "--json").json()["bytes_freed"] > 0
    assert mlxctl("list", "--json").json() == {"models": []}


def test_removing_several_names_one_of_which_is_missing_says_which(mlxctl: Mlxctl, tiny: str) -> None:
    shown = mlxctl("rm", "tinny:1", "--json")
    assert shown.code == 4
    assert shown.json()["error"]["facts"]["closest"] == [tiny]
    assert mlxctl("show", tiny).code == 0


def test_prune_says_what_it_freed(mlxctl: Mlxctl, tiny: str) -> None:
    assert mlxctl("prune", "--json").json()["bytes_freed"] == 0
    assert mlxctl("prune").out.startswith("freed 0 B")
    assert mlxctl("show", tiny).code == 0


@pytest.mark.requirement("R-M5")
def test_a_loaded_model_is_not_removed_unless_it_may_be_stopped(
    mlxctl: Mlxctl, tiny: str, daemon: ScriptedDaemon
) -> None:
    digest = mlxctl("list", "--json").json()["models"][0]["digest"]
    daemon.says("/admin/models", 200, {"models": [{"model": tiny, "digest": digest, "state": "ready"}]})
    daemon.says("/admin/models/unload", 200, {"unloaded": True})
    refused = mlxctl("rm", tiny, "--json")
    assert refused.code == 6
    assert refused.json()["error"]["code"] == "model_in_use"
    assert "mlxctl stop tiny:1" in refused.json()["error"]["hint"]
    assert mlxctl("rm", tiny, "--force").code == 0
    assert ("/admin/models/unload", {"model": tiny, "force": True}) in daemon.asked
    assert mlxctl("show", tiny).code == 4


def test_one_of_two_names_of_a_loaded_model_can_go(mlxctl: Mlxctl, tiny: str, daemon: ScriptedDaemon) -> None:
    mlxctl("cp", tiny, "other")
    digest = mlxctl("list", "--json").json()["models"][0]["digest"]
    daemon.says("/admin/models", 200, {"models": [{"model": tiny, "digest": digest, "state": "ready"}]})
    assert mlxctl("rm", "other").code == 0
    assert mlxctl("rm", tiny).code == 6


@pytest.mark.requirement("R-F4")
def test_rm_asks_nothing_without_a_terminal(mlxctl: Mlxctl, tiny: str) -> None:
    assert mlxctl("rm", tiny, stdin=b"n\n").out.startswith("removed tiny:1")


def test_what_is_no_model_is_refused_and_leaves_nothing(mlxctl: Mlxctl, tmp_path: Path) -> None:
    lies = tmp_path / "x.gguf"
    lies.write_bytes(b"GGUF" + b"\xff" * 100)
    shown = mlxctl("import", str(lies), "x", "--json")
    assert shown.code == 3
    assert shown.json()["error"]["code"] == "bad_model_file"
    assert mlxctl("list", "--json").json() == {"models": []}


def test_completion_offers_the_stored_models(mlxctl: Mlxctl, tiny: str) -> None:
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl show ti", "COMP_CWORD": "2"}
    assert mlxctl(environ=environ).out.strip() == f"plain,{tiny}"


def test_keys_are_made_listed_and_taken_back(mlxctl: Mlxctl, home: Home) -> None:
    made = mlxctl("key", "create", "laptop", "--admin", "--json").json()
    assert made["scopes"] == ["inference", "admin"]
    kept = [path for path in home.root.iterdir() if path.is_file()]
    assert home.database in kept
    assert not any(made["key"].encode() in path.read_bytes() for path in kept), "only its hash is kept"
    (listed,) = mlxctl("key", "list", "--json").json()["keys"]
    assert (listed["name"], listed["hint"]) == ("laptop", made["key"][-4:])
    assert "laptop" in mlxctl("key", "list").out
    assert mlxctl("key", "create", "laptop").code == 6
    assert mlxctl("key", "revoke", "laptop").code == 0
    assert mlxctl("key", "revoke", "laptop").code == 4
    assert mlxctl("key", "create", "plain").out.startswith("hl-")


@pytest.mark.requirement("R-U1")
def test_suggest_names_models_that_fit_with_the_command(mlxctl: Mlxctl) -> None:
    found = mlxctl("suggest", "--json", environ={"HOMELAB_FLEET__MEMORY_BUDGET_BYTES": "8GB"}).json()
    assert 1 <= len(found["models"]) <= 3
    assert all(model["memory_bytes"] <= 8 * 10**9 for model in found["models"])
    brief = mlxctl("suggest", "--brief", environ={"HOMELAB_FLEET__MEMORY_BUDGET_BYTES": "8GB"})
    assert all(f"mlxctl pull {model['name']}" in brief.err for model in found["models"])
    assert brief.out == ""


@pytest.mark.requirement("R-M2")
def test_export_puts_a_model_where_other_tools_look(
    mlxctl: Mlxctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlxctl("import", str(write_fake_model(tmp_path / "tiny.gguf")), "tiny:1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "usual"))
    refused = mlxctl("export", "tiny:1", "--hf-cache")
    assert (refused.code, "--as ORG/NAME" in refused.err) == (3, True)
    done = mlxctl("export", "tiny:1", "--hf-cache", "--as", "me/tiny", "--json").json()
    assert (done["repo_id"], done["links"], Path(done["snapshot"]).parents[2]) == ("me/tiny", 1, tmp_path / "usual")
    other = mlxctl("export", "tiny:1", "--hf-cache", str(tmp_path / "other"), "--as", "me/tiny")
    assert (other.code, (tmp_path / "other" / "models--me--tiny").is_dir()) == (0, True)


def test_a_model_is_shown_in_one_way_at_a_time_and_a_missing_template_is_an_error(mlxctl: Mlxctl, tiny: str) -> None:
    both = mlxctl("show", tiny, "--template", "--files", "--json")
    assert both.code == 2
    assert both.json()["error"]["message"] == "--template and --files exclude each other"
    shown = mlxctl("show", tiny, "--json").json()
    template = mlxctl("show", tiny, "--template", "--json")
    assert template.code == (0 if shown["facts"]["chat_template"] else 3)


def test_an_embedding_model_is_followed_by_a_load_not_by_a_chat(mlxctl: Mlxctl, minilm_folder: Path) -> None:
    assert mlxctl("import", str(minilm_folder), "minilm").out.strip().endswith("try: mlxctl load minilm:latest")
    none = mlxctl("show", "minilm", "--template", "--json")
    assert (none.code, none.json()["error"]["hint"]) == (3, "mlxctl template show minilm:latest")


def test_a_name_that_is_nearly_right_leads_to_the_list(mlxctl: Mlxctl, tiny: str) -> None:
    wrong = mlxctl("show", tiny.partition(":")[0][:-1], "--json").json()["error"]
    assert wrong["code"] == "model_not_found"
    assert wrong["hint"] == "mlxctl list"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mlxctl quantize a b q8", {"q8_0"}),
        ("mlxctl convert a b --to mlx --type mixed_4", {"mixed_4_6"}),
        ("mlxctl jobs list --kind pu", {"pull", "push"}),
        ("mlxctl push a o", {"oci://"}),
    ],
)
def test_completion_offers_types_kinds_and_targets(mlxctl: Mlxctl, typed: str, offered: set[str]) -> None:
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert {line.partition(",")[2] for line in mlxctl(environ=environ).out.split()} == offered
