from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DiskFull, InvalidInput, InvalidName, ModelDamaged, ModelNotFound, StoreDamaged
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.index import Index, write_index
from homelab_llm.store.layout import Layout
from homelab_llm.store.manifests import Layer, encode_config, encode_manifest
from homelab_llm.store.model_store import ModelStore

Put = Callable[[ModelStore, bytes], Digest]
Add = Callable[..., StoredModel]
ref = ModelRef.parse


def names(store: ModelStore) -> list[str]:
    return [model.name for model in store.models()]


def edit_index(store: ModelStore, change: Callable[[dict[str, Any]], None]) -> None:
    """Change ``index.json`` as a person with an editor would."""
    path = store.root / "index.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.with_name("new").write_text(json.dumps(document, indent=2))
    path.with_name("new").rename(path)


def test_importing_the_store_brings_in_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; import homelab_llm.store.model_store\n"
        "print({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})\n"
        "print(sorted(name for name in ('ctypes', 'difflib', 'shutil', 'asyncio', 'ssl') if name in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "{'homelab_llm'}\n[]\n"


SRC = Path(__file__).resolve().parents[2] / "src"


def test_a_store_that_does_not_exist_is_empty_and_stays_absent(store: ModelStore) -> None:
    assert store.models() == []
    assert store.problems() == []
    assert store.prune().blobs == 0
    for use in (lambda: store.resolve("a"), lambda: store.remove(ref("a")), lambda: store.copy(ref("a"), ref("b"))):
        with pytest.raises(ModelNotFound):
            use()
    assert not store.root.exists()


@pytest.mark.requirement("R-M5")
def test_an_added_model_is_listed_with_all_that_is_known_of_it(store: ModelStore, add: Add) -> None:
    added = add(store, "org/tiny:1", {"model.gguf": b"weights", "LICENSE": b"weights", "config.json": b"{}"})
    (listed,) = ModelStore(store.root).models()
    assert listed == added
    assert listed.name == "org/tiny:1"
    assert listed.source == "test:org/tiny:1"
    assert listed.facts.licence == "apache-2.0"
    assert listed.size_bytes == len(b"weights") + len(b"{}"), "content that two files share counts once"
    assert {name: path.read_bytes() for name, path in listed.files.items()} == {
        "model.gguf": b"weights",
        "LICENSE": b"weights",
        "config.json": b"{}",
    }
    assert listed.created_unix_s > 1.6e9


@pytest.mark.requirement("R-M1")
def test_the_same_model_has_the_same_digest_in_every_store(store: ModelStore, disk: Path, add: Add) -> None:
    here = add(store, "a:1", {"b": b"2", "a": b"1"}, source="hf:x/y")
    there = add(ModelStore(disk / "other"), "b:2", {"a": b"1", "b": b"2"}, source="hf:x/y")
    assert here.digest == there.digest
    assert here.digest != add(store, "a:2", {"a": b"1", "b": b"3"}, source="hf:x/y").digest


@pytest.mark.requirement("R-M1")
def test_names_resolve_with_tag_without_tag_and_by_digest(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:135m")
    latest = add(store, "tiny:latest")
    assert store.resolve("tiny:135m") == model
    assert store.resolve("TINY:135m") == model
    assert store.resolve("tiny") == latest
    assert store.resolve(f"tiny@{model.digest}") == model
    assert store.resolve(str(model.digest)) == model
    for wrong in (f"other@{model.digest}", f"tiny@{Digest.of(b'')}", str(Digest.of(b""))):
        with pytest.raises(ModelNotFound):
            store.resolve(wrong)


def test_a_name_without_tag_is_never_guessed(store: ModelStore, add: Add) -> None:
    add(store, "tiny:135m")
    with pytest.raises(ModelNotFound) as caught:
        store.resolve("tiny")
    assert caught.value.facts["closest"] == ["tiny:135m"]
    assert caught.value.hint == "mlxctl list"


@pytest.mark.parametrize(
    ("asked", "closest"),
    [
        ("smolm2:135m", ["smollm2:135m"]),
        ("smollm2", ["smollm2:135m"]),
        ("qwen3-0.6b", ["qwen/qwen3-0.6b:latest"]),
        ("zzz", []),
    ],
)
def test_an_unknown_name_names_the_closest_ones(store: ModelStore, add: Add, asked: str, closest: list[str]) -> None:
    for name in ("smollm2:135m", "all-minilm:l6-v2", "qwen/qwen3-0.6b"):
        add(store, name)
    for _ in range(2):
        with pytest.raises(ModelNotFound) as caught:
            store.resolve(asked)
        assert caught.value.facts["closest"] == closest
        assert caught.value.facts["model"] == str(ref(asked))


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a\x00b", "a\nb", "x" * 10_000, "", "/etc/passwd", "a:b:c", "%s;rm"]
)
def test_a_name_outside_the_grammar_is_refused_and_touches_nothing(store: ModelStore, add: Add, name: str) -> None:
    add(store, "tiny")
    before = sorted(path for path in store.root.rglob("*"))
    with pytest.raises(InvalidName):
        store.resolve(name)
    assert sorted(path for path in store.root.rglob("*")) == before


