"""Pull: complete or not there at all, continued where it stopped, never wrong bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    BadModelFile,
    DigestMismatch,
    DiskFull,
    HomelabError,
    InvalidInput,
    InvalidName,
    ModelNotFound,
    SourceUnavailable,
    UnsafeModel,
)
from homelab_llm.core.failpoints import arm
from homelab_llm.store.layout import FAILPOINTS as STORE_FAILPOINTS
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import Progress
from homelab_llm.store.pull import FAILPOINTS, JobProgress, PullSettings, pull
from homelab_llm.testing.hub import FakeHub, Faults, Request

Settings = Callable[..., PullSettings]
FOLDER_PATHS = ["LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
# What a pull never passes: import, removal and views.
PASSED = [
    name
    for name in STORE_FAILPOINTS
    if not name.startswith(
        ("store.import", "store.remove", "store.gc", "store.prune", "store.view", "store.blob.checkpoint")
    )
]
# Passed once for every file; the sixth file is the weights.
PER_FILE = ("pull.file", "pull.chunk", "store.blob", "store.partial")

PROGRAM = """
import sys
from pathlib import Path
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
settings = PullSettings(hf_endpoint=sys.argv[2], free_floor_bytes=0, environ={}, backoff_s=0.001)
pull(ModelStore(Path(sys.argv[1])), "hf:Org/Folder", name="folder", settings=settings)
"""


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    arm("")


def weights_kept_bytes(store: ModelStore, content: bytes) -> int:
    """Bytes of the weights that are on disk, as a blob or as a part of it."""
    if store.blobs.has(Digest.of(content)):
        return len(content)
    return store.blobs.kept_bytes(str(Digest.of(content)))


@pytest.mark.requirement("R-M2", "R-M4", "R-M9")
def test_a_snapshot_arrives_whole_and_checked(
    hub: FakeHub, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    model = pull(store, "hf:Org/Folder", settings=settings())
    assert model.name == "org/folder:latest"
    assert {path: file.read_bytes() for path, file in model.files.items()} == {
        path: folder_files[path] for path in FOLDER_PATHS
    }
    assert model.source == model.pulled_from == f"hf:Org/Folder@{hub.commit('Org/Folder')}"
    assert (model.facts.architecture, model.facts.licence) == ("llama", "apache-2.0")


def test_a_gguf_file_is_named_after_its_repository_and_quantization(store: ModelStore, settings: Settings) -> None:
    assert pull(store, "hf:Org/Tiny-GGUF#tiny-F32.gguf", settings=settings()).name == "org/tiny-gguf:f32"
    assert pull(store, "hf:Org/Tiny-GGUF", name="Mine:1", settings=settings()).name == "mine:1"


@pytest.mark.requirement("R-M3")
def test_a_second_pull_fetches_nothing(hub: FakeHub, store: ModelStore, settings: Settings) -> None:
    first = pull(store, "hf:Org/Folder", settings=settings())
    sent = hub.file_bytes_sent
    assert pull(store, "hf:Org/Folder", settings=settings()).digest == first.digest
    assert hub.file_bytes_sent - sent < 10_000  # small files have no SHA-256 at the hub and may come again


@pytest.mark.requirement("R-M2")
def test_large_files_come_from_another_host_without_the_token(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    hub.redirect, hub.token = True, "hf_abcdefghijklmnop"
    pull(store, "hf:Org/Folder", settings=settings(environ={"HF_TOKEN": hub.token}, allow_private_hosts=True))
    elsewhere = [request for request in hub.requests if request.host.startswith("localhost")]
    assert elsewhere
    assert all(request.authorization == "" for request in elsewhere)


@pytest.mark.requirement("R-S1")
def test_a_hub_that_redirects_to_a_private_machine_is_refused(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    hub.redirect = True
    with pytest.raises(HomelabError) as caught:
        pull(store, "hf:Org/Folder", settings=settings())
    assert caught.value.code == "source_denied"
    assert store.models() == []


@pytest.mark.requirement("R-M3")
def test_progress_counts_up_to_the_total_and_ends(
    store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    seen: list[JobProgress] = []
    pull(store, "hf:Org/Folder", settings=settings(), progress=seen.append)
    total = sum(len(folder_files[path]) for path in FOLDER_PATHS)
    assert [seen[0].stage, seen[-1].stage] == ["resolving", "done"]
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (total, total)
    done = [report.done_bytes for report in seen]
    assert done == sorted(done)


def test_speed_and_time_left_are_measured() -> None:
    seen: list[JobProgress] = []
    now = [0.0]
    progress = Progress(seen.append, lambda: now[0])
    progress.total([1000, None])
    assert seen == []
    progress.total([1000])
    progress.begin("f", 100)
    for second in range(1, 5):
        now[0] = float(second)
        progress.bytes(100 + 100 * second)
    assert (seen[-1].bytes_per_s, seen[-1].eta_s, seen[-1].done_bytes) == (100.0, 5.0, 500)


@pytest.mark.requirement("R-M3", "R-M4")
@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}=kill" for name in (*FAILPOINTS, *PASSED)),
        *(f"{name}=kill@6" for name in (*FAILPOINTS, *PASSED) if name.startswith(PER_FILE)),
        "pull.chunk=kill@8",
    ],
)
def test_killed_at_any_point_nothing_half_shows_and_the_next_pull_continues(
    hub: FakeHub, store: ModelStore, settings: Settings, folder_files: dict[str, bytes], name: str
) -> None:
    environ = {**os.environ, "HOMELAB_FAILPOINTS": name}
    command = [sys.executable, "-c", PROGRAM, str(store.root), hub.url]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == -9, (name, done.stderr[-500:])

    weights = folder_files["model.safetensors"]
    for model in store.models():  # only after the last step, and then whole
        assert sorted(model.files) == FOLDER_PATHS
    kept = weights_kept_bytes(store, weights)
    hub.requests.clear()
    model = pull(store, "hf:Org/Folder", name="folder", settings=settings())
    assert {path: file.read_bytes() for path, file in model.files.items()} == {
        path: folder_files[path] for path in FOLDER_PATHS
    }
    # What the killed process had asked for may still be leaving the hub, so requests are looked at, not bytes.
    asked = [request.range for request in hub.requests if request.path.endswith("model.safetensors")]
    expected = [] if kept == len(weights) else [f"bytes={kept}-{len(weights) - 1}" if kept else ""]
    assert asked == expected
    store.prune(keep_partials_s=0)
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == len(FOLDER_PATHS) + 2
    assert list((store.root / "tmp").glob("*.part")) == []
    assert [model.name for model in store.models()] == ["folder:latest"]


@pytest.mark.requirement("R-M3")
def test_an_interrupted_pull_continues(
    hub: FakeHub, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    def interrupt(report: JobProgress) -> None:
        if report.file == "model.safetensors" and report.done_bytes > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(store, "hf:Org/Folder", settings=settings(rate_limit_bytes_per_s=2_000_000), progress=interrupt)
    assert store.models() == []
    kept = weights_kept_bytes(store, folder_files["model.safetensors"])
    assert kept > 900_000
    hub.file_bytes_sent = 0
    pull(store, "hf:Org/Folder", settings=settings())
    assert hub.file_bytes_sent == len(folder_files["model.safetensors"]) - kept


@pytest.mark.requirement("R-M3")
def test_dropped_connections_are_continued_without_fetching_anything_twice(
    hub: FakeHub, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    hub.faults = Faults(times=12, drop_after_bytes=200_000)
    pull(store, "hf:Org/Folder", settings=settings())
    assert hub.faults.times == 0
    assert hub.file_bytes_sent == sum(len(folder_files[path]) for path in FOLDER_PATHS)
    assert {request.range for request in hub.requests} >= {"bytes=200000-", "bytes=400000-"}


def test_a_source_that_brings_nothing_is_given_up_and_what_came_is_kept(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    hub.faults = Faults(drop_after_bytes=0)
    with pytest.raises(SourceUnavailable):
        pull(store, "hf:Org/Folder", settings=settings())
    hub.faults = Faults(times=0)
    assert pull(store, "hf:Org/Folder", settings=settings()).files


def test_a_server_without_ranges_starts_over_and_ends_right(
    hub: FakeHub, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    faults = iter([Faults(drop_after_bytes=300_000), Faults(ignore_range=True)])
    hub.on_file = lambda _: next(faults)
    seen: list[JobProgress] = []
    model = pull(store, "hf:Org/Tiny-GGUF", settings=settings(backoff_s=0.3), progress=seen.append)
    assert model.files["model.gguf"].read_bytes() == gguf_file
    assert "retrying" in {report.stage for report in seen}
    assert [request.range for request in hub.requests if request.path.endswith(".gguf")] == ["", "bytes=300000-"]


def test_content_that_changes_in_the_middle_starts_over(
    hub: FakeHub, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    address = f"{hub.url}/Org/Tiny-GGUF/resolve/main/tiny-F32.gguf"
    other = gguf_file[:-64] + bytes(range(1, 65))

    def change(request: Request) -> Faults | None:
        if request.range == "bytes=300000-":
            hub.repos["Org/Tiny-GGUF"]["tiny-F32.gguf"] = other
        return None if request.range else Faults(drop_after_bytes=300_000 if hub.file_bytes_sent < 300_000 else None)

    hub.on_file = change
    model = pull(store, address, settings=settings(allow_private_hosts=True))
    assert model.files["model.gguf"].read_bytes() == other


@pytest.mark.requirement("R-M4")
def test_bytes_other_than_promised_are_discarded(hub: FakeHub, store: ModelStore, settings: Settings) -> None:
    weights = hub.repos["Org/Folder"]["model.safetensors"]
    address = f"/Org/Folder/resolve/{hub.commit('Org/Folder')}/model.safetensors"
    hub.pages[address] = (200, {}, weights[:-1] + b"\xff")
    with pytest.raises(DigestMismatch):
        pull(store, "hf:Org/Folder", settings=settings())
    assert store.prune(keep_partials_s=0).blobs == len(FOLDER_PATHS) - 1
    config = f"/Org/Folder/resolve/{hub.commit('Org/Folder')}/config.json"
    hub.pages = {config: (200, {}, hub.repos["Org/Folder"]["config.json"].replace(b"llama", b"lluma"))}
    with pytest.raises(DigestMismatch, match="hub promised"):
        pull(store, "hf:Org/Folder", settings=settings())
    hub.pages = {}
    assert store.models() == []
    assert pull(store, "hf:Org/Folder", settings=settings()).facts.architecture == "llama"


@pytest.mark.requirement("R-M4", "R-S1")
def test_a_model_that_wants_code_is_refused_before_its_weights_are_fetched(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    hub.repos["Org/Folder"]["tokenizer_config.json"] = b'{"auto_map": {"AutoTokenizer": ["t.T", null]}}'
    with pytest.raises(UnsafeModel):
        pull(store, "hf:Org/Folder", settings=settings())
    assert not any(request.path.endswith(".safetensors") for request in hub.requests)


@pytest.mark.requirement("R-M4", "R-S1")
def test_a_model_that_contradicts_itself_or_wants_code_is_not_kept(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    hub.repos["Org/Tiny-GGUF"]["tiny-F32.gguf"] += b"more"
    with pytest.raises(BadModelFile):
        pull(store, "hf:Org/Tiny-GGUF", settings=settings())
    hub.repos["Org/Folder"]["config.json"] = b'{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}'
    with pytest.raises(UnsafeModel):
        pull(store, "hf:Org/Folder", settings=settings())
    hub.repos["Org/Pickle"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(UnsafeModel):
        pull(store, "hf:Org/Pickle", settings=settings())
    assert store.models() == []
    assert store.prune().blobs > 0
    assert list((store.root / "blobs" / "sha256").iterdir()) == []


@pytest.mark.requirement("R-M5")
def test_too_little_room_is_said_before_anything_is_fetched(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    floor = shutil.disk_usage(store.root.parent).free
    with pytest.raises(DiskFull) as caught:
        pull(store, "hf:Org/Folder", settings=settings(free_floor_bytes=floor))
    assert caught.value.facts["needed_bytes"] == sum(len(hub.repos["Org/Folder"][path]) for path in FOLDER_PATHS)
    assert hub.file_bytes_sent == 0


@pytest.mark.usefixtures("disarmed")
@pytest.mark.requirement("R-M5")
def test_a_disk_that_fills_up_is_typed_and_the_pull_continues_later(
    hub: FakeHub, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    arm("store.blob.chunk=enospc@7")
    with pytest.raises(DiskFull):
        pull(store, "hf:Org/Folder", settings=settings())
    assert store.models() == []
    kept = weights_kept_bytes(store, folder_files["model.safetensors"])
    hub.file_bytes_sent = 0
    pull(store, "hf:Org/Folder", settings=settings())
    assert 0 < kept <= sum(len(folder_files[path]) for path in FOLDER_PATHS) - hub.file_bytes_sent


@pytest.mark.requirement("R-M3")
def test_equal_pulls_at_the_same_time_fetch_once(
    hub: FakeHub, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    digests: list[Digest] = []

    def run() -> None:
        digests.append(pull(ModelStore(store.root), "hf:Org/Tiny-GGUF", name="one", settings=settings()).digest)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 6
    assert len(set(digests)) == 1
    assert hub.file_bytes_sent == len(gguf_file)


def test_a_web_address_is_pulled_with_and_without_a_digest(
    hub: FakeHub, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    address = f"{hub.url}/Org/Tiny-GGUF/resolve/main/tiny-F32.gguf"
    allowed = settings(allow_private_hosts=True)
    assert pull(store, address, settings=allowed).name == "tiny-f32:latest"
    assert pull(store, f"{address}#sha256={Digest.of(gguf_file).hex}", name="b", settings=allowed).name == "b:latest"
    with pytest.raises(DigestMismatch):
        pull(store, f"{address}#sha256={'0' * 64}", settings=allowed)
    for wrong in (f"{address}#sha256=ABC", f"{hub.url}/Org/Folder/resolve/main/config.json"):
        with pytest.raises(InvalidInput):
            pull(store, wrong, settings=allowed)


@pytest.mark.requirement("R-S1")
def test_a_private_web_address_needs_the_setting(hub: FakeHub, store: ModelStore, settings: Settings) -> None:
    with pytest.raises(HomelabError) as caught:
        pull(store, f"{hub.url}/Org/Tiny-GGUF/resolve/main/tiny-F32.gguf", settings=settings())
    assert caught.value.code == "source_denied"
    assert "allow_private_hosts" in caught.value.hint
    assert hub.requests == []


def test_an_unknown_name_a_bad_name_and_an_unknown_kind_of_address_are_refused_before_any_request(
    hub: FakeHub, store: ModelStore, settings: Settings
) -> None:
    for reference, name, error in (
        ("no-such-model", None, ModelNotFound),
        ("hf:Org/Folder", "../x", InvalidName),
        ("ftp://host/x.gguf", None, InvalidInput),
    ):
        with pytest.raises(error):
            pull(store, reference, name=name, settings=settings())
    assert hub.requests == []
    assert not store.root.exists()


def test_the_hub_as_a_program_serves_a_folder(tmp_path: Path, gguf_file: bytes, store: ModelStore) -> None:
    folder = tmp_path / "hub" / "Org" / "Name"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(gguf_file)
    command = [sys.executable, "-m", "homelab_llm.testing.hub", str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            url = program.stdout.readline().strip()
            settings = PullSettings(hf_endpoint=url, free_floor_bytes=0, environ={})
            assert pull(store, "hf:Org/Name", settings=settings).files["model.gguf"].read_bytes() == gguf_file
        finally:
            program.terminate()
