"""The hub as a source: what a reference becomes, and what the hub's answers lead to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.errors import HomelabError, InvalidInput, SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.names import repository_of
from homelab_llm.store.pull import PullSettings
from homelab_llm.store.references import HubReference, parse_hub
from homelab_llm.store.sources.base import RemoteModel
from homelab_llm.store.sources.huggingface import hub_token
from homelab_llm.store.sources.table import open_source
from homelab_llm.testing.hub import FakeHub, Faults

Settings = Callable[..., PullSettings]


def resolved(reference: str, settings: PullSettings) -> RemoteModel:
    opening = open_source(reference, settings)
    try:
        return opening.source.resolve(opening.reference)
    finally:
        opening.source.close()


@pytest.mark.requirement("R-M2", "R-M9")
def test_a_snapshot_is_pinned_to_a_commit_with_digests(hub: FakeHub, settings: Settings) -> None:
    hub.page_entries = 3
    model = resolved("hf:Org/Folder", settings())
    commit = hub.commit("Org/Folder")
    assert model.source == f"hf:Org/Folder@{commit}"
    assert (model.repository, model.tag, model.licence) == ("org/folder", "latest", "apache-2.0")
    files = {file.path: file for file in model.files}
    assert sorted(files) == [
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert files["model.safetensors"].digest is not None
    assert files["config.json"].digest is None
    assert len(files["config.json"].git_sha1) == 40
    assert all(f"/resolve/{commit}/" in file.address for file in model.files)


def test_a_gguf_repository_with_one_model_needs_no_choice(hub: FakeHub, settings: Settings) -> None:
    model = resolved("hf:Org/Tiny-GGUF", settings())
    assert [(file.path, model.repository) for file in model.files] == [("model.gguf", "org/tiny-gguf")]


def test_a_revision_may_be_a_commit_and_an_unknown_one_is_not_found(hub: FakeHub, settings: Settings) -> None:
    commit = hub.commit("Org/Folder")
    assert resolved(f"hf:Org/Folder@{commit}", settings()).source == f"hf:Org/Folder@{commit}"
    with pytest.raises(SourceNotFound) as caught:
        resolved("hf:Org/Folder@nowhere", settings())
    assert caught.value.facts["source_code"] == "RevisionNotFound"
    with pytest.raises(SourceNotFound):
        resolved("hf:Org/Missing", settings())


@pytest.mark.requirement("R-M2")
def test_a_gated_repository_needs_the_token(hub: FakeHub, settings: Settings) -> None:
    hub.token = "hf_abcdefghijklmnop"
    with pytest.raises(SourceDenied) as caught:
        resolved("hf:Org/Folder", settings())
    assert "HF_TOKEN" in caught.value.hint
    assert resolved("hf:Org/Folder", settings(environ={"HF_TOKEN": hub.token})).files


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Faults(api_status=403, error_code="DisabledRepo"), SourceDenied),
        (Faults(api_status=500), SourceUnavailable),
        (Faults(api_status=429, retry_after="3600"), SourceUnavailable),
        (Faults(html=True), SourceUnavailable),
    ],
)
def test_what_the_hub_refuses_is_typed(
    hub: FakeHub, settings: Settings, fault: Faults, error: type[HomelabError]
) -> None:
    hub.faults = fault
    with pytest.raises(error):
        resolved("hf:Org/Folder", settings())


def test_a_busy_hub_is_asked_again(hub: FakeHub, settings: Settings) -> None:
    hub.faults = Faults(times=2, api_status=503)
    assert resolved("hf:Org/Folder", settings()).files


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "path",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a\\model.safetensors",
        "model\n.safetensors",
    ],
)
def test_a_file_name_that_leaves_the_model_never_gets_through(hub: FakeHub, settings: Settings, path: str) -> None:
    hub.repos["Org/Evil"] = {path: b"x", "config.json": b"{}"}
    with pytest.raises(HomelabError) as caught:
        resolved("hf:Org/Evil", settings())
    assert caught.value.code in {"source_not_found", "invalid_name"}


@pytest.mark.requirement("R-S1")
def test_a_list_that_continues_on_another_machine_is_not_followed(hub: FakeHub, settings: Settings) -> None:
    commit = hub.commit("Org/Folder")
    link = f'<http://localhost:{hub.port}/more>; rel="next"'
    hub.pages[f"/api/models/Org/Folder/tree/{commit}"] = (200, {"link": link}, b"[]")
    with pytest.raises(SourceUnavailable, match="another machine"):
        resolved("hf:Org/Folder", settings())


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"sha":"main"}', b'{"sha":7}', b"nonsense", b"[" * 100_000])
def test_nonsense_from_the_hub_is_unavailable(hub: FakeHub, settings: Settings, answer: bytes) -> None:
    hub.pages["/api/models/Org/Folder/revision/main"] = (200, {}, answer)
    with pytest.raises(SourceUnavailable):
        resolved("hf:Org/Folder", settings())


@pytest.mark.parametrize("entry", [{"path": 7}, {"path": "model.safetensors", "size": -1}, {"path": "x", "size": True}])
def test_nonsense_in_the_list_of_files_is_unavailable(
    hub: FakeHub, settings: Settings, entry: dict[str, object]
) -> None:
    page = json.dumps([{"type": "file", **entry}]).encode()
    hub.pages[f"/api/models/Org/Folder/tree/{hub.commit('Org/Folder')}"] = (200, {}, page)
    with pytest.raises(SourceUnavailable):
        resolved("hf:Org/Folder", settings())


def test_a_bad_digest_in_the_list_is_refused(hub: FakeHub, settings: Settings) -> None:
    entry = {"type": "file", "path": "model.safetensors", "size": 1, "lfs": {"oid": "../../x"}}
    hub.pages[f"/api/models/Org/Folder/tree/{hub.commit('Org/Folder')}"] = (200, {}, json.dumps([entry]).encode())
    with pytest.raises(HomelabError) as caught:
        resolved("hf:Org/Folder", settings())
    assert caught.value.code == "invalid_digest"


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:a/b/c",
        "hf:../x",
        "hf:a/..",
        "hf:-a/b",
        "hf:a--b/c",
        "hf:a/b.git",
        "hf:a/b@",
        "hf:a/b c",
        "hf:a/b@x..y",
    ],
)
def test_references_outside_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_hub(text)
    assert "hf:org/name" in caught.value.hint


def test_a_reference_has_repository_revision_and_file() -> None:
    assert parse_hub("hf:org/name@v1.0#q/m.gguf") == HubReference("org/name", "v1.0", "q/m.gguf")
    assert parse_hub("hf:gpt2") == HubReference("gpt2", "main", "")


def test_repository_ids_become_names_of_the_store() -> None:
    assert repository_of("Qwen/Qwen3-0.6B-GGUF") == "qwen/qwen3-0.6b-gguf"
    assert repository_of("A_/b.-_c") == "a/b.c"


def test_the_token_is_where_the_hubs_own_tools_keep_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    assert hub_token({"HF_TOKEN": " hf_env "}) == "hf_env"
    assert hub_token({"HF_HOME": str(tmp_path)}) == "hf_file"
    assert hub_token({"HF_TOKEN_PATH": str(tmp_path / "token")}) == "hf_file"
    assert hub_token({"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) == ""
    assert hub_token({"HOME": str(tmp_path)}) == ""


def test_the_offline_switch_of_the_hubs_tools_is_honoured(settings: Settings) -> None:
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE"):
        resolved("hf:Org/Folder", settings(environ={"HF_HUB_OFFLINE": "1"}))


def test_the_hub_of_the_environment_counts_unless_one_is_set(settings: Settings) -> None:
    environ = {"HF_ENDPOINT": "https://mirror.example/"}
    assert PullSettings(environ=environ).hub == "https://mirror.example"
    assert settings(environ=environ).hub != "https://mirror.example"


@pytest.mark.requirement("R-S1")
def test_a_file_name_with_half_a_character_is_refused(hub: FakeHub, settings: Settings) -> None:
    listed = [
        {"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in ("\ud800.safetensors", "config.json")
    ]
    hub.pages["/api/models/Org/Half/revision/main"] = (200, {}, json.dumps({"sha": "a" * 40}).encode())
    hub.pages[f"/api/models/Org/Half/tree/{'a' * 40}"] = (200, {}, json.dumps(listed).encode())
    with pytest.raises(HomelabError) as caught:
        resolved("hf:Org/Half", settings())
    assert caught.value.code == "invalid_name"
