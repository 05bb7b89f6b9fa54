"""Large files of the hub out of a Xet storage: the real library against a storage on disk of its own kind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import hf_xet
import pytest

from homelab_llm.core.http import HttpClient
from homelab_llm.core.urls import UrlPolicy, origin_of
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull_from
from homelab_llm.store.sources.huggingface import HuggingFaceSource
from homelab_llm.store.sources.xet import XetFile, XetStreams, xet_available
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

pytestmark = pytest.mark.requirement("R-M2")

REPO = "org/large"
SETTINGS = PullSettings(free_floor_bytes=0, backoff_s=0.001)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_fake_model(tmp_path / "large.gguf", weights_bytes=3 << 20).read_bytes()


@pytest.fixture
def hub(content: bytes, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that keeps the file in a Xet storage below ``tmp_path``, and over HTTPS too."""
    storage = tmp_path / "xet"
    storage.mkdir()
    file = tmp_path / "to upload.gguf"
    file.write_bytes(content)
    with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{storage}") as commit:
        upload = commit.start_upload_file(str(file), sha256=hf_xet.COMPUTE_SHA256)
    stored = upload.result().xet_info.hash
    with FakeHub(repos={REPO: {"large.gguf": content}}, xet={"large.gguf": stored}) as running:
        route = f"/api/models/{REPO}/xet-read-token/{running.commit(REPO)}"
        token = {"casUrl": f"local://{storage}", "accessToken": "t", "exp": int(time.time()) + 600}
        running.pages[route] = (200, {"content-type": "application/json"}, json.dumps(token).encode())
        yield running


def source(hub: FakeHub, schemes: tuple[str, ...] = ("local",), least_bytes: int = 0) -> HuggingFaceSource:
    client = HttpClient(UrlPolicy().with_trusted([origin_of(hub.url)]))
    return HuggingFaceSource(client, hub.url, xet_schemes=schemes, xet_least_bytes=least_bytes)


def pulled(hub: FakeHub, store: ModelStore, from_: HuggingFaceSource) -> bytes:
    model = pull_from(from_, store, f"hf:{REPO}", ref=None, settings=SETTINGS)
    from_.close()
    (path,) = model.files.values()
    return path.read_bytes()


def test_a_large_file_comes_out_of_the_xet_storage(hub: FakeHub, content: bytes, tmp_path: Path) -> None:
    assert pulled(hub, ModelStore(tmp_path / "store"), source(hub)) == content
    assert hub.file_bytes_sent == 0


def test_small_files_and_a_switched_off_library_go_over_https(hub: FakeHub, content: bytes, tmp_path: Path) -> None:
    assert pulled(hub, ModelStore(tmp_path / "a"), source(hub, least_bytes=64 << 20)) == content
    assert pulled(hub, ModelStore(tmp_path / "b"), source(hub, schemes=())) == content
    assert hub.file_bytes_sent >= 2 * len(content)
    assert xet_available({})
    assert not xet_available({"HF_HUB_DISABLE_XET": "1"})


@pytest.mark.parametrize("spoil", ["token", "address", "storage"])
def test_where_the_storage_fails_the_file_comes_over_https(
    hub: FakeHub, content: bytes, tmp_path: Path, spoil: str
) -> None:
    route = next(iter(hub.pages))
    if spoil == "token":
        hub.pages[route] = (403, {}, b"")
    elif spoil == "address":
        told = {"casUrl": "http://127.0.0.1:1", "accessToken": "t", "exp": 1}
        hub.pages[route] = (200, {"content-type": "application/json"}, json.dumps(told).encode())
    else:
        hub.xet["large.gguf"] = "0" * 64
    assert pulled(hub, ModelStore(tmp_path / "store"), source(hub)) == content
    assert hub.file_bytes_sent >= len(content)


def test_parts_and_beginnings_are_those_asked_for(hub: FakeHub, content: bytes) -> None:
    asked = source(hub)
    file = XetFile(REPO, hub.commit(REPO), hub.xet["large.gguf"], len(content))
    streams = XetStreams(asked, ("local",))
    for start, stop in ((0, None), (1_000_001, None), (5, 70_000), (len(content) - 1, None)):
        assert b"".join(streams.chunks(file, start, stop)) == content[start:stop]
    asked.close()
