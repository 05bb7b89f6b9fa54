"""The registry client against a real registry."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import SourceNotFound, SourceUnavailable
from homelab_llm.store.manifests import MANIFEST
from homelab_llm.store.oci import uploads
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.settings import PullSettings
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.registries import Registry

Client = Callable[..., RegistryClient]


def upload(client: RegistryClient, repository: str, content: bytes) -> Digest:
    digest = Digest.of(content)
    begun = uploads.start(client, repository)
    uploads.send_whole(client, begun, digest, lambda: [content], len(content))
    return digest


def tag(client: RegistryClient, repository: str, name: str, *contents: bytes) -> Digest:
    """A plain artifact of these blobs."""
    config = upload(client, repository, b"{}")
    layers = [
        {"mediaType": "application/octet-stream", "digest": str(upload(client, repository, c)), "size": len(c)}
        for c in contents
    ]
    described = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(config), "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}).encode()
    client.put_manifest(repository, name, manifest)
    return Digest.of(manifest)


def test_what_was_put_comes_back_checked(shared_registry: Registry, client: Client) -> None:
    opened = client(shared_registry.host)
    digest = tag(opened, "client/first", "v1", b"one layer")
    found = opened.manifest("client/first", "v1")
    assert (found.digest, found.media_type) == (digest, MANIFEST)
    assert opened.manifest("client/first", digest) == found
    assert opened.manifest_digest("client/first", "v1") == digest
    assert opened.blob_bytes("client/first", Digest.of(b"one layer")) == b"one layer"
    assert opened.has_blob("client/first", Digest.of(b"one layer"))
    assert not opened.has_blob("client/first", Digest.of(b"another"))


def test_a_blob_is_read_from_the_middle(shared_registry: Registry, client: Client) -> None:
    opened = client(shared_registry.host)
    digest = upload(opened, "client/ranges", b"0123456789")
    with opened.open_blob("client/ranges", digest, 3, 6) as body:
        assert (body.start, body.total_bytes, b"".join(body.chunks)) == (3, 10, b"345")


def test_all_tags_are_listed(shared_registry: Registry, client: Client) -> None:
    opened = client(shared_registry.host)
    for name in ("b", "a", "c"):
        tag(opened, "client/tags", name, b"layer")
    assert opened.tags("client/tags") == ["a", "b", "c"]


def test_what_is_not_there_is_not_found(shared_registry: Registry, client: Client) -> None:
    opened = client(shared_registry.host)
    with pytest.raises(SourceNotFound) as missing:
        opened.manifest("client/absent", "v1")
    assert missing.value.facts["source_code"] == "MANIFEST_UNKNOWN"
    assert opened.manifest_digest("client/absent", "v1") is None
    with pytest.raises(SourceNotFound):
        opened.tags("client/absent")


@pytest.mark.parametrize("page", [b'{"tags": 5}', b"[]", b"{}", b'{"tags": {"a": 1}}', b'{"tags": ["\\u001b[31m", 1]}'])
def test_a_list_of_tags_that_is_none_names_nothing(settings: Callable[..., PullSettings], page: bytes) -> None:
    with FakeHub(pages={"/v2/x/tags/list": (200, {}, page)}) as hub:
        with open_registry(hub.url.removeprefix("http://"), settings()) as opened:
            with contextlib.suppress(SourceUnavailable):
                assert opened.tags("x") in ([], ["a"])
