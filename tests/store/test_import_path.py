from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    BadModelFile,
    DiskFull,
    HomelabError,
    InvalidInput,
    InvalidName,
    NotRegularFile,
    UnsafeModel,
)
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore

Gguf = Callable[..., Path]
Folder = Callable[..., Path]
Cache = Callable[[Path], Path]
ref = ModelRef.parse


def contents(store: ModelStore, name: str) -> dict[str, bytes]:
    return {file: path.read_bytes() for file, path in store.resolve(name).files.items()}


def nothing_came_in(store: ModelStore) -> bool:
    """No model, and nothing that a prune would have to free."""
    assert store.models() == []
    return store.prune(keep_partials_s=0).blobs == 0


@pytest.mark.requirement("R-M1", "R-M9")
def test_the_real_smollm2_is_imported_with_its_facts(store: ModelStore, smollm2_gguf: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = store.import_path(
        smollm2_gguf, ref("smollm2:135m"), progress=lambda done, total: seen.append((done, total))
    )
    assert model.files["model.gguf"].name == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert model.size_bytes == smollm2_gguf.stat().st_size
    assert model.facts.architecture == "llama"
    assert model.facts.quantization == "Q4_1"
    assert model.source == "file:SmolLM2-135M-Instruct.Q4_1.gguf"
    assert seen[0] == (0, model.size_bytes)
    assert seen[-1] == (model.size_bytes, model.size_bytes)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.requirement("R-M1", "R-M9")
def test_the_real_minilm_folder_is_imported_with_its_module_folders(store: ModelStore, minilm_folder: Path) -> None:
    model = store.import_path(minilm_folder, ref("all-minilm:l6-v2"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= set(model.files)
    assert not any(name.startswith(".") for name in model.files)
    assert "embedding" in model.facts.capabilities
    assert (store.view(model) / "1_Pooling" / "config.json").is_file()


def test_an_imported_file_may_be_changed_or_removed_afterwards(store: ModelStore, gguf: Gguf) -> None:
    path = gguf()
    content = path.read_bytes()
    store.import_path(path, ref("tiny"))
    path.write_bytes(b"overwritten")
    path.unlink()
    assert contents(store, "tiny") == {"model.gguf": content}


def test_all_shards_come_in_whichever_is_named(store: ModelStore, gguf: Gguf, disk: Path) -> None:
    for number in (1, 2, 3):
        gguf(f"big-Q4-{number:05d}-of-00003.gguf", extra={"split.no": number - 1, "split.count": 3})
    model = store.import_path(disk / "sources" / "big-Q4-00002-of-00003.gguf", ref("big"))
    assert sorted(model.files) == [f"model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    again = store.import_path(disk / "sources", ref("folder"))
    assert again.files == model.files


def test_a_missing_shard_is_named(store: ModelStore, gguf: Gguf) -> None:
    path = gguf("big-00001-of-00002.gguf", extra={"split.no": 0, "split.count": 2})
    with pytest.raises(BadModelFile) as caught:
        store.import_path(path, ref("big"))
    assert caught.value.facts["missing"] == "big-00002-of-00002.gguf"
    assert nothing_came_in(store)


def test_a_folder_brings_what_a_loader_reads_and_nothing_else(store: ModelStore, hf_folder: Folder) -> None:
    folder = hf_folder(
        files={
            "README.md": b"# read",
            "chat_template.jinja": b"{{ messages }}",
            "tokenizer.model": b"sp",
            "merges.txt": b"a b",
            "1_Pooling/config.json": b"{}",
            "modeling_tiny.py": b"import os",
            "pytorch_model.bin": b"pickle",
            "training_args.bin": b"pickle",
            "consolidated.safetensors": b"a second set of the same weights",
            "onnx/model.onnx": b"x",
            "onnx/config.json": b"{}",
            "tf_model.h5": b"x",
            ".gitattributes": b"x",
            ".cache/huggingface/x.json": b"{}",
        }
    )
    store.import_path(folder, ref("tiny"))
    assert sorted(contents(store, "tiny")) == [
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "model.ckpt", "weights.pkl"])
def test_pickled_weights_are_refused_as_file_and_as_folder(store: ModelStore, hf_folder: Folder, name: str) -> None:
    folder = hf_folder(files={"model.safetensors": None, name: b"\x80\x04"})
    for path in (folder, folder / name):
        with pytest.raises(UnsafeModel) as caught:
            store.import_path(path, ref("tiny"))
        assert caught.value.facts["file"] == name
    assert nothing_came_in(store)


@pytest.mark.requirement("R-S1")
def test_a_module_whose_only_weights_are_pickled_is_refused(store: ModelStore, hf_folder: Folder) -> None:
    folder = hf_folder(files={"2_Dense/config.json": b"{}", "2_Dense/pytorch_model.bin": b"\x80\x04"})
    with pytest.raises(UnsafeModel):
        store.import_path(folder, ref("tiny"))


@pytest.mark.requirement("R-S1")
def test_a_model_that_brings_code_is_refused(store: ModelStore, hf_folder: Folder) -> None:
    config = json.loads((hf_folder("plain") / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tiny.Tiny"}
    folder = hf_folder(files={"config.json": json.dumps(config).encode(), "modeling_tiny.py": b"import os"})
    with pytest.raises(UnsafeModel):
        store.import_path(folder, ref("tiny"))
    assert nothing_came_in(store)


@pytest.mark.requirement("R-S1")
def test_links_are_refused_wherever_they_stand(store: ModelStore, gguf: Gguf, hf_folder: Folder, disk: Path) -> None:
    link = disk / "link.gguf"
    link.symlink_to(gguf())
    dangling = disk / "gone-00001-of-00002.gguf"
    dangling.symlink_to(disk / "absent")
    folder = hf_folder()
    (folder / "generation_config.json").symlink_to("/etc/hostname")
    (disk / "linked folder").symlink_to(folder)
    for path in (link, dangling, folder, disk / "linked folder"):
        with pytest.raises(NotRegularFile):
            store.import_path(path, ref("tiny"))
    assert nothing_came_in(store)


@pytest.mark.requirement("R-S1")
def test_a_fifo_socket_or_device_is_refused_and_never_read(store: ModelStore, hf_folder: Folder, disk: Path) -> None:
    os.mkfifo(disk / "fifo.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(disk / "sock.gguf"))
        folder = hf_folder(files={"tokenizer.json": None})
        os.mkfifo(folder / "tokenizer.json")
        for path in (disk / "fifo.gguf", disk / "sock.gguf", Path("/dev/zero"), folder):
            with pytest.raises(NotRegularFile):
                store.import_path(path, ref("tiny"))
    assert nothing_came_in(store)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("target", ["outside", "another repository", "another folder of it", "a folder", "nothing"])
def test_a_cache_link_that_leads_out_of_its_blobs_is_refused(
    store: ModelStore, hf_folder: Folder, hf_cache: Cache, disk: Path, target: str
) -> None:
    snapshot = hf_cache(hf_folder())
    repository = snapshot.parents[1]
    (disk / "secret.json").write_bytes(b"{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_bytes(b"{}")
    other = disk / "hub" / "models--evil" / "blobs" / "x"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"{}")
    (repository / "blobs" / "folder").mkdir()
    goals = {
        "outside": disk / "secret.json",
        "another repository": other,
        "another folder of it": repository / "refs" / "main",
        "a folder": repository / "blobs" / "folder",
        "nothing": repository / "blobs" / "absent",
    }
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(goals[target])
    with pytest.raises(NotRegularFile):
        store.import_path(snapshot, ref("tiny"))
    assert nothing_came_in(store)


@pytest.mark.requirement("R-M2")
def test_a_hugging_face_cache_is_imported_without_a_second_copy(
    store: ModelStore, hf_folder: Folder, hf_cache: Cache, disk_clones: bool
) -> None:
    snapshot = hf_cache(hf_folder())
    before = {path: path.read_bytes() for path in snapshot.parents[1].rglob("*") if path.is_file()}
    model = store.import_path(snapshot, ref("tiny"))
    weights = model.files["model.safetensors"]
    assert Digest.of_file(weights).hex == weights.name
    assert weights.samefile(snapshot / "model.safetensors") != disk_clones
    store.import_path(snapshot, ref("again"))
    store.remove(ref("tiny"))
    store.remove(ref("again"))
    assert not weights.exists()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.requirement("R-M2")
def test_one_file_of_a_hugging_face_cache_is_imported_by_its_snapshot_name(
    store: ModelStore, gguf: Gguf, hf_cache: Cache, disk: Path, disk_clones: bool
) -> None:
    gguf("one.gguf", folder=disk / "repo")
    gguf("two.gguf", folder=disk / "repo")
    snapshot = hf_cache(disk / "repo")
    model = store.import_path(snapshot / "two.gguf", ref("tiny"))
    assert contents(store, "tiny") == {"model.gguf": (disk / "repo" / "two.gguf").read_bytes()}
    assert model.files["model.gguf"].samefile(snapshot / "two.gguf") != disk_clones


def test_a_plain_file_is_never_hard_linked(store: ModelStore, gguf: Gguf) -> None:
    path = gguf()
    model = store.import_path(path, ref("tiny"))
    assert not model.files["model.gguf"].samefile(path)
    assert path.stat().st_nlink == 1


def test_a_cached_file_on_another_file_system_is_copied(
    tmp_path: Path, disk: Path, hf_folder: Folder, hf_cache: Cache
) -> None:
    if tmp_path.stat().st_dev == disk.stat().st_dev:
        assert disk.stat().st_dev == tmp_path.stat().st_dev  # one file system only: linking is shown above
        return
    store = ModelStore(tmp_path / "store")
    model = store.import_path(hf_cache(hf_folder()), ref("tiny"))
    assert model.files["model.safetensors"].stat().st_nlink == 1


def test_a_folder_with_several_gguf_models_asks_which(store: ModelStore, gguf: Gguf, disk: Path) -> None:
    gguf("a-Q4.gguf")
    gguf("a-Q8.gguf")
    with pytest.raises(InvalidInput) as caught:
        store.import_path(disk / "sources", ref("tiny"))
    assert caught.value.facts["files"] == ["a-Q4.gguf", "a-Q8.gguf"]


def test_what_is_no_model_is_refused(store: ModelStore, hf_folder: Folder, disk: Path) -> None:
    (disk / "notes.txt").write_text("hello")
    (disk / "empty").mkdir()
    (disk / "empty.gguf").touch()
    paths = [disk / "absent", disk / "absent.gguf", disk / "notes.txt", disk / "empty", disk / "empty.gguf"]
    paths.append(hf_folder("no config", files={"config.json": None}))
    for path in paths:
        with pytest.raises(BadModelFile):
            store.import_path(path, ref("tiny"))
    assert nothing_came_in(store)


@pytest.mark.requirement("R-M4")
def test_a_truncated_extended_or_lying_file_is_refused_before_a_byte_is_copied(
    store: ModelStore, gguf: Gguf, hf_folder: Folder
) -> None:
    path = gguf()
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"x" * 4096, bytes(len(content)), content[:20]):
        path.write_bytes(wrong)
        with pytest.raises(BadModelFile):
            store.import_path(path, ref("tiny"))
    folder = hf_folder(files={"model.safetensors": (1 << 40).to_bytes(8, "little") + b"{}"})
    with pytest.raises(BadModelFile):
        store.import_path(folder, ref("tiny"))
    assert not store.root.exists()


def test_a_file_that_changes_while_it_is_read_is_refused(store: ModelStore, gguf: Gguf) -> None:
    path = gguf(weights_bytes=4 << 20)

    def change(done: int, total: int) -> None:
        if done == 1 << 20:
            with path.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                stream.write(b"!")
                os.utime(path, ns=(1, 1))

    with pytest.raises(BadModelFile) as caught:
        store.import_path(path, ref("tiny"), progress=change)
    assert "changed" in caught.value.message
    assert nothing_came_in(store)


def test_a_progress_callback_that_gives_up_leaves_nothing_behind(store: ModelStore, gguf: Gguf) -> None:
    class GaveUp(Exception):
        pass

    def give_up(done: int, total: int) -> None:
        if done:
            raise GaveUp

    with pytest.raises(GaveUp):
        store.import_path(gguf(), ref("tiny"), progress=give_up)
    assert nothing_came_in(store)
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.requirement("R-M5")
@pytest.mark.parametrize(
    "point", ["store.partial.recorded", "store.blob.before_sync", "store.blob.pinned", "store.add.config"]
)
def test_a_disk_that_fills_up_leaves_no_half_model_and_nothing_held(
    store: ModelStore, gguf: Gguf, armed: Callable[[str], None], point: str
) -> None:
    armed(f"{point}=enospc")
    with pytest.raises(DiskFull) as caught:
        store.import_path(gguf(), ref("tiny"))
    assert isinstance(caught.value.facts["free_bytes"], int)
    assert store.models() == []
    store.prune()
    assert list((store.root / "blobs" / "sha256").iterdir()) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert store.import_path(gguf(), ref("tiny")).name == "tiny:latest"


def test_an_import_into_a_name_with_a_digest_is_refused_before_reading(store: ModelStore, gguf: Gguf) -> None:
    with pytest.raises(InvalidName):
        store.import_path(gguf(), ref(f"tiny@{Digest.of(b'')}"))
    assert not store.root.exists()


@pytest.mark.requirement("R-S1")
def test_odd_file_names_in_a_folder_are_refused_or_kept_as_data(store: ModelStore, hf_folder: Folder) -> None:
    folder = hf_folder(files={"tokenizer\n.json": b"{}"})
    with pytest.raises(HomelabError):
        store.import_path(folder, ref("tiny"))
    (folder / "tokenizer\n.json").rename(folder / "$(touch x);.json")
    assert "$(touch x);.json" in store.import_path(folder, ref("tiny")).files
