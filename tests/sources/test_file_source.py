"""Pulls from this machine: files, folders and OCI layouts come the same way as everything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadModelFile, InvalidInput, NotRegularFile, SourceNotFound, UnsafeModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.push import push
from homelab_llm.store.repair import repair
from homelab_llm.store.unpacking import FAILPOINTS
from homelab_llm.testing.artifacts import KIT, LayerOf, put, tar_of
from homelab_llm.testing.registries import Registry

Settings = Callable[..., PullSettings]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.fixture
def gguf(tmp_path: Path, gguf_file: bytes) -> Path:
    path = tmp_path / "Tiny Model.gguf"
    path.write_bytes(gguf_file)
    return path


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "other")


def skopeo(*arguments: str) -> None:
    """Run Debian's skopeo without policy, login or TLS."""
    command = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.requirement("R-M2")
def test_a_file_is_copied_and_can_change_afterwards(
    store: ModelStore, settings: Settings, gguf: Path, gguf_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pull(store, f"file:{gguf}", settings=settings())
    assert (model.name, model.source, model.pulled_from) == ("tiny-model:f32", f"file:{gguf.name}", f"file:{gguf}")
    gguf.write_bytes(b"changed")
    assert model.files["model.gguf"].read_bytes() == gguf_file
    gguf.write_bytes(gguf_file)
    monkeypatch.chdir(gguf.parent)
    for text in (
        f"file:./{gguf.name}",
        f"file:{gguf.name}",
        f"file:~/{gguf.name}",
        f"file://{gguf.parent}/Tiny%20Model.gguf",
    ):
        found = pull(store, text, name="again", settings=settings(environ={"HOME": str(gguf.parent)}))
        assert found.digest == model.digest


@pytest.mark.requirement("R-M2")
def test_a_folder_of_several_models_needs_a_choice(
    store: ModelStore, settings: Settings, tmp_path: Path, gguf_file: bytes
) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("a-Q8_0.gguf", "b-Q8_0.gguf"):
        (folder / name).write_bytes(gguf_file)
    with pytest.raises(InvalidInput):
        pull(store, f"file:{folder}", settings=settings())
    assert pull(store, f"file:{folder}#b-Q8_0.gguf", settings=settings()).name == "b-q8_0:f32"
    for item in ("../x.gguf", "/etc/passwd", "c.gguf"):
        with pytest.raises((InvalidInput, BadModelFile)):
            pull(store, f"file:{folder}#{item}", settings=settings())


@pytest.mark.requirement("R-S1")
def test_what_is_no_model_is_refused(store: ModelStore, settings: Settings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "link.gguf").symlink_to("/etc/passwd")
    (tmp_path / "weights.bin").write_bytes(b"\x80")
    (tmp_path / "x.tar").write_bytes(tar_of({"a": b"b"}))
    refused = {
        "pipe.gguf": NotRegularFile,
        "link.gguf": NotRegularFile,
        "weights.bin": UnsafeModel,
        "x.tar": BadModelFile,
        "nothing": BadModelFile,
    }
    for name, kind in refused.items():
        with pytest.raises(kind):
            pull(store, f"file:{tmp_path / name}", settings=settings())
    with pytest.raises(InvalidInput):
        pull(store, "file:~root/x.gguf", settings=settings())
    assert store.models() == []


@pytest.mark.requirement("R-M2", "R-M6")
def test_a_model_goes_through_skopeos_layout_and_archive_unchanged(
    registry: Registry, store: ModelStore, other: ModelStore, settings: Settings, gguf: Path, tmp_path: Path
) -> None:
    model = store.import_path(gguf, ModelRef.parse("tiny:1"))
    push(store, "tiny:1", f"oci://{registry.host}/tiny:1", settings=settings())
    skopeo(f"docker://{registry.host}/tiny:1", f"oci:{tmp_path / 'layout'}:v1")
    skopeo(f"docker://{registry.host}/tiny:1", f"oci-archive:{tmp_path / 'tiny.tar'}:v1")
    for path in (tmp_path / "layout", tmp_path / "tiny.tar"):
        found = pull(other, f"file:{path}", settings=settings())
        assert found.digest == model.digest
        other.remove(ModelRef.parse(found.name))
    skopeo(f"oci:{tmp_path / 'layout'}:v1", f"docker://{registry.host}/by-skopeo:1")
    assert pull(other, f"oci://{registry.host}/by-skopeo:1", settings=settings()).digest == model.digest


@pytest.mark.requirement("R-M2")
def test_another_store_is_a_layout(store: ModelStore, other: ModelStore, settings: Settings, gguf: Path) -> None:
    model = store.import_path(gguf, ModelRef.parse("org/tiny:1"))
    store.import_path(gguf, ModelRef.parse("second:1"), source="file:other")
    with pytest.raises(InvalidInput) as caught:
        pull(other, f"file:{store.root}", settings=settings())
    assert caught.value.facts["choices"] == ["org/tiny:1", "second:1"]
    found = pull(other, f"file:{store.root}#org/tiny:1", settings=settings())
    assert (found.name, found.digest) == ("org/tiny:1", model.digest)
    with pytest.raises(SourceNotFound):
        pull(other, f"file:{store.root}#absent", settings=settings())


def test_a_layout_that_lacks_a_blob_or_lies_is_refused(
    store: ModelStore, other: ModelStore, settings: Settings, gguf: Path, tmp_path: Path
) -> None:
    model = store.import_path(gguf, ModelRef.parse("tiny:1"))
    for name, content in (("lacks", None), ("lies", b"{}")):
        copied = tmp_path / name
        shutil.copytree(store.root, copied)
        blob = copied / "blobs" / "sha256" / model.digest.hex
        blob.chmod(0o644)
        blob.unlink()
        if content:
            blob.write_bytes(content)
        with pytest.raises(Exception) as caught:
            pull(other, f"file:{copied}", settings=settings())
        assert getattr(caught.value, "code", "") in {"source_not_found", "digest_mismatch"}
    assert other.models() == []


@pytest.mark.requirement("R-M2")
def test_what_oras_pushed_is_pulled(
    registry: Registry,
    store: ModelStore,
    settings: Settings,
    gguf: Path,
    gguf_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from oras.client import OrasClient

    monkeypatch.chdir(gguf.parent)
    (gguf.parent / "README.md").write_text("# Card")
    client = OrasClient(insecure=True)
    client.push(target=f"{registry.host}/by-oras:1", files=[gguf.name, "README.md"], disable_path_validation=True)
    model = pull(store, f"oci://{registry.host}/by-oras:1", settings=settings())
    assert {name: path.read_bytes() for name, path in model.files.items()} == {
        "README.md": b"# Card",
        "model.gguf": gguf_file,
    }


PROGRAM = """
import sys
from pathlib import Path
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
pull(ModelStore(Path(sys.argv[1])), sys.argv[2], name="kit", settings=PullSettings(free_floor_bytes=0, environ={}))
"""


@pytest.mark.requirement("R-M4")
@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_while_unpacking_nothing_half_shows_and_the_next_pull_finishes(
    registry: Registry, store: ModelStore, folder_files: dict[str, bytes], name: str
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    layer = LayerOf(f"{KIT}model.v1.tar", tar_of({each: folder_files[each] for each in names}))
    put(registry, "killed", "1", [layer], LayerOf(f"{KIT}config.v1+json", json.dumps({}).encode()))
    command = [sys.executable, "-c", PROGRAM, str(store.root), f"oci://{registry.host}/killed:1"]
    environ = {**os.environ, "HOMELAB_FAILPOINTS": f"{name}=kill"}
    assert subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False).returncode == -9
    assert ModelStore(store.root).models() == []
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    model = ModelStore(store.root).resolve("kit")
    assert {path: Digest.of(file.read_bytes()) for path, file in model.files.items()} == {
        each: Digest.of(folder_files[each]) for each in names
    }
    assert store.prune(keep_partials_s=0).problems == ()
    assert {path.name for path in (store.root / "blobs" / "sha256").iterdir()} >= {f.name for f in model.files.values()}
    assert not store.blobs.has(Digest.of(layer.content))


@pytest.mark.requirement("R-M4")
def test_a_file_out_of_a_tar_is_mended_by_unpacking_it_again(
    registry: Registry, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    layer = LayerOf(f"{KIT}model.v1.tar", tar_of({each: folder_files[each] for each in names}))
    put(registry, "mended", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))
    model = pull(store, f"oci://{registry.host}/mended:1", settings=settings())
    path = model.files["model.safetensors"]
    path.chmod(0o644)
    path.write_bytes(b"X" + folder_files["model.safetensors"][1:])
    report = repair(ModelStore(store.root), model.name, settings=settings())
    assert report.files == ("model.safetensors",)
    assert path.read_bytes() == folder_files["model.safetensors"]
    assert not store.blobs.has(Digest.of(layer.content))