def test_new_names_have_no_digest_and_are_not_digests(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1")
    for target in (ref(f"tiny@{model.digest}"), ModelRef("sha256", model.digest.hex)):
        with pytest.raises(InvalidName):
            store.copy(ref("tiny:1"), target)
        with pytest.raises(InvalidName):
            store.add(target, {}, model.facts, source="")


def test_a_model_whose_blob_is_not_there_cannot_be_added(store: ModelStore, add: Add) -> None:
    facts = add(store, "tiny:1").facts
    with pytest.raises(InvalidInput):
        store.add(ref("tiny:2"), {"model.gguf": Digest.of(b"nowhere")}, facts, source="")
    assert names(store) == ["tiny:1"]


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "files",
    [[], ["../x"], ["/x"], ["a/../../x"], ["a//b"], ["."], ["a\\b"], ["a\nb"], ["x" * 300], ["a", "A"], ["a", "a/b"],
     ["\u00e9", "e\u0301"], ["a/" * 9 + "b"], ["\ud800"]],
    ids=repr,
)  # fmt: skip
def test_file_names_that_could_leave_the_model_or_collide_are_refused(
    store: ModelStore, put: Put, files: list[str]
) -> None:
    digest = put(store, b"x")
    facts = ModelFacts(format="gguf", architecture="x", size_bytes=1)
    with pytest.raises(InvalidName):
        store.add(ref("tiny"), dict.fromkeys(files, digest), facts, source="")
    assert names(store) == []


@pytest.mark.requirement("R-M5")
def test_a_copy_is_a_further_name_of_the_same_model(store: ModelStore, add: Add) -> None:
    original = add(store, "tiny:1")
    copied = store.copy(ref("tiny:1"), ref("my/own"))
    assert (copied.name, copied.digest, copied.files) == ("my/own:latest", original.digest, original.files)
    assert store.copy(ref(f"tiny@{original.digest}"), ref("third:x")).digest == original.digest
    assert store.copy(ref(str(original.digest)), ref("fourth")).digest == original.digest
    assert names(store) == ["fourth:latest", "my/own:latest", "third:x", "tiny:1"]
    with pytest.raises(ModelNotFound):
        store.copy(ref("absent"), ref("x"))


def test_a_name_given_again_moves_to_the_new_model(store: ModelStore, add: Add) -> None:
    add(store, "tiny", {"model.gguf": b"old"})
    kept = add(store, "other", {"model.gguf": b"kept"})
    assert add(store, "tiny", {"model.gguf": b"new"}).files["model.gguf"].read_bytes() == b"new"
    assert store.copy(ref("other"), ref("tiny")).digest == kept.digest
    assert names(store) == ["other:latest", "tiny:latest"]


def test_adding_the_same_model_again_changes_nothing(store: ModelStore, add: Add) -> None:
    add(store, "tiny")
    before = (store.root / "index.json").read_bytes(), store.stamp()
    add(store, "tiny")
    assert ((store.root / "index.json").read_bytes(), store.stamp()) == before


