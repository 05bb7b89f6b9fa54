from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import StoreDamaged
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pins import KEPT_S

Put = Callable[[ModelStore, bytes], Digest]
Add = Callable[..., StoredModel]
ref = ModelRef.parse

HOLDER = """
import sys
from pathlib import Path
from homelab_llm.core.digests import Digest
from homelab_llm.store.model_store import ModelStore
store = ModelStore(Path(sys.argv[1]))
if sys.argv[2] == "write":
    with store.blobs.open_writer("key") as writer:
        writer.write(b"not yet in a model")
        writer.commit()
else:
    assert store.blobs.hold(Digest.of(b"not yet in a model"))
print("ready", flush=True)
sys.stdin.read()
"""
FACTS = ModelFacts(format="gguf", architecture="x", size_bytes=1)
ORPHAN = Digest.of(b"not yet in a model")


@pytest.mark.requirement("R-M5")
@pytest.mark.parametrize("way", ["write", "hold"])
def test_a_blob_that_a_living_process_needs_is_kept_and_freed_after_its_death(
    store: ModelStore, put: Put, way: str
) -> None:
    if way == "hold":
        store.blobs.release([put(store, b"not yet in a model")])
    command = [sys.executable, "-c", HOLDER, str(store.root), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert store.prune().blobs == 0
        assert store.blobs.has(ORPHAN)
        child.kill()
    assert store.prune().blobs == 1
    assert not store.blobs.has(ORPHAN)
    assert list((store.root / "tmp").iterdir()) == []


def test_a_blob_held_for_a_model_is_kept_also_when_another_model_with_it_is_removed(
    store: ModelStore, add: Add
) -> None:
    add(store, "tiny:1", {"model.gguf": b"content"})
    other = ModelStore(store.root)
    assert other.blobs.hold(Digest.of(b"content"))
    store.remove(ref("tiny:1"))
    assert other.add(ref("tiny:2"), {"model.gguf": Digest.of(b"content")}, FACTS, source="").name == "tiny:2"
    del other
    store.remove(ref("tiny:2"))
    assert not store.blobs.has(Digest.of(b"content"))


def test_released_blobs_and_blobs_of_a_store_that_is_gone_are_freed(store: ModelStore, put: Put) -> None:
    first = put(store, b"released")
    store.blobs.release([first])
    other = ModelStore(store.root)
    put(other, b"its store is garbage")
    assert store.prune().blobs == 1
    del other
    assert store.prune().blobs == 1


@pytest.mark.requirement("R-M5")
def test_prune_counts_references_over_all_manifests(store: ModelStore, add: Add) -> None:
    for name in ("a:1", "b:1"):
        add(store, name, {"common": b"common", "own": name.encode()})
    add(store, "a:1", {"common": b"common", "own": b"new"})
    report = store.prune()
    assert report.blobs == 3, "the old own file, configuration and manifest"
    assert report.bytes_freed > 0
    assert [model.name for model in store.models()] == ["a:1", "b:1"]
    assert all(path.exists() for model in store.models() for path in model.files.values())
    assert store.prune().blobs == 0


def test_young_partials_are_kept_old_ones_and_useless_ones_go(store: ModelStore, put: Put) -> None:
    def partial(key: str, content: bytes, **options: object) -> None:
        with store.blobs.open_writer(key, **options) as writer:  # type: ignore[arg-type]
            writer.write(content)

    def parts() -> int:
        return len(list((store.root / "tmp").glob("*.part")))

    partial("young", b"12345", expected=Digest.of(b"young"))
    partial("old", b"12345", expected=Digest.of(b"old"))
    (old,) = [path for path in (store.root / "tmp").glob("*.part") if path.name.startswith(Digest.of(b"old").hex)]
    os.utime(old, (1e9, 1e9))
    partial("done elsewhere", b"12345", expected=Digest.of(b"whole"))
    put(store, b"whole")
    assert parts() == 3
    report = store.prune()
    assert (report.partials, report.bytes_freed) == (2, 10)
    assert parts() == 1
    with store.blobs.open_writer("young", expected=Digest.of(b"young"), wait_s=0.0) as writer:
        assert writer.offset == 5
        assert store.prune(keep_partials_s=0).partials == 0, "somebody writes it"
    assert store.prune(keep_partials_s=0).partials == 1
    assert parts() == 0


def test_the_record_of_a_finished_download_goes_with_its_blob(store: ModelStore) -> None:
    with store.blobs.open_writer("key", validator="etag") as writer:
        writer.write(b"content")
        digest = writer.commit()
    store.prune()
    assert len(list((store.root / "tmp").glob("*.json"))) == 1
    store.blobs.release([digest])
    assert store.prune().blobs == 1
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.requirement("R-M4")
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_nothing_is_freed_while_a_manifest_cannot_be_read(store: ModelStore, add: Add, put: Put, damage: str) -> None:
    model = add(store, "bad:1")
    orphan = put(store, b"orphan")
    store.blobs.release([orphan])
    manifest = store.blobs.path(model.digest)
    good = manifest.read_bytes()
    manifest.unlink()
    if damage == "changed":
        manifest.write_bytes(good + b" ")
    report = store.prune()
    assert report.blobs == 0
    assert model.digest.hex in report.problems[0]
    assert store.blobs.has(orphan)
    assert all(path.exists() for path in model.files.values())
    manifest.write_bytes(good)
    assert store.prune().blobs == 1
    assert ModelStore(store.root).resolve("bad:1") == model


def test_pins_of_a_transfer_that_was_forgotten_end_after_a_time(store: ModelStore, put: Put) -> None:
    put(store, b"forgotten")
    (pins,) = (store.root / "tmp").glob("*.pins")
    name, since = pins.read_text().split()
    pins.write_text(f"{name} {int(since) - int(KEPT_S) - 5}\n")
    assert store.prune().blobs == 1


def test_what_others_still_link_to_is_not_counted_as_freed(store: ModelStore, put: Put, disk: Path) -> None:
    digest = put(store, b"x" * 1000)
    (disk / "link").hardlink_to(store.blobs.path(digest))
    store.blobs.release([digest])
    report = store.prune()
    assert (report.blobs, report.bytes_freed) == (1, 0)


def test_files_that_are_not_ours_stay(store: ModelStore, add: Add, disk: Path) -> None:
    add(store, "tiny:1")
    strangers = [store.root / "notes.txt", store.root / "blobs" / "sha256" / "README", store.root / "tmp" / "notes"]
    for path in strangers:
        path.write_text("mine")
    store.prune(keep_partials_s=0)
    assert all(path.read_text() == "mine" for path in strangers)


def test_a_store_that_lost_marker_and_index_is_not_taken_for_a_new_one(store: ModelStore, add: Add, put: Put) -> None:
    model = add(store, "tiny:1")
    (store.root / "oci-layout").unlink()
    assert ModelStore(store.root).resolve("tiny:1") == model
    (store.root / "index.json").unlink()
    fresh = ModelStore(store.root)
    for use in (fresh.models, fresh.prune, lambda: put(fresh, b"more")):
        with pytest.raises(StoreDamaged):
            use()
    assert all(path.exists() for path in model.files.values())


def test_a_rehearsal_names_what_then_goes_also_where_a_replaced_model_has_a_view(store: ModelStore, add: Add) -> None:
    store.view(add(store, "c:latest", {"model.gguf": b""}))
    add(store, "c:latest", {"model.gguf": b"", "config.json": b"{}"})
    rehearsed = store.prune(dry=True)
    assert rehearsed.items
    assert store.prune().items == rehearsed.items
