"""The HTTP client for everything outside, against a real server that misbehaves."""

from __future__ import annotations

import ipaddress
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab_llm.core.errors import HomelabError, SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.http import MAX_REDIRECTS, HttpClient, HttpLimits
from homelab_llm.core.urls import Origin, UrlPolicy, is_private, is_public, origin_of, parse_address
from homelab_llm.testing.hub import FakeHub, Faults
from homelab_llm.testing.tls import ConnectProxy, make_certificate

FILE = "/org/name/resolve/main/model.gguf"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(repos={"org/name": {"model.gguf": CONTENT}}) as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(hub: FakeHub, pauses: list[float]) -> Iterator[HttpClient]:
    policy = UrlPolicy(trusted=frozenset({origin_of(hub.url)}))
    with HttpClient(policy=policy, limits=HttpLimits(read_s=5), sleep=pauses.append) as made:
        yield made


def body_of(client: HttpClient, url: str) -> bytes:
    with client.stream(url) as body:
        return b"".join(body.chunks)


def test_a_file_comes_whole_or_in_part_with_a_validator(hub: FakeHub, client: HttpClient) -> None:
    with client.stream(hub.url + FILE) as whole:
        assert (whole.start, whole.total_bytes) == (0, len(CONTENT))
        assert b"".join(whole.chunks) == CONTENT
    with client.stream(hub.url + FILE, start=1000, stop=1010) as part:
        assert (part.start, part.total_bytes, part.validator) == (1000, len(CONTENT), whole.validator)
        assert b"".join(part.chunks) == CONTENT[1000:1010]
    assert hub.requests[1].range == "bytes=1000-1009"


def test_a_server_that_ignores_ranges_is_seen_by_the_start(hub: FakeHub, client: HttpClient) -> None:
    hub.faults = Faults(ignore_range=True)
    with client.stream(hub.url + FILE, start=1000) as body:
        assert body.start == 0


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://127.1/x",
        "http://2130706433/x",
        "http://0x7f000001/x",
        "http://0/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://[64:ff9b::7f00:1]/x",
        "http://localhost./x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/x",
        "https://192.168.1.1/x",
        "https://100.64.0.1/x",
        "https://[fd00::1]/x",
        "https://[fe80::1]/x",
    ],
)
def test_private_addresses_are_refused_however_they_are_written(url: str) -> None:
    with HttpClient() as client, pytest.raises(SourceDenied, match="not a public address"):
        body_of(client, url)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "gopher://example.org/x",
        "data:text/plain,x",
        "https://user:secret@example.org/x",
        "https://example.org\\@127.0.0.1/x",
        "https:///x",
        "https://exa mple.org/x",
        "https://example.org/\n",
        "https://exämple.org/x",
        "https://[fe80::1%25eth0]/x",
        "https://example.org:99999/x",
        "https://" + "a" * 9000,
    ],
)
def test_other_schemes_credentials_and_odd_characters_are_refused_unresolved(url: str) -> None:
    def never(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host}:{port} was resolved")

    with HttpClient(resolve=never) as client, pytest.raises(SourceDenied) as caught:
        body_of(client, url)
    assert "secret" not in caught.value.message


@pytest.mark.requirement("R-S1")
def test_plain_http_is_only_for_private_machines_that_are_allowed() -> None:
    with (
        HttpClient(resolve=lambda _host, _port: ["93.184.215.14"]) as client,
        pytest.raises(SourceDenied, match="https"),
    ):
        body_of(client, "http://example.org/x")


@pytest.mark.requirement("R-S1")
def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    with HttpClient(resolve=lambda _host, _port: ["93.184.215.14", "10.0.0.1"]) as client:
        with pytest.raises(SourceDenied, match=r"10\.0\.0\.1"):
            body_of(client, "https://example.org/x")