@pytest.mark.requirement("R-M5")
def test_removing_a_name_frees_what_no_other_name_needs(store: ModelStore, add: Add) -> None:
    add(store, "a:1", {"shared": b"shared" * 100, "own": b"own of a" * 100})
    kept = add(store, "b:1", {"shared": b"shared" * 100, "own": b"own of b" * 100})
    store.copy(ref("a:1"), ref("a:2"))
    assert store.remove(ref("a:1")).blobs == 0
    assert names(store) == ["a:2", "b:1"]
    freed = store.remove(ref("a:2"))
    assert freed.blobs == 3, "the own file, the configuration and the manifest"
    assert freed.bytes_freed > 800
    assert not store.blobs.has(Digest.of(b"own of a" * 100))
    assert all(path.exists() for path in kept.files.values())
    with pytest.raises(ModelNotFound):
        store.remove(ref("a:2"))


def test_removing_by_digest_takes_all_names_of_that_repository(store: ModelStore, add: Add) -> None:
    digest = add(store, "a:1").digest
    store.copy(ref("a:1"), ref("a:2"))
    store.copy(ref("a:1"), ref("b:1"))
    store.copy(ref("a:1"), ref("c:1"))
    assert store.remove(ref(f"a@{digest}")).blobs == 0
    assert names(store) == ["b:1", "c:1"]
    for unknown in (ref(f"a@{digest}"), ref(f"sha256:{'0' * 64}")):
        with pytest.raises(ModelNotFound) as caught:
            store.remove(unknown)
        assert caught.value.hint == "mlxctl list"
    assert store.remove(ref(str(digest))).blobs == 3
    assert names(store) == []


def test_another_process_sees_every_change_at_once(store: ModelStore, add: Add) -> None:
    other = ModelStore(store.root)
    stamps = [other.stamp()]
    for count in range(1, 30):
        add(store, f"tiny:{count}")
        assert other.resolve(f"tiny:{count}").name == f"tiny:{count}"
        stamps.append(other.stamp())
    for count in range(1, 30):
        store.remove(ref(f"tiny:{count}"))
        assert len(other.models()) == 29 - count
        stamps.append(other.stamp())
    assert len(set(stamps)) == len(stamps)


def test_a_clock_that_stands_still_or_goes_back_does_not_hide_a_change(store: ModelStore, add: Add) -> None:
    other = ModelStore(store.root)
    add(store, "tiny:0")
    future = 4 * 10**18
    os.utime(store.root / "index.json", ns=(future, future))
    for count in range(1, 5):
        assert len(other.models()) == count
        stamp = store.stamp()
        add(store, f"tiny:{count}")
        assert store.stamp()[0] > stamp[0] >= future


def test_nothing_is_read_again_while_nothing_changed(store: ModelStore, add: Add) -> None:
    first = add(store, "tiny:1")
    assert store.resolve("tiny:1") is store.resolve("tiny:1")
    facts = store.resolve("tiny:1").facts
    add(store, "tiny:2")
    assert store.resolve("tiny:1").facts is facts, "only the new manifest was read"
    assert store.resolve("tiny:1") == first


def test_a_thousand_models_are_listed_and_resolved(store: ModelStore, put: Put) -> None:
    layout = Layout(store.root)
    digest = put(store, b"weights")
    facts = ModelFacts(format="gguf", architecture="x", size_bytes=7)
    index = Index()
    with layout.locked():
        for count in range(1000):
            layers = (Layer("model.gguf", digest, 7),)
            config = encode_config(layers, facts)
            store.blobs.put_locked(config)
            manifest = encode_manifest(layers, config, facts, f"test:{count}")
            index = index.tagged(ref(f"m{count}"), store.blobs.put_locked(manifest), len(manifest), 1e9 + count)
        write_index(layout, index)
    assert len(store.models()) == 1000
    assert store.resolve("m777").source == "test:777"
    assert store.resolve("m777").created_unix_s == 1e9 + 777
    assert store.problems() == []


@pytest.mark.requirement("R-M4")
def test_a_damaged_manifest_hides_its_model_only_and_is_reported(store: ModelStore, add: Add) -> None:
    bad, good = add(store, "bad:1"), add(store, "good:1")
    manifest = store.blobs.path(bad.digest)
    manifest.write_bytes(manifest.read_bytes().replace(b"fake", b"FAKE"))
    fresh = ModelStore(store.root)
    assert names(fresh) == ["good:1"]
    (problem,) = fresh.problems()
    assert problem.name == "bad:1"
    assert f"blobs/sha256/{bad.digest.hex}" in problem.message
    assert problem.hint == "mlxctl repair bad:1"
    fresh.remove(ref("bad:1"))
    assert fresh.problems() == []
    assert fresh.resolve("good:1") == good


