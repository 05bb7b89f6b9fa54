"""Who may do what, from which listener, for which Host and Origin."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.errors import Forbidden, HomelabError, InvalidInput, Unauthorized
from homelab_llm.gateway.auth import Access, Gate, Presented, host_name, is_batch, preflight_headers
from homelab_llm.gateway.listeners import Listener
from homelab_llm.gateway.routes import ROUTES
from homelab_llm.gateway.seams import KeyGrant, Priority

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CONTROL = Listener("/run/daemon.sock", control=True)
LOOPBACK = Listener("127.0.0.1:1234", "127.0.0.1", 1234)
BEYOND = Listener("192.168.1.5:1234", "192.168.1.5", 1234, loopback=False)
WILDCARD = Listener("0.0.0.0:1234", "0.0.0.0", 1234, loopback=False)


class TwoKeys:
    """An inference key and an admin key."""

    def check(self, token: str) -> KeyGrant | None:
        return {
            "hl-user": KeyGrant("user", frozenset({"inference"})),
            "hl-root": KeyGrant("root", frozenset({"inference", "admin"})),
        }.get(token)

    def any(self) -> bool:
        return True


@pytest.fixture
def gate() -> Gate:
    return Gate(TwoKeys(), allowed_hosts=("nas.lan",), allowed_origins=("https://chat.example",))


def told(*headers: tuple[str, str]) -> Presented:
    return Presented.of([(name.encode(), value.encode("latin-1")) for name, value in headers])


def code_of(gate: Gate, listener: Listener, access: Access, *headers: tuple[str, str]) -> str:
    try:
        return gate.admit(told(*headers), listener, access).name or "anonymous"
    except HomelabError as error:
        return error.code


@pytest.mark.requirement("R-G6")
@pytest.mark.parametrize(
    ("listener", "token", "answers"),
    [
        (CONTROL, "", ("anonymous", "anonymous", "anonymous")),
        (LOOPBACK, "", ("anonymous", "anonymous", "unauthorized")),
        (LOOPBACK, "sk-whatever", ("anonymous", "anonymous", "unauthorized")),
        (LOOPBACK, "hl-user", ("user", "user", "forbidden")),
        (LOOPBACK, "hl-root", ("root", "root", "root")),
        (BEYOND, "", ("anonymous", "unauthorized", "unauthorized")),
        (BEYOND, "sk-whatever", ("anonymous", "unauthorized", "unauthorized")),
        (BEYOND, "hl-user", ("user", "user", "forbidden")),
        (BEYOND, "hl-root", ("root", "root", "root")),
    ],
)
def test_access_depends_on_listener_and_key(
    gate: Gate, listener: Listener, token: str, answers: tuple[str, str, str]
) -> None:
    headers = [("authorization", f"Bearer {token}")] if token else []
    kinds: tuple[Access, Access, Access] = ("open", "inference", "admin")
    assert tuple(code_of(gate, listener, kind, *headers) for kind in kinds) == answers


@pytest.mark.requirement("R-G6")
@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Basic hl-root")],
        [("authorization", "hl-root")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer hl-root"), ("authorization", "Bearer hl-user")],
        [("authorization", "Bearer hl-user"), ("x-admin-key", "hl-root")],
        [("authorization", "Bearer hl-r\xf6\xf6t")],
        [("x-admin-key", "x" * 1_000_000)],
    ],
)
def test_a_key_in_another_form_or_two_that_differ_open_nothing(gate: Gate, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthorized):
        gate.admit(told(*headers), BEYOND, "admin")


def test_the_admin_key_header_is_as_good_as_bearer(gate: Gate) -> None:
    assert code_of(gate, LOOPBACK, "admin", ("x-admin-key", "hl-root")) == "root"
    assert code_of(gate, BEYOND, "admin", ("x-admin-key", "hl-root"), ("authorization", "bearer hl-root")) == "root"


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    ("host", "loopback", "beyond"),
    [
        ("localhost", True, True),
        ("LOCALHOST:9999", True, True),
        ("localhost.", True, True),
        ("app.localhost:1", True, True),
        ("127.0.0.1:1234", True, True),
        ("127.9.9.9", True, True),
        ("[::1]:1234", True, True),
        ("nas.lan", True, True),
        ("NAS.LAN.:80", True, True),
        ("192.168.1.5:1234", False, True),
        ("10.0.0.1", False, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("notlocalhost", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("0x7f.1", False, False),
        ("2130706433", False, False),
    ],
)
def test_a_host_must_be_this_machine(gate: Gate, host: str, loopback: bool, beyond: bool) -> None:
    for listener, allowed in ((LOOPBACK, loopback), (WILDCARD, beyond)):
        for _ in range(2):  # the second answer is remembered
            if allowed:
                gate.check_host(told(("host", host)), listener)
            else:
                with pytest.raises(Forbidden):
                    gate.check_host(told(("host", host)), listener)
    gate.check_host(told(("host", host)), CONTROL)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["localhost", "localhost"],
        [""],
        ["user@localhost"],
        ["localhost/x"],
        ["localhost?x"],
        ["localhost#x"],
        ["local host"],
        ["[::1"],
        ["localhost:port"],
        ["localhost:123456"],
        ["localhost\x00"],
        ["lök"],
    ],
)
def test_a_host_that_is_none_or_two_is_refused(gate: Gate, hosts: list[str]) -> None:
    with pytest.raises(InvalidInput):
        gate.check_host(told(*[("host", host) for host in hosts]), LOOPBACK)


def test_a_host_name_has_one_form() -> None:
    assert host_name("NAS.lan.:80") == "nas.lan"
    assert host_name("[::1]:80") == "::1"


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:5173", True),
        ("https://chat.example", True),
        ("HTTPS://CHAT.EXAMPLE", True),
        ("http://nas.lan:1234", True),  # the page is our own: its origin is the Host
        ("http://nas.lan:99", False),
        ("http://chat.example", False),
        ("https://evil.example", False),
        ("https://localhost.evil.example", False),
        ("null", False),
        ("file://", False),
        ("http://localhost@evil.example", False),
        ("", False),
    ],
)
def test_an_origin_must_be_local_ours_or_allowed(gate: Gate, origin: str, allowed: bool) -> None:
    headers = told(("host", "nas.lan:1234"), ("origin", origin))
    if allowed:
        assert gate.check_origin(headers, LOOPBACK).decode() == origin
    else:
        with pytest.raises(Forbidden):
            gate.check_origin(headers, LOOPBACK)


def test_two_origins_are_refused(gate: Gate) -> None:
    with pytest.raises(Forbidden):
        gate.check_origin(told(("origin", "http://localhost"), ("origin", "http://localhost")), LOOPBACK)


def test_a_preflight_asks_for_header_names_only() -> None:
    asked = told(("access-control-request-headers", "content-type, x-stainless-os"))
    assert dict(preflight_headers(asked))[b"access-control-allow-headers"] == b"content-type, x-stainless-os"
    with pytest.raises(InvalidInput):
        preflight_headers(told(("access-control-request-headers", "x\r\nset-cookie: a")))


@pytest.mark.requirement("R-S1", "R-G6")
async def test_every_route_refuses_a_foreign_host_and_a_foreign_origin(one_door: Door) -> None:
    async with one_door.client() as client:
        for route in ROUTES:
            path = route.path.replace("{id}", "fake:latest")
            for method in (*route.methods, "OPTIONS", "DELETE"):
                foreign = await client.request(method, path, headers={"host": "evil.example"})
                assert foreign.status_code == 403, (method, path)
                cross = await client.request(method, path, headers={"origin": "https://evil.example"})
                assert cross.status_code == 403, (method, path)
                assert "access-control-allow-origin" not in cross.headers
    assert one_door.fleet.granted == []
    assert one_door.shutdowns == []
    await one_door.still_serves()


@pytest.mark.requirement("R-G6")
async def test_every_admin_route_needs_the_socket_or_a_key_with_the_scope(one_door: Door) -> None:
    user = one_door.keys.create("user")
    root = one_door.keys.create("root", ("inference", "admin"))
    admin = [(method, route.path) for route in ROUTES if route.access == "admin" for method in route.methods]
    async with one_door.client() as client:
        for method, path in admin:
            refused = await client.request(method, path, json={})
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.request(method, path, headers={"authorization": f"Bearer {user}"})).status_code == 403
        allowed = await client.get("/admin/status", headers={"x-admin-key": root})
        assert allowed.json()["budget_bytes"] == 10
    async with one_door.client(control=True) as client:
        assert (await client.get("/admin/status")).status_code == 200
    assert one_door.shutdowns == []


@pytest.mark.requirement("R-G6", "R-S1")
async def test_beyond_loopback_everything_but_health_needs_a_key(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    tokens: list[str] = []
    async with open_door(
        workers["own"], listen=("0.0.0.0:0",), before=lambda keys: tokens.append(keys.create("laptop"))
    ) as door:
        async with door.client() as client:
            assert (await client.get("/healthz")).status_code == 200
            for route in ROUTES:
                if route.access != "open":
                    path = route.path.replace("{id}", "x")
                    assert (await client.request(route.methods[0], path)).status_code == 401, path
            authorized = {"authorization": f"Bearer {tokens[0]}"}
            assert (await client.get("/v1/models", headers=authorized)).status_code == 200
            door.keys.revoke("laptop")
            door.keys.list()
            assert (await client.get("/v1/models", headers=authorized)).status_code == 401


async def test_a_page_of_this_machine_may_use_the_server(one_door: Door) -> None:
    origin = {"origin": "http://localhost:3000"}
    async with one_door.client() as client:
        asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        preflight = await client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin["origin"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        reply = await client.get("/v1/models", headers=origin)
        assert reply.headers["access-control-allow-origin"] == origin["origin"]
        assert reply.headers["vary"] == "origin"
        missing = await client.get("/v1/models/none", headers=origin)
        assert (missing.status_code, missing.headers["access-control-allow-origin"]) == (404, origin["origin"])


@pytest.mark.requirement("B-10")
@pytest.mark.parametrize(
    ("key", "said", "batch"),
    [("interactive", "", False), ("interactive", "interactive", False), ("interactive", "batch", True),
     ("batch", "", True), ("batch", "interactive", True), ("batch", "batch", True)],
)  # fmt: skip
def test_a_request_is_at_most_of_its_keys_priority(key: Priority, said: str, batch: bool) -> None:
    headers = [("x-priority", said)] if said else []
    assert is_batch(told(*headers), KeyGrant("k", frozenset({"inference"}), key)) is batch


@pytest.mark.requirement("R-F1", "R-G6")
def test_a_slot_port_beyond_loopback_needs_a_key(gate: Gate) -> None:
    slot = replace(BEYOND, slot=8100)
    assert code_of(gate, slot, "inference") == "unauthorized"
    assert code_of(gate, slot, "inference", ("authorization", "Bearer hl-user")) == "user"
