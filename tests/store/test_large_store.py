"""A store of very many models: listed and pruned at once, in little memory; what is kept for that is never believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.big_store import fill_store

MODELS, BLOBS = 300, 1_500


@pytest.fixture
def large(store: ModelStore) -> ModelStore:
    fill_store(store, MODELS, BLOBS, unreferenced=20)
    store.models()
    assert (store.root / "gist.json").exists()
    return store


def again(store: ModelStore) -> ModelStore:
    """As another process finds it."""
    return ModelStore(store.root)


@pytest.mark.requirement("R-M5")
def test_what_is_kept_of_manifests_says_what_the_manifests_say(large: ModelStore) -> None:
    kept = again(large).models()
    (large.root / "gist.json").unlink()
    read = again(large).models()
    assert kept == read
    assert [dict(model.files) for model in kept] == [dict(model.files) for model in read]
    assert len(kept) == MODELS


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":1,"gists":[]}', b'{"version":9}', b"\xff" * 100])
def test_a_damaged_list_of_gists_is_made_anew(large: ModelStore, content: bytes) -> None:
    before = again(large).models()
    (large.root / "gist.json").write_bytes(content)
    assert again(large).models() == before
    assert json.loads((large.root / "gist.json").read_bytes())["version"] == 1


def test_a_gist_does_not_hide_that_its_manifest_is_gone_or_changed(large: ModelStore) -> None:
    models = again(large).models()
    large.blobs.path(models[0].digest).unlink()
    changed = large.blobs.path(models[1].digest)
    changed.write_bytes(changed.read_bytes()[:-1] + b" ")
    os.utime(changed, ns=(1, 1))
    names = {model.name for model in again(large).models()}
    assert names == {model.name for model in models[2:]}
    assert {problem.name for problem in again(large).problems()} == {models[0].name, models[1].name}


def test_a_missing_or_shortened_blob_is_seen_among_thousands(large: ModelStore) -> None:
    models = again(large).models()
    files = [path for model in (models[0], models[-1]) for name, path in model.files.items() if "model-" in name]
    files[0].unlink()
    files[-1].write_bytes(b"")
    assert {problem.name for problem in again(large).problems()} == {models[0].name, models[-1].name}


def test_a_prune_of_a_large_store_frees_what_nothing_needs(large: ModelStore) -> None:
    assert large.prune().blobs == 20
    assert len(again(large).models()) == MODELS
    assert again(large).problems() == []


def test_gists_in_a_store_that_cannot_be_written_are_no_error(large: ModelStore, disk: Path) -> None:
    (large.root / "gist.json").unlink()
    (large.root / "gist.json").mkdir()
    assert len(again(large).models()) == MODELS
