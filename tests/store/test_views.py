from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from homelab_llm.core.errors import ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore

Add = Callable[..., StoredModel]
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"{1}"}


def test_a_view_shows_the_files_under_their_names(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1", FILES)
    view = store.view(model)
    shown = {path.relative_to(view).as_posix(): path.read_bytes() for path in view.rglob("*") if path.is_file()}
    assert shown == FILES
    assert store.view(model) == view


def test_names_of_one_model_share_a_view(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1", FILES)
    assert store.view(store.copy(ModelRef.parse("tiny:1"), ModelRef.parse("b"))) == store.view(model)


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("damage", ["missing", "replaced", "elsewhere"])
def test_a_view_that_was_tampered_with_is_built_again(store: ModelStore, add: Add, damage: str) -> None:
    model = add(store, "tiny:1", FILES)
    link = store.view(model) / "config.json"
    link.unlink()
    if damage == "replaced":
        link.write_bytes(b"evil")
    if damage == "elsewhere":
        link.symlink_to("/etc/hostname")
    assert (store.view(model) / "config.json").read_bytes() == b"{}"


def test_a_moved_store_keeps_its_views(store: ModelStore, add: Add) -> None:
    name = store.view(add(store, "tiny:1", FILES)).name
    moved = ModelStore(store.root.rename(store.root.with_name("moved")))
    assert (moved.root / "views" / name / "config.json").read_bytes() == b"{}"
    view = moved.view(moved.resolve("tiny:1"))
    assert view.is_relative_to(moved.root)
    assert str((view / "config.json").readlink()).startswith("../../blobs/")


def test_a_view_goes_with_its_model(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1", FILES)
    view = store.view(model)
    store.remove(ModelRef.parse("tiny:1"))
    assert not view.exists()
    with pytest.raises(ModelNotFound):
        store.view(model)


def test_a_view_of_something_that_is_no_longer_a_model_is_pruned(store: ModelStore, add: Add) -> None:
    old = store.view(add(store, "tiny:1", FILES))
    add(store, "tiny:1", {"model.gguf": b"new"})
    kept = store.view(store.resolve("tiny:1"))
    shutil.copytree(old, old.with_name(old.name + ".new"), symlinks=True)
    store.prune()
    assert sorted((store.root / "views").iterdir()) == [kept]