@pytest.mark.requirement("R-S1")
def test_the_connection_goes_to_the_checked_address_and_a_later_answer_changes_nothing(hub: FakeHub) -> None:
    answers = [["127.0.0.1"], ["192.0.2.1"]]
    origin = Origin("http", "hub.example", hub.port)
    policy = UrlPolicy(trusted=frozenset({origin}))
    with HttpClient(policy=policy, resolve=lambda _host, _port: answers.pop(0)) as client:
        assert body_of(client, f"http://hub.example:{hub.port}{FILE}") == CONTENT
    assert answers == [["192.0.2.1"]]
    assert hub.requests[0].host == f"hub.example:{hub.port}"


@pytest.mark.requirement("R-S1")
def test_a_redirect_to_a_private_machine_is_not_followed(hub: FakeHub, client: HttpClient) -> None:
    with FakeHub(pages={"/secret": (200, {}, b"secret")}) as inside:
        hub.pages["/away"] = (302, {"location": f"{inside.url}/secret"}, b"")
        hub.pages["/file"] = (302, {"location": "file:///etc/passwd"}, b"")
        for path in ("/away", "/file"):
            with pytest.raises(SourceDenied):
                body_of(client, hub.url + path)
        assert inside.requests == []


def test_a_redirect_loop_ends(hub: FakeHub, client: HttpClient, pauses: list[float]) -> None:
    hub.pages["/loop"] = (302, {"location": "/loop"}, b"")
    with pytest.raises(SourceUnavailable, match="redirects"):
        body_of(client, f"{hub.url}/loop")
    assert len(hub.requests) == MAX_REDIRECTS + 1
    assert pauses == []


@pytest.mark.requirement("R-S1")
def test_credentials_stay_with_their_origin(hub: FakeHub) -> None:
    hub.redirect = True
    hub.token = "hf_secret"
    with HttpClient(policy=UrlPolicy(allow_private=True)) as client:
        with client.stream(hub.url + FILE, authorization="Bearer hf_secret") as body:
            assert b"".join(body.chunks) == CONTENT
    assert [(r.authorization, r.host.partition(":")[0]) for r in hub.requests] == [
        ("Bearer hf_secret", "127.0.0.1"),
        ("", "localhost"),
    ]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, SourceDenied), (403, SourceDenied), (404, SourceNotFound), (410, SourceNotFound), (418, SourceUnavailable)],
)
def test_refusals_have_types_and_are_not_repeated(
    hub: FakeHub, client: HttpClient, status: int, error: type[HomelabError]
) -> None:
    hub.faults = Faults(status=status, error_code="GatedRepo")
    with pytest.raises(error) as caught:
        body_of(client, hub.url + FILE)
    assert caught.value.facts["status"] == status
    assert len(hub.requests) == 1


def test_a_gated_model_says_what_to_do(hub: FakeHub, client: HttpClient) -> None:
    hub.token = "other"
    with pytest.raises(SourceDenied) as caught:
        body_of(client, hub.url + FILE)
    assert "HF_TOKEN" in caught.value.hint


def test_a_busy_server_is_asked_again_after_the_time_it_names(
    hub: FakeHub, client: HttpClient, pauses: list[float]
) -> None:
    hub.faults = Faults(times=1, status=429, retry_after="7")
    assert body_of(client, hub.url + FILE) == CONTENT
    assert len(pauses) == 1
    assert 7.0 <= pauses[0] < 8.0


def test_a_server_that_wants_too_long_a_pause_is_reported_at_once(
    hub: FakeHub, client: HttpClient, pauses: list[float]
) -> None:
    hub.faults = Faults(status=503, retry_after="86400")
    with pytest.raises(SourceUnavailable) as caught:
        body_of(client, hub.url + FILE)
    assert caught.value.facts["retry_after_s"] == 86400
    assert pauses == []


def test_pauses_grow_and_the_attempts_end(hub: FakeHub, client: HttpClient, pauses: list[float]) -> None:
    hub.faults = Faults(status=500)
    with pytest.raises(SourceUnavailable) as caught:
        body_of(client, hub.url + FILE)
    assert caught.value.retryable
    assert len(hub.requests) == client.limits.attempts
    assert [0.25 * 2**n <= pause <= 0.75 * 2**n for n, pause in enumerate(pauses)] == [True] * 3


