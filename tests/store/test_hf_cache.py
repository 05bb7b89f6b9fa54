"""Hugging Face caches as the hub's own library makes them: what is complete is found, what is not is passed over."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homelab_llm.core.errors import Conflict
from homelab_llm.core.names import ModelRef
from homelab_llm.store.hf_cache import CacheContents, read_cache
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

pytestmark = pytest.mark.requirement("R-F3")

FETCH = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:] or None)
"""
Fetch = Callable[..., None]


def weights(name: str, seed: int = 1) -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [512], "data_offsets": [0, 512]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes((seed + i) % 255 + 1 for i in range(512))


def config() -> bytes:
    return json.dumps(
        {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    ).encode()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    small = write_fake_model(tmp_path / "a.gguf", name="small").read_bytes()
    large = write_fake_model(tmp_path / "b.gguf", name="large", weights_bytes=4096).read_bytes()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    repos = {
        "Org/Folder": {"config.json": config(), "model.safetensors": weights("w"), "README.md": b"# Card"},
        "Org/Sharded": {
            "config.json": config(),
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-00001-of-00002.safetensors": weights("a"),
            "model-00002-of-00002.safetensors": weights("b"),
        },
        "Org/Two-GGUF": {"two-small.gguf": small, "sub/two-large.gguf": large, "README.md": b"# Card"},
    }
    with FakeHub(repos=repos) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def fetch(hub: FakeHub, cache: Path) -> Fetch:
    """Downloads with the hub's own library, in a process of its own."""

    def call(repo: str, *patterns: str) -> None:
        environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        done = subprocess.run(
            [sys.executable, "-c", FETCH, repo, *patterns], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return call


def reasons(contents: CacheContents) -> dict[str, str]:
    return {passed.repo_id: passed.reason for passed in contents.passed}


def test_a_snapshot_is_found_by_its_main_ref_and_imported_without_a_copy(
    fetch: Fetch, hub: FakeHub, cache: Path, tmp_path: Path
) -> None:
    fetch("Org/Folder")
    (found,) = read_cache(cache).models
    assert (str(found.ref), found.repo_id, found.commit) == (
        "org/folder:latest",
        "Org/Folder",
        hub.commit("Org/Folder"),
    )
    assert found.source == f"hf:Org/Folder@{found.commit}"
    store = ModelStore(tmp_path / "store")
    model = store.import_path(found.path, found.ref, source=found.source, copy=False)
    assert model.source == found.source
    cached = found.path / "model.safetensors"
    assert model.files["model.safetensors"].stat().st_ino == cached.stat().st_ino
    assert model.size_bytes == found.size_bytes


def test_each_gguf_file_is_a_model_named_by_its_quantization_or_its_file(fetch: Fetch, cache: Path) -> None:
    fetch("Org/Two-GGUF")
    names = {str(found.ref): found.source.partition("#")[2] for found in read_cache(cache).models}
    assert names == {"org/two-gguf:two-small": "two-small.gguf", "org/two-gguf:two-large": "sub/two-large.gguf"}


def test_one_gguf_file_fetched_alone_is_complete(fetch: Fetch, cache: Path, tmp_path: Path) -> None:
    fetch("Org/Two-GGUF", "two-small.gguf")
    contents = read_cache(cache)
    (found,) = contents.models
    assert str(found.ref) == "org/two-gguf:f32"
    assert contents.passed == []
    assert ModelStore(tmp_path / "s").import_path(found.path, found.ref, copy=False).facts.format == "gguf"


def test_a_snapshot_that_lacks_a_part_is_passed_over_with_the_name_of_the_part(fetch: Fetch, cache: Path) -> None:
    fetch("Org/Sharded", "config.json", "*.index.json", "model-00001*")
    contents = read_cache(cache)
    assert contents.models == []
    assert "model-00002-of-00002.safetensors was not fetched" in reasons(contents)["Org/Sharded"]
    for tree in cache.glob("models--*/trees/*"):  # as an older version of the library leaves it
        tree.unlink()
    assert "model-00002-of-00002.safetensors" in reasons(read_cache(cache))["Org/Sharded"]


def test_a_lost_or_shortened_blob_and_an_unfinished_download_are_seen(fetch: Fetch, cache: Path) -> None:
    fetch("Org/Folder")
    (snapshot,) = cache.glob("models--*/snapshots/*")
    blob = (snapshot / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    assert "model.safetensors has" in reasons(read_cache(cache))["Org/Folder"]
    blob.unlink()
    assert "the content of model.safetensors is missing" in reasons(read_cache(cache))["Org/Folder"]
    blob.write_bytes(content)
    assert len(read_cache(cache).models) == 1
    (blob.parent / "abc.12345678.incomplete").write_bytes(b"x")
    assert len(read_cache(cache).models) == 1, "the file list says that everything is there"
    (cache / "models--Org--Folder" / "trees" / f"{snapshot.name}.json").unlink()
    assert "unfinished" in reasons(read_cache(cache))["Org/Folder"]


def test_when_the_newest_revision_is_a_part_the_newest_whole_one_is_taken(
    fetch: Fetch, hub: FakeHub, cache: Path
) -> None:
    fetch("Org/Folder")
    old = hub.commit("Org/Folder")
    hub.repos["Org/Folder"]["model.safetensors"] = weights("w", seed=9)
    fetch("Org/Folder", "config.json")
    new = hub.commit("Org/Folder")
    (found,) = read_cache(cache).models
    assert found.commit == old
    assert found.older.startswith(f"revision {new[:8]}: ")
    fetch("Org/Folder")
    (found,) = read_cache(cache).models
    assert (found.commit, found.older) == (new, "")


def test_what_is_no_model_is_passed_over_and_the_rest_is_found(fetch: Fetch, cache: Path, tmp_path: Path) -> None:
    fetch("Org/Folder")
    (cache / "datasets--org--data" / "snapshots").mkdir(parents=True)
    (cache / "models--org--empty").mkdir()
    evil = cache / "models--org--evil" / "snapshots" / ("a" * 40)
    evil.mkdir(parents=True)
    (evil / "model.gguf").symlink_to(tmp_path / "a.gguf")
    loop = cache / "models--org--loop" / "snapshots" / ("b" * 40)
    loop.mkdir(parents=True)
    (loop / "model.gguf").symlink_to("model.gguf")
    pickled = cache / "models--org--pickled" / "snapshots" / ("c" * 40)
    pickled.mkdir(parents=True)
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    contents = read_cache(cache)
    assert [found.repo_id for found in contents.models] == ["Org/Folder"]
    told = reasons(contents)
    assert set(told) == {"org/empty", "org/evil", "org/loop", "org/pickled"}
    assert "link out of the cache" in told["org/evil"]
    assert "pickle" in told["org/pickled"]


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_cache(tmp_path / "nowhere") == CacheContents()


def test_bytes_that_can_neither_be_linked_nor_cloned_are_refused_unless_copies_are_allowed(tmp_path: Path) -> None:
    """A plain file outside of a cache is never linked, as one of another file system cannot be."""
    store = ModelStore(tmp_path / "store")
    path = write_fake_model(tmp_path / "plain.gguf")
    if _clones(tmp_path):
        assert store.import_path(path, ModelRef.parse("x"), copy=False).name == "x:latest"
        return
    with pytest.raises(Conflict):
        store.import_path(path, ModelRef.parse("x"), copy=False)
    assert store.models() == []
    assert store.import_path(path, ModelRef.parse("x")).name == "x:latest"


def _clones(folder: Path) -> bool:
    """Whether this file system clones, where nothing has to be copied."""
    if sys.platform == "darwin":
        return True
    done = subprocess.run(
        ["cp", "--reflink=always", str(folder / "plain.gguf"), str(folder / "clone")], capture_output=True, check=False
    )
    return done.returncode == 0
