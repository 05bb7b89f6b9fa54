"""A model of the store in a Hugging Face cache, judged by the hub's own client without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.hf_cache import read_cache
from homelab_llm.store.hf_export import FAILPOINTS, export_to_cache
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.models import write_fake_model

pytestmark = pytest.mark.requirement("R-M2")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(disk: Path) -> Path:
    return disk / "hub"


@pytest.fixture
def from_hub(store: ModelStore, disk: Path) -> StoredModel:
    """A GGUF model that was pulled from the hub."""
    file = write_fake_model(disk / "tiny.gguf")
    return store.import_path(file, ModelRef.parse("tiny:1"), source=f"hf:org/tiny@{COMMIT}#Tiny-Q4.gguf")


def test_the_hubs_client_finds_a_model_that_came_from_the_hub_without_a_network(
    from_hub: StoredModel, cache: Path
) -> None:
    done = export_to_cache(from_hub, cache)
    assert (done.repo_id, done.commit, done.links, done.symbolic) == ("org/tiny", COMMIT, 1, False)
    found = hf_hub_download("org/tiny", "Tiny-Q4.gguf", cache_dir=cache, local_files_only=True)
    (blob,) = from_hub.files.values()
    assert Path(found).read_bytes() == blob.read_bytes()
    assert Path(found).resolve().stat().st_ino == blob.stat().st_ino


def test_a_folder_appears_whole_under_the_name_that_is_given(
    store: ModelStore, hf_folder: Callable[..., Path], cache: Path
) -> None:
    model = store.import_path(hf_folder(), ModelRef.parse("mine:1"))
    done = export_to_cache(model, cache, "me/mine")
    found = Path(snapshot_download("me/mine", cache_dir=cache, local_files_only=True))
    assert {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()} == set(model.files)
    (repo,) = scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.nb_files) == ("me/mine", len(model.files))
    assert not scan_cache_dir(cache).warnings
    again = export_to_cache(model, cache, "me/mine")
    assert (again.commit, again.links, again.kept) == (done.commit, 0, done.links)
    assert [(m.repo_id, m.commit) for m in read_cache(cache).models] == [("me/mine", done.commit)]


def test_what_was_known_to_be_good_needs_no_hash_after_an_export(
    store: ModelStore, from_hub: StoredModel, cache: Path
) -> None:
    digests = [Digest(path.name) for path in from_hub.files.values()]
    assert [store.verification.verdict(digest) for digest in digests] == ["good"]
    export_to_cache(from_hub, cache, verification=store.verification)
    assert [store.verification.verdict(digest) for digest in digests] == ["good"]


def test_removing_the_repository_from_the_cache_leaves_the_store_alone(from_hub: StoredModel, cache: Path) -> None:
    export_to_cache(from_hub, cache)
    scan_cache_dir(cache).delete_revisions(COMMIT).execute()
    assert all(path.is_file() for path in from_hub.files.values())
    assert not list(cache.glob("models--*/blobs/*"))


def test_what_cannot_be_named_or_is_already_something_else_is_refused(
    store: ModelStore, from_hub: StoredModel, cache: Path, disk: Path
) -> None:
    mine = store.import_path(write_fake_model(disk / "mine.gguf", name="mine"), ModelRef.parse("mine:1"))
    for name in ("", "../x/y", "one", "a/b/c", "a--b/c"):
        with pytest.raises(HomelabError) as caught:
            export_to_cache(mine, cache, name)
        assert caught.value.code == "invalid_name"
    assert not cache.exists()
    export_to_cache(from_hub, cache)
    link = cache / "models--org--tiny" / "snapshots" / COMMIT / "Tiny-Q4.gguf"
    link.unlink()
    link.write_text("something else")
    with pytest.raises(HomelabError) as caught:
        export_to_cache(from_hub, cache)
    assert caught.value.code == "conflict"
    assert link.read_text() == "something else"


@pytest.mark.parametrize("point", FAILPOINTS)
def test_an_export_that_was_killed_is_completed_by_the_next(
    store: ModelStore, hf_folder: Callable[..., Path], cache: Path, armed: Callable[[str], None], point: str
) -> None:
    model = store.import_path(hf_folder(), ModelRef.parse("mine:1"))
    armed(f"{point}=raise")
    with pytest.raises(OSError, match=point):
        export_to_cache(model, cache, "me/mine")
    armed("")
    assert not (cache / "models--me--mine" / "refs" / "main").exists()
    export_to_cache(model, cache, "me/mine")
    found = Path(snapshot_download("me/mine", cache_dir=cache, local_files_only=True))
    assert {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()} == set(model.files)
    shutil.rmtree(cache)