@pytest.mark.requirement("R-M4")
@pytest.mark.parametrize("damage", ["missing", "shorter", "a link"])
def test_a_model_with_a_damaged_file_is_not_listed(store: ModelStore, add: Add, disk: Path, damage: str) -> None:
    blob = add(store, "bad:1").files["model.gguf"]
    add(store, "good:1")
    content = blob.read_bytes()
    blob.unlink()
    if damage == "shorter":
        blob.write_bytes(content[:-1])
    if damage == "a link":
        (disk / "x").write_bytes(content)
        blob.symlink_to(disk / "x")
    fresh = ModelStore(store.root)
    assert names(fresh) == ["good:1"]
    assert [problem.name for problem in fresh.problems()] == ["bad:1"]
    with pytest.raises(ModelDamaged, match="bad:1"):
        fresh.resolve("bad:1")


def test_adding_again_mends_a_damaged_manifest(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1")
    store.blobs.path(model.digest).write_bytes(b"\0" * store.blobs.path(model.digest).stat().st_size)
    assert names(ModelStore(store.root)) == []
    fresh = ModelStore(store.root)
    add(fresh, "tiny:1")
    assert names(ModelStore(store.root)) == ["tiny:1"]


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 400,
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"manifests": 5}',
        b'{"manifests": [1]}',
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_an_unreadable_index_is_an_error_that_names_the_file_and_nothing_is_lost(
    store: ModelStore, add: Add, content: bytes
) -> None:
    add(store, "tiny:1")
    path = store.root / "index.json"
    good = path.read_bytes()
    path.write_bytes(content)
    fresh = ModelStore(store.root)
    for use in (
        fresh.models,
        fresh.prune,
        lambda: fresh.remove(ref("tiny:1")),
        lambda: add(fresh, "tiny:2"),
        lambda: fresh.copy(ref("tiny:1"), ref("x")),
    ):
        with pytest.raises(StoreDamaged) as caught:
            use()
        assert caught.value.facts["file"] == "index.json"
        assert "index.json" in caught.value.message
    assert path.read_bytes() == content
    path.write_bytes(good)
    assert names(fresh) == ["tiny:1"]


def test_a_lost_index_is_not_an_empty_one(store: ModelStore, add: Add) -> None:
    model = add(store, "tiny:1")
    (store.root / "index.json").unlink()
    fresh = ModelStore(store.root)
    for use in (fresh.models, fresh.prune, lambda: add(fresh, "tiny:2")):
        with pytest.raises(StoreDamaged):
            use()
    assert all(path.exists() for path in model.files.values())


@pytest.mark.parametrize("marker", [b"", b"{}", b"[]", b'{"imageLayoutVersion": "2.0.0"}'])
def test_a_store_of_another_layout_is_left_alone(store: ModelStore, add: Add, marker: bytes) -> None:
    add(store, "tiny:1")
    (store.root / "oci-layout").write_bytes(marker)
    fresh = ModelStore(store.root)
    for use in (fresh.models, fresh.prune, lambda: add(fresh, "tiny:2"), lambda: fresh.remove(ref("tiny:1"))):
        with pytest.raises(StoreDamaged) as caught:
            use()
        assert caught.value.facts["file"] == "oci-layout"


def test_an_index_that_is_a_fifo_does_not_block(store: ModelStore, add: Add) -> None:
    add(store, "tiny:1")
    (store.root / "index.json").unlink()
    os.mkfifo(store.root / "index.json")
    with pytest.raises(StoreDamaged):
        ModelStore(store.root).models()


