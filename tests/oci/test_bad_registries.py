"""Registries that answer badly, by accident or on purpose: a clear error each, within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.http import HttpClient, Reply
from homelab_llm.store.manifests import MANIFEST
from homelab_llm.store.oci import uploads
from homelab_llm.store.oci.client import RegistryClient
from homelab_llm.store.oci.hosts import registry_host
from homelab_llm.store.oci.replies import refusal
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.registry_front import FaultyRegistry, Front, Page, RegistryFaults, TokenAuth

Client = Callable[..., RegistryClient]
OTHER = str(Digest.of(b"another"))
JSON = {"content-type": MANIFEST}


@pytest.fixture
def front(shared_registry: Registry) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(shared_registry) as running:
        yield running


@pytest.mark.requirement("R-M1")
@pytest.mark.parametrize(
    ("page", "code"),
    [
        ((200, JSON, b" " * ((4 << 20) + 1)), "bad_manifest"),
        ((200, {**JSON, "docker-content-digest": OTHER}, b"{}"), "digest_mismatch"),
        ((302, {"location": "/v2/bad/manifests/v1"}, b""), "source_unavailable"),
        ((302, {"location": "https://10.0.0.1/x"}, b""), "source_denied"),
        ((302, {"location": "file:///etc/passwd"}, b""), "source_denied"),
        ((418, {}, b"\xff\x00"), "source_denied"),
        ((500, {}, b"{"), "source_unavailable"),
        ((404, {}, b'{"errors":[]}'), "source_not_found"),
        ((403, {}, b'{"errors":"no"}'), "source_denied"),
    ],
)
def test_a_bad_manifest_is_a_clear_error(front: FaultyRegistry, client: Client, page: Page, code: str) -> None:
    front.pages["/v2/bad/manifests/v1"] = page
    with pytest.raises(HomelabError) as error:
        client(front.host).manifest("bad", "v1")
    assert error.value.code == code


def test_another_manifest_than_the_digest_names_is_refused(front: FaultyRegistry, client: Client) -> None:
    front.pages[f"/v2/bad/manifests/{OTHER}"] = (200, JSON, b"{}")
    with pytest.raises(HomelabError) as error:
        client(front.host).manifest("bad", Digest.parse(OTHER))
    assert error.value.code == "digest_mismatch"


def test_another_blob_than_the_digest_names_is_refused(front: FaultyRegistry, client: Client) -> None:
    opened = client(front.host)
    digest = Digest.of(b"content")
    uploads.send_whole(opened, uploads.start(opened, "bad/blob"), digest, lambda: [b"content"], 7)
    front.faults = RegistryFaults(wrong_bytes=True)
    with pytest.raises(HomelabError) as error:
        opened.blob_bytes("bad/blob", digest)
    assert error.value.code == "digest_mismatch"


def test_pages_of_tags_are_the_registrys_own_and_end(
    front: FaultyRegistry, shared_registry: Registry, client: Client
) -> None:
    page = json.dumps({"name": "bad", "tags": ["a"] * 3000}).encode()
    with Front(shared_registry) as thief:
        front.pages["/v2/bad/tags/list"] = (200, {"link": f'<{thief.url}/v2/>; rel="next"'}, page)
        with pytest.raises(HomelabError) as error:
            client(front.host).tags("bad")
        assert (error.value.code, thief.seen) == ("source_denied", [])
    front.pages["/v2/bad/tags/list"] = (200, {"link": '</v2/bad/tags/list?last=a>; rel="next"'}, page)
    assert len(client(front.host).tags("bad")) == 10_000
    front.pages["/v2/bad/tags/list"] = (200, {}, b'{"tags":[1,null,"v1"]}')
    assert client(front.host).tags("bad") == ["v1"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token":5}',
        b'{"token":"a b"}',
        b'{"token":"a\\nb"}',
        b'{"token":"' + b"x" * 40_000 + b'"}',
    ],
)
def test_a_token_that_cannot_be_one_is_not_shown(front: FaultyRegistry, client: Client, body: bytes) -> None:
    front.pages["/token"] = (200, {}, body)
    front.faults = RegistryFaults(challenge=f'Bearer realm="{front.url}/token",service="x"')
    with pytest.raises(HomelabError) as error:
        client(front.host).has_blob("bad", Digest.of(b"x"))
    assert error.value.code == "source_unavailable"
    assert all(seen.authorization == "" for seen in front.seen)


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "http://169.254.169.254/", "https://u:p@h/", "x" * 9000])
def test_a_realm_that_is_no_place_for_tokens_is_refused(front: FaultyRegistry, client: Client, realm: str) -> None:
    front.faults = RegistryFaults(challenge=f'Bearer realm="{realm}",service="x"')
    with pytest.raises(HomelabError) as error:
        client(front.host).has_blob("bad", Digest.of(b"x"))
    assert error.value.code == "source_denied"


def test_a_token_that_is_never_good_enough_is_given_up(shared_registry: Registry, client: Client) -> None:
    with TokenAuth(shared_registry, anonymous="") as front:
        with pytest.raises(HomelabError) as error:
            client(front.host).has_blob("bad", Digest.of(b"x"))
        assert error.value.code == "source_denied"
        assert len(front.seen) <= 4


def test_an_upload_may_go_on_under_the_registrys_own_name_only() -> None:
    behind = RegistryClient(HttpClient(), registry_host("registry.example"))
    assert behind.own_url("http://registry.example/v2/x?y=1") == "https://registry.example/v2/x?y=1"
    assert behind.own_url("https://registry.example/v2/x") == "https://registry.example/v2/x"
    for url in ("https://other.example/v2/x", "http://registry.example:8080/x", "https://registry.example:444/x"):
        with pytest.raises(HomelabError) as error:
            behind.own_url(url)
        assert error.value.code == "source_denied"


def said(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


@given(st.integers(300, 599), st.binary(max_size=400) | st.builds(said, st.text(max_size=50), st.text(max_size=400)))
def test_any_refusal_is_an_error_that_can_be_shown(status: int, content: bytes) -> None:
    error = refusal(Reply(status, {}, content), "ghcr.io", "a thing")
    assert error.message.isprintable()
    assert len(error.message) < 400
