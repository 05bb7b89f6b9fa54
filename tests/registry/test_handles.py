"""Handles: what is written can be read, and nothing else can."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, RegistryInvalid
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.handles import Handle, handles_of, read_handles, taken_in, write_handles
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import RegistryState, assign, register_all

pytestmark = pytest.mark.requirement("R-D3")

SLOTS = SlotTable.of("8100-8102", ("main", "embed"))
LINE = {
    "handle": "main",
    "kind": "model",
    "invoke": "openai-chat",
    "managed_by": "systemd",
    "endpoint_ref": "ep_mlx_slot_8100",
    "selector": {"model": "qwen3-8b"},
}


def state() -> RegistryState:
    """A chat model, an embedder and a model that is wanted only; each on a port."""
    entries = [
        Entry("qwen3.8b", "qwen3:8b", cache_path="/m/a.gguf"),
        Entry("minilm", "all-minilm:l6-v2", cache_path="/m/b"),
        Entry("later", "later:1"),
    ]
    found = register_all(RegistryState(), entries)
    for port, slug in ((8100, "qwen3.8b"), (8101, "minilm"), (8102, "later")):
        found = assign(found, port, slug, 1.0)
    return found


def test_each_slot_with_a_model_that_is_there_has_a_handle_and_no_other() -> None:
    found = handles_of(state(), SLOTS, {"all-minilm:l6-v2"}, "launchd")
    assert [(h.handle, h.invoke, h.endpoint_ref, h.selector["model"]) for h in found] == [
        ("main", "openai-chat", "ep_mlx_slot_8100", "qwen3-8b"),
        ("embed", "openai-embeddings", "ep_mlx_slot_8101", "minilm"),
    ]
    assert {h.managed_by for h in found} == {"launchd"}
    assert sorted(read_handles(write_handles(found)), key=lambda h: h.endpoint_ref) == found


def test_handles_that_are_taken_in_assign_the_slots() -> None:
    before = state()
    swapped = [
        Handle("main", "model", "openai-embeddings", "manual", "ep_mlx_slot_8100", {"model": "minilm"}),
        Handle("search", "callable", "http-get", "docker", "ep_searxng"),
        Handle("far", "model", "openai-chat", "external", "ep_other_1", {"model": "unknown"}),
    ]
    after = taken_in(before, swapped, SLOTS, 2.0)
    assert (after.assignment(8100).desired, after.assignment(8101).desired) == ("minilm", "")
    unknown = Handle("main", "model", "openai-chat", "manual", "ep_mlx_slot_8100", {"model": "nobody"})
    with pytest.raises(HomelabError) as caught:
        taken_in(before, [unknown], SLOTS, 2.0)
    assert caught.value.code == "model_not_registered"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"handle": "Main"}, "handle"),
        ({"handle": "main_1"}, "handle"),
        ({"kind": "tool"}, "kind"),
        ({"invoke": "grpc"}, "invoke"),
        ({"managed_by": "cron"}, "managed_by"),
        ({"endpoint_ref": "http://x"}, "endpoint_ref"),
        ({"selector": "x"}, "selector"),
        ({"selector": {"model": "Qwen/3"}}, "selector"),
        ({"notes": 1}, "notes"),
        ({"state": "up"}, "state"),
    ],
)
def test_what_is_not_a_handle_is_refused_with_line_and_field(change: dict[str, object], field: str) -> None:
    content = (json.dumps({**LINE, "handle": "first"}) + "\n" + json.dumps({**LINE, **change})).encode()
    with pytest.raises(RegistryInvalid) as caught:
        read_handles(content)
    assert (caught.value.facts["line"], caught.value.facts["field"]) == (2, field)


def test_missing_fields_duplicates_and_other_text_are_refused() -> None:
    line = json.dumps(LINE)
    for content in (line + "\n" + line, json.dumps({**LINE, "kind": None}), "[1]", "{", json.dumps({"handle": "x"})):
        with pytest.raises(RegistryInvalid):
            read_handles(content.encode())
    assert read_handles(json.dumps({**LINE, "selector": {"model": "bon|moa-m"}}).encode())
    assert read_handles(b"\n\n") == []


@given(st.binary(max_size=200))
def test_any_bytes_are_handles_or_a_typed_error(content: bytes) -> None:
    try:
        found = read_handles(content)
    except RegistryInvalid:
        return
    assert read_handles(write_handles(found)) == sorted(found, key=lambda handle: handle.handle)
