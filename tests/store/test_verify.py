"""Verify finds what is damaged, names it, and remembers what is good."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import ModelDamaged, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.hashing import hash_blobs
from homelab_llm.store.layout import Layout
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.verification import FileState, Verdict, Verification
from homelab_llm.store.verify import check_model, damage_error, verify
from homelab_llm.testing.big_store import fill_store
from homelab_llm.testing.damage import DAMAGES, Damaging, flip_a_bit, make_a_link

Add = Callable[..., StoredModel]
FILES = {"config.json": b"{}" * 3000, "model.safetensors": bytes(range(256)) * 100, "tokenizer.json": b"t" * 5000}


@pytest.fixture
def model(store: ModelStore, add: Add) -> StoredModel:
    return add(store, "whole:1", FILES)


def told(store: ModelStore, names: Sequence[str] | None = None) -> list[tuple[str, str]]:
    return [(damage.model, damage.file) for damage in verify(store, names).damages]


@pytest.mark.requirement("R-M4", "B-9")
def test_a_whole_store_verifies(store: ModelStore, model: StoredModel) -> None:
    report = verify(store)
    assert report.ok
    assert (report.models, report.unreferenced) == (1, 0)
    assert report.blobs == len(FILES) + 1  # the configuration is hashed too, the manifest was read
    assert report.bytes_hashed >= model.size_bytes


@pytest.mark.requirement("R-M4", "B-9")
@pytest.mark.parametrize("damaging", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_named_by_model_and_file(
    store: ModelStore, add: Add, model: StoredModel, damaging: Damaging
) -> None:
    add(store, "other:1", {"model.gguf": b"whole" * 9000})
    damaging(model.files["model.safetensors"])
    assert told(store) == [("whole:1", "model.safetensors")]
    assert told(store, ["other:1"]) == []
    assert json.dumps(verify(store).as_dict())


def test_a_blob_that_two_models_share_is_named_for_both(store: ModelStore, add: Add, model: StoredModel) -> None:
    add(store, "second:1", {"tokenizer.json": FILES["tokenizer.json"], "model.gguf": b"own"})
    flip_a_bit(model.files["tokenizer.json"])
    assert told(store) == [("second:1", "tokenizer.json"), ("whole:1", "tokenizer.json")]
    assert told(store, ["second:1"]) == [("second:1", "tokenizer.json")]


def test_a_link_in_place_of_a_blob_is_damage(store: ModelStore, model: StoredModel) -> None:
    make_a_link(model.files["config.json"])
    assert told(store) == [("whole:1", "config.json")]


def test_a_fifo_or_folder_in_place_of_a_blob_is_damage_and_does_not_block(
    store: ModelStore, model: StoredModel
) -> None:
    for name, make in (("config.json", os.mkfifo), ("tokenizer.json", os.mkdir)):
        model.files[name].unlink()
        make(model.files[name])
    assert told(store) == [("whole:1", "config.json"), ("whole:1", "tokenizer.json")]


def test_damaged_documents_are_named_as_such(store: ModelStore, add: Add, model: StoredModel) -> None:
    manifest = json.loads(store.blobs.path(model.digest).read_bytes())
    flip_a_bit(store.blobs.path(Digest.parse(manifest["config"]["digest"])))
    other = add(store, "other:1")
    flip_a_bit(store.blobs.path(other.digest))
    add(store, "gone:1")
    store.blobs.path(store.resolve("gone:1").digest).unlink()
    assert told(store) == [("gone:1", "(manifest)"), ("other:1", "(manifest)"), ("whole:1", "(configuration)")]


def test_entries_of_the_index_that_lead_nowhere_are_problems(store: ModelStore, model: StoredModel) -> None:
    index = json.loads(store.layout.index.read_bytes())
    index["manifests"] += [{"digest": "nonsense"}, {"digest": f"sha256:{'0' * 64}"}, index["manifests"][0]]
    store.layout.index.write_text(json.dumps(index))
    report = verify(store)
    assert len(report.problems) == 3
    assert not report.damages
    assert not report.ok


def test_blobs_that_no_model_needs_are_hashed_too(store: ModelStore, model: StoredModel) -> None:
    with store.blobs.open_writer("loose") as writer:
        writer.write(b"loose" * 1000)
        flip_a_bit(store.blobs.path(writer.commit()))
    report = verify(store)
    assert report.unreferenced == 1
    assert [damage.model for damage in report.damages] == [""]


def test_a_name_that_is_not_there_is_an_error(store: ModelStore, model: StoredModel) -> None:
    with pytest.raises(ModelNotFound):
        verify(store, ["absent"])


def test_progress_counts_to_the_end_and_what_it_raises_ends_the_work(store: ModelStore, model: StoredModel) -> None:
    steps: list[JobProgress] = []
    verify(store, progress=steps.append)
    assert steps[-1].stage == "done"
    assert steps[-1].done_bytes == steps[-1].total_bytes

    def stop(step: JobProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(store, progress=stop)


def test_what_was_found_good_a_moment_ago_need_not_be_hashed_again(store: ModelStore, model: StoredModel) -> None:
    assert (
        verify(store, trust_s=60).blobs == 1
    )  # the configuration, which is no file of the model and was not hashed yet
    assert verify(store, trust_s=60).blobs == 0
    assert verify(store).blobs == len(FILES) + 1


# --- before a load ------------------------------------------------------------------------------------------


def hashed(store: ModelStore, model: StoredModel) -> list[float]:
    """The progress of a check; empty when nothing had to be hashed."""
    seen: list[float] = []
    assert check_model(store, model, told=seen.append) == []
    return seen


@pytest.mark.requirement("R-M4", "B-9")
def test_a_model_is_hashed_once_and_not_before_every_load(store: ModelStore, model: StoredModel) -> None:
    assert hashed(store, model) == []  # it was hashed while it came in
    assert hashed(ModelStore(store.root), model) == []  # another process knows it too


@pytest.mark.parametrize("change", ["touched", "replaced", "doubted", "distrusted"])
def test_what_changed_or_is_doubted_is_hashed_again_once(store: ModelStore, model: StoredModel, change: str) -> None:
    path = model.files["model.safetensors"]
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "replaced":
        path.with_name("new").write_bytes(path.read_bytes())
        path.with_name("new").rename(path)
    elif change == "doubted":
        store.verification.doubt([Digest(path.name)])
    else:
        store.verification.distrust()
    assert hashed(store, model)
    assert hashed(store, model) == []


@pytest.mark.requirement("R-M4", "B-9")
@pytest.mark.parametrize("damaging", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_told_before_it_is_loaded(store: ModelStore, model: StoredModel, damaging: Damaging) -> None:
    store.verification.distrust()
    damaging(model.files["model.safetensors"])
    for _ in range(2):
        (found,) = check_model(store, model)
        assert found.file == "model.safetensors"
    error = damage_error(model.name, [found])
    assert isinstance(error, ModelDamaged)
    assert error.hint == "mlxctl repair whole:1"
    assert error.facts["files"] == ["model.safetensors"]


def test_a_blob_that_is_known_to_be_bad_is_not_hashed_again_and_again(store: ModelStore, model: StoredModel) -> None:
    flip_a_bit(model.files["model.safetensors"])
    store.verification.distrust()
    assert check_model(store, model)
    seen: list[float] = []
    assert check_model(store, model, told=seen.append)
    assert seen == []


# --- the list of what is known ------------------------------------------------------------------------------


class Boots:
    """A machine that is started again when we say so."""

    def __init__(self) -> None:
        self.number = 1

    def __call__(self) -> str:
        return f"boot-{self.number}"


@pytest.fixture
def boots() -> Boots:
    return Boots()


@pytest.fixture
def known(store: ModelStore, model: StoredModel, boots: Boots) -> Verification:
    store.layout.verified.unlink()
    found = Verification(store.layout, boot=boots)
    found.note([(Digest(path.name), FileState.of(path.stat()), "good") for path in model.files.values()])
    return found


def verdicts(known: Verification, model: StoredModel) -> set[Verdict]:
    return {known.verdict(Digest(path.name)) for path in model.files.values()}


def test_after_a_power_cut_nothing_is_believed(known: Verification, model: StoredModel, boots: Boots) -> None:
    assert verdicts(known, model) == {"good"}
    boots.number = 2
    assert verdicts(known, model) == {"unknown"}


def test_after_an_end_in_order_all_is_believed(known: Verification, model: StoredModel, boots: Boots) -> None:
    known.seal()
    boots.number = 2
    assert verdicts(known, model) == {"good"}
    assert verdicts(Verification(Layout(model.files["config.json"].parents[2]), boot=boots), model) == {"good"}


def test_what_came_after_the_seal_is_not_sealed(known: Verification, model: StoredModel, boots: Boots) -> None:
    known.seal()
    path = model.files["config.json"]
    known.note([(Digest(path.name), FileState.of(path.stat()), "good")])
    boots.number = 2
    assert known.verdict(Digest(path.name)) == "unknown"
    assert verdicts(known, model) == {"good", "unknown"}


@given(cut=st.integers(0, 4000), noise=st.binary(max_size=40))
def test_a_torn_list_never_makes_anything_good(
    cut: int, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is left of the file, a blob with other content than was noted stays unknown, and writing goes on."""
    layout = Layout(tmp_path_factory.mktemp("torn") / "store")
    layout.ensure()
    known = Verification(layout)
    state = FileState(5, 10**18, 77, 10**18)
    digests = [Digest.of(bytes([number])) for number in range(10)]
    known.note([(digest, state, "good") for digest in digests])
    content = layout.verified.read_bytes()
    layout.verified.write_bytes(content[:cut] + noise)
    for digest in digests:
        layout.blob(digest).write_bytes(b"other")
        assert known.verdict(digest) == "unknown"
    found = FileState.of(layout.blob(digests[0]).stat())
    known.note([(digests[0], found, "good")])
    assert Verification(layout).verdict(digests[0]) in ("good", "unknown")


def test_the_list_is_bounded(known: Verification, model: StoredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homelab_llm.store.verification._COMPACT_BYTES", 10_000)
    path = model.files["config.json"]
    for _ in range(300):
        known.note([(Digest(path.name), FileState.of(path.stat()), "good")])
    layout = Layout(path.parents[2])
    assert layout.verified.stat().st_size < 25_000
    assert verdicts(known, model) == {"good"}


# --- hashing ------------------------------------------------------------------------------------------------


def test_many_blobs_are_hashed_by_few_threads_each_once(store: ModelStore) -> None:
    fill_store(store, 30, 300)
    report = verify(store)
    assert report.ok
    assert report.blobs == 330  # and 30 configurations among them


def test_hashing_ends_at_once_when_it_is_left(disk: Path) -> None:
    files = []
    for number in range(4):
        path = disk / str(number)
        path.write_bytes(bytes([number]) * 40_000_000)
        files.append((Digest.of(b""), path))
    run = hash_blobs(files, told=lambda _: None)
    assert next(run).digest is not None
    run.close()