def test_a_captive_portal_is_named_as_such(hub: FakeHub, client: HttpClient) -> None:
    hub.faults = Faults(html=True)
    with pytest.raises(SourceUnavailable, match="web page") as caught:
        body_of(client, hub.url + FILE)
    assert caught.value.facts["content_type"] == "text/html; charset=utf-8"
    assert "captive portal" in caught.value.hint


def test_a_cut_body_a_short_body_and_a_compressed_body_are_errors(hub: FakeHub, client: HttpClient) -> None:
    for fault in (Faults(drop_after_bytes=1000), Faults(wrong_length=10), Faults(compressed=True)):
        hub.faults = fault
        with pytest.raises(SourceUnavailable):
            body_of(client, hub.url + FILE)


def test_a_body_that_trickles_is_given_up(hub: FakeHub, client: HttpClient) -> None:
    hub.repos["org/name"]["model.gguf"] = CONTENT * 20
    now = iter(range(0, 100_000, 40))
    client.monotonic_s = lambda: float(next(now))
    client.limits = HttpLimits(stall_s=60, stall_bytes=10**9)
    with pytest.raises(SourceUnavailable, match="too slowly"):
        body_of(client, hub.url + FILE)


def test_a_document_has_a_largest_size(hub: FakeHub, client: HttpClient) -> None:
    with pytest.raises(SourceUnavailable, match="larger"):
        client.get_bytes(hub.url + FILE, limit_bytes=1000)
    with pytest.raises(SourceUnavailable, match="JSON"):
        client.get_json(hub.url + FILE, limit_bytes=10**6)


def test_nobody_there_and_a_name_that_does_not_exist_are_unavailable(client: HttpClient, hub: FakeHub) -> None:
    client.limits = HttpLimits(attempts=1)
    client.policy = UrlPolicy(allow_private=True)
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        body_of(client, "http://127.0.0.1:1/x")
    with pytest.raises(SourceUnavailable, match="cannot be resolved"):
        body_of(client, "https://no-such-host.invalid/x")


def test_a_second_address_is_tried_when_the_first_does_not_answer(hub: FakeHub) -> None:
    policy = UrlPolicy(allow_private=True)
    with HttpClient(policy=policy, resolve=lambda _host, _port: ["127.0.0.2", "127.0.0.1"]) as client:
        assert body_of(client, f"http://hub.example:{hub.port}{FILE}") == CONTENT


def test_a_query_is_never_shown(hub: FakeHub, client: HttpClient) -> None:
    with pytest.raises(SourceNotFound) as caught:
        body_of(client, f"{hub.url}/missing?signature=secret")
    assert "secret" not in caught.value.message
    assert "/missing" in caught.value.message


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_honoured(hub: FakeHub) -> None:
    with FakeHub(pages={"/x": (200, {}, b"through the proxy")}) as proxy:
        proxy.pages["/x"] = (200, {"content-type": "application/octet-stream"}, b"through the proxy")
        environ = {"http_proxy": proxy.url, "NO_PROXY": "127.0.0.1"}
        with HttpClient(environ=environ) as client:
            assert body_of(client, "http://files.example/x") == b"through the proxy"
            with pytest.raises(SourceDenied):
                body_of(client, hub.url + FILE)
        assert proxy.requests[0].host == "files.example"
    assert hub.requests == []


