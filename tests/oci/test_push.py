"""Push: byte for byte, only what is missing, continued where it stopped, and never a tag without its blobs."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidInput, ModelDamaged, ModelNotFound, SourceDenied
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.oci.client import RegistryClient
from homelab_llm.store.push import JobProgress, PullSettings, PushReport, push
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.registry_front import FaultyRegistry, RegistryFaults, TokenAuth

Settings = Callable[..., PullSettings]
Client = Callable[..., RegistryClient]
LogIn = Callable[..., None]
Add = Callable[..., StoredModel]
FILES = {"model.gguf": b"the weights" * 50_000, "config.json": b"{}", "README.md": b"# card"}


def contents(store: ModelStore, model: StoredModel) -> dict[Digest, bytes]:
    """Every blob of the model by its digest."""
    manifest = json.loads(store.blobs.path(model.digest).read_bytes())
    digests = [Digest.parse(d["digest"]) for d in [manifest["config"], *manifest["layers"]]]
    return {digest: store.blobs.path(digest).read_bytes() for digest in digests}


def assert_whole(client: RegistryClient, store: ModelStore, model: StoredModel, repository: str, tag: str) -> None:
    """The registry has exactly our manifest under the tag, and every blob of it, right."""
    found = client.manifest(repository, tag)
    assert (found.digest, found.content) == (model.digest, store.blobs.path(model.digest).read_bytes())
    for digest, content in contents(store, model).items():
        assert client.blob_bytes(repository, digest, limit_bytes=64 << 20) == content


@pytest.mark.requirement("R-M7")
def test_what_is_pushed_is_there_byte_for_byte(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client, large: bytes
) -> None:
    model = add(store, "first:1", {**FILES, "big.gguf": large})
    seen: list[JobProgress] = []
    report = push(
        store, "first:1", f"oci://{shared_registry.host}/push/first:1", settings=settings(), progress=seen.append
    )
    assert_whole(client(shared_registry.host), store, model, "push/first", "1")
    assert (report.digest, report.sent_blobs, report.replaced) == (str(model.digest), 5, "")
    assert report.sent_bytes == report.total_bytes == sum(map(len, contents(store, model).values()))
    assert [seen[0].stage, seen[-1].stage] == ["resolving", "done"]
    assert seen[-1].done_bytes == report.total_bytes
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)


def test_a_second_push_moves_nothing(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings
) -> None:
    add(store, "again:1", FILES)
    with FaultyRegistry(shared_registry) as front:
        target = f"oci://{front.host}/push/again:1"
        push(store, "again:1", target, settings=settings())
        before = front.uploaded_bytes
        report = push(store, "again:1", target, settings=settings())
        assert (report.sent_bytes, report.present_blobs, front.uploaded_bytes) == (0, 4, before)


@pytest.mark.requirement("R-M7")
def test_another_repository_of_the_registry_gets_blobs_by_mounting(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client
) -> None:
    model = add(store, "mounted:1", FILES)
    push(store, "mounted:1", f"oci://{shared_registry.host}/push/here:1", settings=settings())
    report = push(store, "mounted:1", f"oci://{shared_registry.host}/push/there:1", settings=settings())
    assert (report.sent_bytes, report.mounted_blobs) == (0, 4)
    assert_whole(client(shared_registry.host), store, model, "push/there", "1")


def test_what_was_pulled_from_the_registry_is_mounted_from_there(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, disk: Path
) -> None:
    add(store, "origin:1", FILES)
    push(store, "origin:1", f"oci://{shared_registry.host}/push/origin:1", settings=settings())
    other = ModelStore(disk / "other")
    add(other, "copy:1", FILES, pulled_from=f"oci://{shared_registry.host}/push/origin:1")
    report = push(other, "copy:1", f"oci://{shared_registry.host}/push/copy:1", settings=settings())
    assert report.mounted_blobs == 4


def test_a_tag_that_is_there_is_moved_and_it_is_said(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client
) -> None:
    before = add(store, "moved:1", {"model.gguf": b"old"})
    now = add(store, "moved:2", {"model.gguf": b"new"})
    target = f"oci://{shared_registry.host}/push/moved"
    push(store, "moved:1", target, settings=settings())
    report = push(store, "moved:2", target, settings=settings())
    assert report.replaced == str(before.digest)
    assert client(shared_registry.host).manifest_digest("push/moved", "latest") == now.digest


@pytest.mark.requirement("R-M7")
def test_skopeo_takes_what_was_pushed(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, tmp_path: Path
) -> None:
    model = add(store, "judged:1", FILES)
    push(store, "judged:1", f"oci://{shared_registry.host}/push/judged:1", settings=settings())
    reference = f"docker://{shared_registry.host}/push/judged:1"
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", reference], capture_output=True, check=True
    )
    assert Digest.of(raw.stdout) == model.digest
    copy = tmp_path / "copy"
    subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", "--insecure-policy", reference, f"oci:{copy}:judged"],
        capture_output=True,
        check=True,
    )
    for digest, content in contents(store, model).items():
        assert (copy / "blobs" / "sha256" / digest.hex).read_bytes() == content


@pytest.mark.requirement("R-M7")
def test_oras_takes_what_was_pushed(shared_registry: Registry, store: ModelStore, add: Add, settings: Settings) -> None:
    from oras.provider import Registry as Oras

    model = add(store, "pulled:1", FILES)
    push(store, "pulled:1", f"oci://{shared_registry.host}/push/pulled:1", settings=settings())
    oras = Oras(insecure=True)
    container = oras.get_container(f"{shared_registry.host}/push/pulled:1")
    assert oras.get_manifest(container) == json.loads(store.blobs.path(model.digest).read_bytes())
    for digest, content in contents(store, model).items():
        assert oras.get_blob(container, str(digest)).content == content


def test_a_registry_with_tokens_takes_a_push_that_outlives_them(
    shared_registry: Registry,
    store: ModelStore,
    add: Add,
    settings: Settings,
    log_in: LogIn,
    large: bytes,
    client: Client,
) -> None:
    model = add(store, "guarded:1", {"model.gguf": large[::-1], "config.json": b"{ }"})
    with TokenAuth(shared_registry, anonymous="") as front:
        log_in(front.host)
        forgot: list[int] = []

        def forget(progress: JobProgress) -> None:
            if progress.done_bytes > 2_000_000 and not forgot:
                forgot.append(progress.done_bytes)
                front.forget()

        push(store, "guarded:1", f"oci://{front.host}/push/guarded:1", settings=settings(), progress=forget)
        assert forgot
    assert_whole(client(shared_registry.host), store, model, "push/guarded", "1")


@pytest.mark.parametrize("damage", ["flip", "small", "truncate", "gone"])
def test_a_damaged_blob_is_not_pushed(
    shared_registry: Registry,
    store: ModelStore,
    add: Add,
    settings: Settings,
    client: Client,
    large: bytes,
    damage: str,
) -> None:
    content = damage.encode() + (large if damage != "small" else b"small")
    model = add(store, f"damaged:{damage}", {"model.gguf": content})
    path = model.files["model.gguf"]
    path.chmod(0o644)
    if damage == "gone":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:-3] + b"\0\0\0")
    with pytest.raises(ModelDamaged) as damaged:
        push(store, f"damaged:{damage}", f"oci://{shared_registry.host}/push/damaged:{damage}", settings=settings())
    assert damaged.value.hint == f"mlxctl repair damaged:{damage}"
    opened = client(shared_registry.host)
    assert opened.manifest_digest("push/damaged", damage) is None
    assert not opened.has_blob("push/damaged", Digest.of(content))


def test_a_name_that_is_not_there_or_cannot_be_a_target_is_refused(
    store: ModelStore, add: Add, settings: Settings
) -> None:
    add(store, "here:1", FILES)
    with pytest.raises(ModelNotFound):
        push(store, "absent:1", "oci://127.0.0.1:1/x:1", settings=settings())
    with pytest.raises(SourceDenied):
        push(store, "here:1", "hf:org/name", settings=settings())
    for target in (
        "ollama:name",
        "https://host/x.gguf",
        f"oci://h/n@{Digest.of(b'x')}",
        "oci://h:1:2/n",
    ):
        with pytest.raises(InvalidInput):
            push(store, "here:1", target, settings=settings())


def test_a_registry_that_takes_no_chunks_gets_blobs_whole(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client, large: bytes
) -> None:
    model = add(store, "whole:1", {"model.gguf": b"whole" + large})
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(refuse_chunks=True)
        push(store, "whole:1", f"oci://{front.host}/push/whole:1", settings=settings())
    assert_whole(client(shared_registry.host), store, model, "push/whole", "1")


def test_chunks_are_as_large_as_the_registry_wants(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client, large: bytes
) -> None:
    model = add(store, "chunks:1", {"model.gguf": b"chunks" + large})
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(chunk_min_bytes=20 << 20)
        push(store, "chunks:1", f"oci://{front.host}/push/chunks:1", settings=settings())
        sizes = [seen.body_bytes for seen in front.seen if seen.method == "PATCH"]
    assert sizes == [20 << 20, len(large) + 6 - (20 << 20)]
    assert_whole(client(shared_registry.host), store, model, "push/chunks", "1")


@pytest.mark.parametrize("times", [1, 3])
def test_a_cut_upload_arrives_all_the_same(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client, large: bytes, times: int
) -> None:
    model = add(store, f"cut:{times}", {"model.gguf": b"cut" * times + large, "config.json": b"{  }"})
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(times=times, cut_upload_after_bytes=3_000_000)
        push(store, f"cut:{times}", f"oci://{front.host}/push/cut:{times}", settings=settings())
        assert front.faults.times == 0
    assert_whole(client(shared_registry.host), store, model, "push/cut", str(times))


def test_a_busy_registry_is_given_time(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client
) -> None:
    model = add(store, "busy:1", {"model.gguf": b"busy"})
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(times=4, status=429, retry_after="0", methods=("POST", "PATCH", "PUT"))
        push(store, "busy:1", f"oci://{front.host}/push/busy:1", settings=settings())
    assert_whole(client(shared_registry.host), store, model, "push/busy", "1")


def test_a_push_that_is_called_off_goes_on_where_it_was(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, client: Client, large: bytes
) -> None:
    content = b"called off" + large
    model = add(store, "off:1", {"model.gguf": content})
    stop = threading.Event()

    def call_off(progress: JobProgress) -> None:
        if progress.done_bytes > 9 << 20 and not stop.is_set():
            stop.set()
            raise KeyboardInterrupt

    with FaultyRegistry(shared_registry) as front:
        target = f"oci://{front.host}/push/off:1"
        front.faults = RegistryFaults(bytes_per_s=40 << 20)
        with pytest.raises(KeyboardInterrupt):
            push(store, "off:1", target, settings=settings(), progress=call_off)
        assert client(shared_registry.host).manifest_digest("push/off", "1") is None
        report = push(store, "off:1", target, settings=settings())
        assert 0 < report.sent_bytes < len(content) - (8 << 20)
        assert front.uploaded_bytes <= len(content) + 100_000
    assert_whole(client(shared_registry.host), store, model, "push/off", "1")


def test_two_pushes_of_one_model_send_each_blob_once(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings, large: bytes
) -> None:
    content = b"twice" + large
    add(store, "twice:1", {"model.gguf": content})
    reports: list[PushReport] = []
    failures: list[HomelabError] = []
    with FaultyRegistry(shared_registry) as front:

        def one() -> None:
            try:
                reports.append(push(store, "twice:1", f"oci://{front.host}/push/twice:1", settings=settings()))
            except HomelabError as error:
                failures.append(error)

        both = [threading.Thread(target=one) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join(60)
        assert failures == []
        assert sum(seen.body_bytes for seen in front.seen if seen.method == "PATCH") == len(content)


def test_without_an_account_the_hint_is_to_log_in(
    shared_registry: Registry, store: ModelStore, add: Add, settings: Settings
) -> None:
    add(store, "denied:1", FILES)
    with TokenAuth(shared_registry, anonymous="pull") as front, pytest.raises(SourceDenied) as denied:
        push(store, "denied:1", f"oci://{front.host}/push/denied:1", settings=settings())
    assert denied.value.hint == f"mlxctl login {front.host}"
