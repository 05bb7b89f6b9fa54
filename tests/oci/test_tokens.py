"""What is shown to a registry, where it is got, and who never sees it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, SourceDenied
from homelab_llm.store.oci import uploads
from homelab_llm.store.oci.challenges import parse_challenges
from homelab_llm.store.oci.client import RegistryClient
from homelab_llm.store.oci.hosts import registry_host
from homelab_llm.store.oci.tokens import _Shown
from homelab_llm.testing.registries import PASSWORD, USER, Registry
from homelab_llm.testing.registry_front import FaultyRegistry, Front, RegistryFaults, TokenAuth

Client = Callable[..., RegistryClient]
LogIn = Callable[..., None]
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), TokenAuth.IDENTITY)


def put(client: RegistryClient, repository: str, content: bytes) -> Digest:
    digest = Digest.of(content)
    uploads.send_whole(client, uploads.start(client, repository), digest, lambda: [content], len(content))
    return digest


@pytest.fixture
def guarded(shared_registry: Registry) -> Iterator[TokenAuth]:
    with TokenAuth(shared_registry) as front:
        yield front


def test_a_token_is_got_once_for_each_scope(guarded: TokenAuth, client: Client, log_in: LogIn) -> None:
    log_in(guarded.host)
    opened = client(guarded.host)
    digest = put(opened, "tokens/once", b"content")
    assert opened.blob_bytes("tokens/once", digest) == b"content"
    assert len([seen for seen in guarded.seen if seen.path.startswith("/token")]) == 1


def test_a_token_that_ran_out_is_renewed(guarded: TokenAuth, client: Client, log_in: LogIn) -> None:
    log_in(guarded.host)
    opened = client(guarded.host)
    digest = put(opened, "tokens/renewed", b"content")
    guarded.forget()
    with opened.open_blob("tokens/renewed", digest) as body:
        assert b"".join(body.chunks) == b"content"
    guarded.forget()
    assert opened.has_blob("tokens/renewed", digest)


def test_an_identity_token_is_posted_and_never_in_an_address(guarded: TokenAuth, client: Client, log_in: LogIn) -> None:
    log_in(guarded.host, identitytoken=TokenAuth.IDENTITY)
    put(client(guarded.host), "tokens/identity", b"content")
    (asked,) = [seen for seen in guarded.seen if seen.path.startswith("/token")]
    assert (asked.method, asked.path) == ("POST", "/token")


def test_without_an_account_one_may_read_what_anybody_may(
    shared_registry: Registry, guarded: TokenAuth, client: Client
) -> None:
    digest = put(client(shared_registry.host), "tokens/public", b"content")
    assert client(guarded.host, push=False).blob_bytes("tokens/public", digest) == b"content"
    with pytest.raises(SourceDenied) as refused:
        put(client(guarded.host), "tokens/public", b"other")
    assert refused.value.hint == f"mlxctl login {guarded.host}"
    assert refused.value.facts["source_code"] == "UNAUTHORIZED"


def test_a_password_is_shown_where_a_registry_asks_for_one(client: Client, log_in: LogIn) -> None:
    with Registry(password=True) as registry:
        with pytest.raises(SourceDenied):
            client(registry.host).check()
        log_in(registry.host)
        client(registry.host).check()
        digest = put(client(registry.host), "tokens/basic", b"content")
        assert client(registry.host).has_blob("tokens/basic", digest)


@pytest.mark.requirement("R-M1")
@pytest.mark.parametrize("entry", [{}, {"identitytoken": TokenAuth.IDENTITY}])
def test_a_realm_of_another_origin_gets_nothing(
    shared_registry: Registry, client: Client, log_in: LogIn, entry: dict[str, str]
) -> None:
    with Front(shared_registry) as thief, TokenAuth(shared_registry, realm=f"{thief.url}/token") as rogue:
        log_in(rogue.host, **entry)
        with pytest.raises(SourceDenied) as refused:
            client(rogue.host).has_blob("tokens/rogue", Digest.of(b"content"))
        assert str(refused.value.facts["realm"]) == thief.url
        assert thief.seen == []
        assert not any(secret in str(refused.value.as_dict()) for secret in SECRETS)


def test_a_realm_that_the_operator_listed_gets_them(shared_registry: Registry, client: Client, log_in: LogIn) -> None:
    with TokenAuth(shared_registry) as tokens, TokenAuth(shared_registry, realm=f"{tokens.url}/token") as front:
        front.grants = tokens.grants
        log_in(front.host)
        opened = client(front.host, registries=(f"http://{tokens.host}",))
        assert opened.has_blob("tokens/listed", put(opened, "tokens/listed", b"content"))


def test_credentials_stay_behind_when_a_blob_comes_from_elsewhere(
    shared_registry: Registry, client: Client, log_in: LogIn
) -> None:
    digest = put(client(shared_registry.host), "tokens/redirected", b"content")
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(redirect=True)
        opened = client(front.host, allow_private_hosts=True)
        opened._tokens._shown[opened.scope("tokens/redirected")] = _Shown("Bearer secret", float("inf"))
        with opened.open_blob("tokens/redirected", digest) as body:
            assert b"".join(body.chunks) == b"content"
        assert opened.blob_bytes("tokens/redirected", digest) == b"content"
        asked = [(seen.host.partition(":")[0], seen.authorization) for seen in front.seen]
    assert asked == [("127.0.0.1", "Bearer secret"), ("localhost", "")] * 2


def test_an_upload_is_not_sent_to_another_origin(shared_registry: Registry, client: Client) -> None:
    with Front(shared_registry) as thief, FaultyRegistry(shared_registry) as rogue:
        rogue.faults = RegistryFaults(location=thief.url)
        with pytest.raises(SourceDenied) as refused:
            put(client(rogue.host), "tokens/location", b"content")
        assert refused.value.facts["location"] == thief.url
        assert thief.seen == []


def test_a_busy_registry_is_asked_again_when_it_says(shared_registry: Registry, client: Client) -> None:
    with FaultyRegistry(shared_registry) as front:
        front.faults = RegistryFaults(times=2, status=429, retry_after="0")
        opened = client(front.host)
        assert not opened.has_blob("tokens/busy", Digest.of(b"absent"))
        front.faults = RegistryFaults(status=429, retry_after="7200")
        with pytest.raises(HomelabError) as busy:
            opened.has_blob("tokens/busy", Digest.of(b"absent"))
        assert (busy.value.code, busy.value.facts["retry_after_s"]) == ("source_unavailable", 7200)


def test_challenges_are_read_as_registries_write_them() -> None:
    header = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
    (bearer,) = parse_challenges(header)
    assert bearer.scheme == "bearer"
    assert bearer.parameters == {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:a/b:pull,push",
    }
    both = parse_challenges('Basic realm="a \\"b\\"", Bearer realm="c",service=d')
    assert [(c.scheme, dict(c.parameters)) for c in both] == [
        ("basic", {"realm": 'a "b"'}),
        ("bearer", {"realm": "c", "service": "d"}),
    ]
    assert [c.scheme for c in parse_challenges("Negotiate, Basic realm=x")] == ["negotiate", "basic"]


@given(st.text(max_size=200))
def test_any_challenge_is_read_in_bounds(header: str) -> None:
    assert len(parse_challenges(header)) <= len(header)


@given(st.text(max_size=60))
def test_any_host_is_one_or_a_clear_error(text: str) -> None:
    try:
        found = registry_host(text)
    except HomelabError as error:
        assert error.code == "invalid_input"
    else:
        assert found.origins[0].scheme in ("http", "https")
        assert not set(found.name) & set("/@?#% \\")


@pytest.mark.parametrize(
    ("text", "registries", "name", "origins"),
    [
        ("docker.io", (), "docker.io", ["https://registry-1.docker.io"]),
        ("index.docker.io", (), "docker.io", ["https://registry-1.docker.io"]),
        ("GHCR.io", (), "ghcr.io", ["https://ghcr.io"]),
        ("localhost:5000", (), "localhost:5000", ["http://localhost:5000"]),
        ("[::1]:5000", (), "[::1]:5000", ["http://[::1]:5000"]),
        ("nas.lan:5000", (), "nas.lan:5000", ["https://nas.lan:5000"]),
        ("nas.lan:5000", ("nas.lan:5000",), "nas.lan:5000", ["https://nas.lan:5000", "http://nas.lan:5000"]),
        ("nas.lan", ("http://nas.lan",), "nas.lan", ["http://nas.lan"]),
    ],
)
def test_a_host_is_asked_with_tls_unless_it_may_be_without(
    text: str, registries: tuple[str, ...], name: str, origins: list[str]
) -> None:
    found = registry_host(text, registries)
    assert (found.name, [str(origin) for origin in found.origins]) == (name, origins)


def test_a_listed_registry_is_found_with_or_without_tls(shared_registry: Registry, client: Client) -> None:
    opened = client(shared_registry.host, registries=(f"localhost:{shared_registry.port}",))
    opened.check()
    listed = client(f"localhost:{shared_registry.port}", registries=(f"localhost:{shared_registry.port}",))
    listed.check()
    assert str(listed.own) == f"http://localhost:{shared_registry.port}"