@pytest.fixture
def tls_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serves https as ``files.example``, and this process trusts it."""
    context = make_certificate(tmp_path, "files.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with FakeHub(repos={"org/name": {"model.gguf": CONTENT}}, tls=context) as running:
        yield running


def resolved_here(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


@pytest.mark.requirement("R-S1")
def test_the_name_is_proved_by_tls_while_the_connection_goes_to_the_checked_address(tls_hub: FakeHub) -> None:
    with HttpClient(policy=UrlPolicy(allow_private=True), resolve=resolved_here) as client:
        assert body_of(client, f"https://files.example:{tls_hub.port}{FILE}") == CONTENT
        assert body_of(client, f"https://files.example:{tls_hub.port}{FILE}") == CONTENT
        client.limits = HttpLimits(attempts=1)
        with pytest.raises(SourceUnavailable, match="does not prove its identity"):
            body_of(client, f"https://other.example:{tls_hub.port}{FILE}")
    assert {request.host for request in tls_hub.requests} == {f"files.example:{tls_hub.port}"}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_https_goes_through_a_tunnel_of_the_proxy(tls_hub: FakeHub, scheme: str) -> None:
    with ConnectProxy(tls_hub.port, tls_hub.tls if scheme == "https" else None) as proxy:
        environ = {"https_proxy": f"{scheme}://me:p%40ss@127.0.0.1:{proxy.port}"}
        with HttpClient(environ=environ) as client:
            assert body_of(client, f"https://files.example{FILE}") == CONTENT
            assert body_of(client, f"https://files.example{FILE}") == CONTENT
    assert len(proxy.heads) == 1  # the connection is used again
    assert proxy.heads[0].startswith("CONNECT files.example:443 HTTP/1.1\r\n")
    assert f"Basic {b64encode(b'me:p@ss').decode()}" in proxy.heads[0]
    assert tls_hub.requests[0].host == "files.example"


def test_a_connection_is_used_again_until_the_server_closes_it(hub: FakeHub, client: HttpClient) -> None:
    hub.repos["org/name"]["large.gguf"] = CONTENT * 80
    for _ in range(3):
        assert body_of(client, hub.url + FILE) == CONTENT
        with client.stream(hub.url + FILE.replace("model", "large")) as body:
            next(body.chunks)
    assert len({request.port for request in hub.requests}) == 3  # one that is left in the middle is ended
    hub.hang_up()
    assert body_of(client, hub.url + FILE) == CONTENT


def test_closing_the_client_ends_what_another_thread_reads(hub: FakeHub, client: HttpClient) -> None:
    hub.faults = Faults(hold_after_bytes=1000)
    first, errors = threading.Event(), list[HomelabError]()

    def read() -> None:
        try:
            with client.stream(hub.url + FILE) as body:
                for _ in body.chunks:
                    first.set()
        except HomelabError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(30)
    client.close()
    thread.join(4)
    assert [error.code for error in errors] == ["source_unavailable"]
    with pytest.raises(SourceUnavailable):
        body_of(client, hub.url + FILE)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "2130706433", "0x7f.1", "127.1"]
)
def test_a_written_out_private_address_is_refused_with_a_proxy_too(hub: FakeHub, host: str) -> None:
    with HttpClient(environ={"HTTP_PROXY": hub.url, "HTTPS_PROXY": hub.url}) as client:
        with pytest.raises(SourceDenied):
            body_of(client, f"https://{host}/x")
    assert hub.requests == []


def test_origins_are_scheme_host_and_port() -> None:
    assert str(origin_of("https://Example.org/x?y#z")) == "https://example.org"
    assert str(origin_of("http://[::1]:8080/")) == "http://[::1]:8080"
    assert origin_of("https://example.org:443/a") == origin_of("https://example.org./b")


def test_addresses_are_sorted_into_public_private_and_never() -> None:
    public = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"]
    private = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.100.1.1", "::1", "fd12::1"]
    never = ["0.0.0.0", "::", "169.254.169.254", "fe80::1", "224.0.0.1", "255.255.255.255", "::ffff:169.254.169.254"]
    assert [is_public(parse_address(text)) for text in (*public, *private, *never)] == [True] * 3 + [False] * 14
    assert [is_private(parse_address(text)) for text in (*private, *never)] == [True] * 7 + [False] * 7
    assert parse_address("fe80::1%eth0") == ipaddress.ip_address("fe80::1")


def test_a_reply_that_never_ends_is_given_up(hub: FakeHub) -> None:
    times_s = iter(range(0, 1000, 100))
    hub.pages["/slow"] = (200, {}, b"x")
    with HttpClient(
        policy=UrlPolicy(trusted=frozenset({origin_of(hub.url)})), monotonic_s=lambda: float(next(times_s))
    ) as client:
        with pytest.raises(SourceUnavailable, match="longer than 60 s"):
            client.exchange("GET", f"{hub.url}/slow")
