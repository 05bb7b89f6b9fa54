"""Pack: the same bytes every time, read by ordinary tools, nothing left of what failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import AlreadyExists, InvalidInput, ModelDamaged
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import arm
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pack import FAILPOINTS, pack
from homelab_llm.store.progress import JobProgress

Add = Callable[..., StoredModel]
FILES = {"model.gguf": b"the weights" * 50_000, "config.json": b"{}"}
PROGRAM = """
import sys
from pathlib import Path
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pack import pack
pack(ModelStore(Path(sys.argv[1])), "packed:1", Path(sys.argv[2]))
"""


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    arm("")


@pytest.fixture
def model(store: ModelStore, add: Add) -> StoredModel:
    return add(store, "packed:1", FILES)


@pytest.mark.requirement("R-M7")
@pytest.mark.parametrize(("output", "transport"), [("packed.tar", "oci-archive"), ("packed", "oci")])
def test_skopeo_reads_what_was_packed(
    store: ModelStore, model: StoredModel, tmp_path: Path, output: str, transport: str
) -> None:
    report = pack(store, "packed:1", tmp_path / output)
    assert (report.model, report.digest) == ("packed:1", str(model.digest))
    source, target = f"{transport}:{tmp_path / output}:packed:1", tmp_path / "copy"
    subprocess.run(["skopeo", "copy", "--insecure-policy", source, f"dir:{target}"], capture_output=True, check=True)
    assert Digest.of((target / "manifest.json").read_bytes()) == model.digest
    for path in model.files.values():
        assert (target / path.name).read_bytes() == path.read_bytes()


def test_the_same_model_gives_the_same_bytes(
    store: ModelStore, model: StoredModel, add: Add, tmp_path: Path, disk: Path
) -> None:
    pack(store, "packed:1", tmp_path / "a.tar")
    other = ModelStore(disk / "other")
    add(other, "packed:1", FILES)
    pack(other, "packed:1", tmp_path / "b.tar")
    assert Digest.of_file(tmp_path / "a.tar") == Digest.of_file(tmp_path / "b.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}


def test_the_folder_is_a_layout_with_one_model(store: ModelStore, model: StoredModel, tmp_path: Path) -> None:
    seen: list[JobProgress] = []
    pack(store, "packed:1", tmp_path / "folder", progress=seen.append)
    (entry,) = json.loads((tmp_path / "folder" / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == str(model.digest)
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "packed:1"}
    blobs = list((tmp_path / "folder" / "blobs" / "sha256").iterdir())
    assert {Digest.of_file(path).hex for path in blobs} == {path.name for path in blobs}
    assert seen[-1].stage == "done"
    assert seen[-1].done_bytes == seen[-1].total_bytes


@pytest.mark.parametrize("output", ["packed.tar", "packed"])
def test_a_damaged_model_leaves_nothing(store: ModelStore, model: StoredModel, tmp_path: Path, output: str) -> None:
    path = model.files["model.gguf"]
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(ModelDamaged) as damaged:
        pack(store, "packed:1", tmp_path / output)
    assert damaged.value.facts["files"] == ["model.gguf"]
    assert list(tmp_path.iterdir()) == []


def test_what_exists_stays_as_it_is(store: ModelStore, model: StoredModel, tmp_path: Path) -> None:
    (tmp_path / "mine.tar").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        pack(store, "packed:1", tmp_path / "mine.tar")
    with pytest.raises(InvalidInput):
        pack(store, "packed:1", tmp_path / "absent" / "x.tar")
    assert (tmp_path / "mine.tar").read_bytes() == b"mine"


def test_called_off_nothing_is_left(store: ModelStore, model: StoredModel, tmp_path: Path) -> None:
    def call_off(progress: JobProgress) -> None:
        if progress.stage == "storing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(store, "packed:1", tmp_path / "x.tar", progress=call_off)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("output", ["packed.tar", "packed"])
@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_anywhere_the_output_is_whole_or_absent_and_the_next_call_makes_it(
    store: ModelStore, model: StoredModel, tmp_path: Path, output: str, name: str
) -> None:
    target = tmp_path / "out" / output
    target.parent.mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(store.root), str(target)],
        env={**os.environ, "HOMELAB_FAILPOINTS": f"{name}=kill"},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    assert target.exists() == (name == "pack.published")
    if not target.exists():
        pack(store, "packed:1", target)
    pack(store, "packed:1", tmp_path / f"again-{output}")
    digests = [_digest(path) for path in (target, tmp_path / f"again-{output}")]
    assert digests[0] == digests[1]
    if name != "pack.published":
        assert list(target.parent.iterdir()) == [target]


def _digest(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {"" if path.is_file() else file.relative_to(path).as_posix(): str(Digest.of_file(file)) for file in files}