@pytest.mark.requirement("R-M1")
def test_entries_and_keys_of_other_tools_are_kept(store: ModelStore, add: Add, put: Put) -> None:
    add(store, "tiny:1")
    foreign = put(store, b'{"schemaVersion":2,"config":{"digest":"%s"},"layers":[]}' % str(put(store, b"cfg")).encode())
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(foreign), "size": 1, "x": [1]}
    entries = [entry, {**entry, "annotations": {"org.opencontainers.image.ref.name": "Not A Name Of Ours!"}}]

    def change(document: dict[str, Any]) -> None:
        document["manifests"] += entries
        document["annotations"] = {"who": "else"}

    edit_index(store, change)
    add(store, "tiny:2")
    document = json.loads((store.root / "index.json").read_bytes())
    assert [item for item in document["manifests"] if item in entries] == entries
    assert document["annotations"] == {"who": "else"}
    assert document["schemaVersion"] == 2
    assert names(store) == ["tiny:1", "tiny:2"]


def test_a_foreign_image_keeps_its_blobs_when_pruned(store: ModelStore, add: Add, put: Put) -> None:
    add(store, "tiny:1")
    config = put(store, b"foreign config")
    image = put(store, json.dumps({"config": {"digest": str(config)}, "layers": []}).encode())
    listing = put(store, json.dumps({"manifests": [{"digest": str(image)}]}).encode())
    edit_index(store, lambda document: document["manifests"].append({"digest": str(listing), "size": 1}))
    store.blobs.release([config, image, listing])
    assert store.prune().blobs == 0
    assert all(store.blobs.has(digest) for digest in (config, image, listing))


def test_an_entry_without_digest_or_a_name_used_twice_is_reported(store: ModelStore, add: Add) -> None:
    add(store, "tiny:1")

    def change(document: dict[str, Any]) -> None:
        first = document["manifests"][0]
        document["manifests"] += [first, {**first, "digest": "sha256:short"}, {"size": 1}]

    edit_index(store, change)
    fresh = ModelStore(store.root)
    assert names(fresh) == ["tiny:1"]
    assert [problem.name for problem in fresh.problems()] == ["", "tiny:1", ""]
    fresh.remove(ref("tiny:1"))
    assert names(fresh) == []
    assert [problem.name for problem in fresh.problems()] == [""]


def test_a_manifest_larger_than_its_bound_is_not_read(store: ModelStore, add: Add) -> None:
    add(store, "good:1")
    facts = replace(add(store, "big:1").facts, chat_template="x" * (5 << 20))
    with pytest.raises(InvalidInput):
        store.add(ref("big:2"), {"model.gguf": Digest.of(b"big:1")}, facts, source="")
    big = store.blobs.path(store.resolve("big:1").digest)
    big.write_bytes(big.read_bytes() + b" " * (5 << 20))
    fresh = ModelStore(store.root)
    assert names(fresh) == ["good:1"]
    assert "larger" in fresh.problems()[0].message


@pytest.mark.requirement("R-M5")
@pytest.mark.parametrize(
    "point", ["store.add.checked", "store.put.written", "store.index.before_write", "atomic.before_rename"]
)
def test_a_full_disk_while_adding_is_disk_full_and_changes_nothing(
    store: ModelStore, add: Add, put: Put, armed: Callable[[str], None], point: str
) -> None:
    facts = add(store, "tiny:1").facts
    digest = put(store, b"more")
    armed(f"{point}=enospc")
    with pytest.raises(DiskFull):
        store.add(ref("tiny:2"), {"model.gguf": digest}, facts, source="")
    assert names(ModelStore(store.root)) == ["tiny:1"]
    assert store.add(ref("tiny:2"), {"model.gguf": digest}, facts, source="").name == "tiny:2"


@pytest.mark.parametrize("shared", [True, False], ids=["one store object", "a store object each"])
def test_threads_that_add_copy_remove_and_prune_at_once_leave_a_whole_store(
    store: ModelStore, add: Add, shared: bool
) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        mine = store if shared else ModelStore(store.root)
        common = f"of {number}" if shared else "for all"
        try:
            start.wait(30)
            for turn in range(12):
                name = f"t{number}:{turn}"
                add(mine, name, {"own": name.encode(), "common": common.encode()})
                mine.copy(ref(name), ref(f"copy{number}"))
                mine.prune()
                if turn % 3:
                    mine.remove(ref(name))
        except BaseException as error:  # noqa: BLE001 — shown by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    fresh = ModelStore(store.root)
    assert names(fresh) == sorted(
        [f"t{n}:{t}" for n in range(4) for t in (0, 3, 6, 9)] + [f"copy{n}:latest" for n in range(4)]
    )
    assert fresh.problems() == []
