"""Which addresses the front door takes, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from homelab_llm.core.errors import DaemonRunning, InvalidInput, ListenRefused, PortTaken
from homelab_llm.core.events import Event
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.gateway.listeners import Address, Inherited, Wanted, bind_all, bind_control, close_all
from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import OpenDoor, Worker


def fronting(address: str) -> Wanted:
    return Wanted(Address.parse(address))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody holds."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "shown", "loopback"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234", True),
        ("localhost:0", "127.0.0.1:0", True),
        ("[::1]:80", "[::1]:80", True),
        ("[0:0::1]:80", "[::1]:80", True),
        ("0.0.0.0:1", "0.0.0.0:1", False),
        ("[::]:1", "[::]:1", False),
        ("192.168.1.5:65535", "192.168.1.5:65535", False),
    ],
)
def test_an_address_has_one_form(text: str, shown: str, loopback: bool) -> None:
    address = Address.parse(text)
    assert (str(address), address.loopback) == (shown, loopback)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1234", ":1234", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "a b:1"),
        *("[127.0.0.1]:80", "example.org:80", "127.0.0.1:80/x", "http://127.0.0.1:80", "127.0.0.256:1", "127.1:80"),
        "x" * 9999,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Address.parse(text)
    assert len(caught.value.message) < 200


@pytest.mark.requirement("R-G6", "R-S1")
@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.168.1.5:0"])
def test_beyond_loopback_without_a_key_is_refused_with_the_command_that_makes_one(home: Home, address: str) -> None:
    with pytest.raises(ListenRefused) as caught:
        bind_all([fronting(address)], home.daemon_sock, named=True, have_key=False)
    assert caught.value.hint == "mlxctl key create NAME"
    assert not home.daemon_sock.exists()


@pytest.mark.requirement("R-G1")
def test_a_default_address_that_is_taken_is_skipped_with_a_warning_that_names_the_holder(
    home: Home, taken: int
) -> None:
    wanted = [fronting(f"127.0.0.1:{taken}"), fronting("127.0.0.1:0")]
    bound, skipped = bind_all(wanted, home.daemon_sock, named=False, have_key=False)
    close_all(bound)
    assert [entry.listener.control for entry in bound] == [True, False]
    assert bound[1].listener.port > 0
    warning = skipped[0].error
    assert warning.facts["address"] == f"127.0.0.1:{taken}"
    assert warning.facts.get("pid", os.getpid()) == os.getpid()  # not every system tells


@pytest.mark.requirement("R-G1")
def test_a_named_address_that_is_taken_is_an_error_and_leaves_nothing_bound(home: Home, taken: int) -> None:
    with pytest.raises(PortTaken):
        wanted = [fronting("127.0.0.1:0"), fronting(f"127.0.0.1:{taken}")]
        bind_all(wanted, home.daemon_sock, named=True, have_key=False)
    assert not home.daemon_sock.exists()


def test_an_address_this_machine_does_not_have_is_an_error(home: Home) -> None:
    with pytest.raises(PortTaken) as caught:
        bind_all([fronting("192.0.2.7:0")], home.daemon_sock, named=True, have_key=True)
    assert "cannot be listened on" in caught.value.message


@pytest.mark.requirement("R-S1")
def test_the_daemons_socket_is_private(home: Home) -> None:
    bound = bind_control(home.daemon_sock)
    try:
        assert stat.S_IMODE(home.daemon_sock.stat().st_mode) == 0o600
        with pytest.raises(DaemonRunning):
            bind_control(home.daemon_sock)
    finally:
        close_all([bound])
    assert not home.daemon_sock.exists()


def test_a_socket_left_by_a_killed_daemon_is_replaced(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.daemon_sock))
    close_all([bind_control(home.daemon_sock)])


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(home: Home, kind: str, tmp_path: Path) -> None:
    path = home.daemon_sock
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path)
    with pytest.raises(InvalidInput):
        bind_control(path)
    assert path.exists()


async def test_one_application_answers_on_all_its_listeners(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"], listen=("127.0.0.1:0", "127.0.0.1:0")) as door:
        assert len(set(door.front.addresses)) == 2
        assert door.front.listeners[0].control
        for address in door.front.addresses:
            reply = await door.raw(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", port=int(address.rpartition(":")[2])
            )
            assert reply.startswith(b"HTTP/1.1 200")
            assert reply.endswith(b"homelab-llm\n")
    assert not door.home.daemon_sock.exists()


def free_ports(count: int) -> list[int]:
    """Ports nobody holds just now."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def table(*ports: int) -> SlotTable:
    return SlotTable.of(",".join(map(str, ports)), ("jerry-xl", "jerry-l"))


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.requirement("R-F1")
async def test_every_slot_has_a_listener_of_its_own(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    first, second = sorted(free_ports(2))
    async with open_door(workers["own"], slots=table(first, second)) as door:
        assert [listener.slot for listener in door.front.listeners] == [0, 0, first, second]
        assert len(door.front.addresses) == 1, "a slot is no front address"
        for port in (first, second):
            assert (await door.raw(GET, port=port)).startswith(b"HTTP/1.1 200")
        assert door.front.slot_problems() == {}


@pytest.mark.requirement("R-F1")
async def test_a_slot_port_held_by_somebody_else_is_told_and_taken_when_it_is_free(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    news: list[Event] = []
    (other,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        slots = table(*sorted((port, other)))
        async with open_door(workers["own"], slots=slots, news=news.append, again_s=0.02) as door:
            (problem,) = door.front.slot_problems().items()
            assert problem[0] == port
            assert problem[1]["pid"] in (os.getpid(), None)  # not every system tells
            assert problem[1]["name"] == psutil.Process().name() or problem[1]["pid"] is None
            assert door.front.warnings[0]["text"] == problem[1]["text"]
            assert (await door.raw(GET, port=other)).startswith(b"HTTP/1.1 200"), "the other slots work"
            holder.close()
            await eventually(lambda: bool(news))
            assert (news[0].port, news[0].kind) == (port, "port_taken")
            assert (await door.raw(GET, port=port)).startswith(b"HTTP/1.1 200")
            assert (door.front.slot_problems(), door.front.warnings) == ({}, [])


async def test_a_default_front_address_is_taken_too_when_it_is_free(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        listen = ("127.0.0.1:0", f"127.0.0.1:{port}")
        async with open_door(workers["own"], listen=listen, named=False, again_s=0.02) as door:
            assert len(door.front.addresses) == 1
            holder.close()
            await eventually(lambda: f"127.0.0.1:{port}" in door.front.addresses)
            assert (await door.raw(GET, port=port)).startswith(b"HTTP/1.1 200")


@pytest.mark.requirement("R-S1", "R-F1")
async def test_slot_ports_beyond_loopback_need_a_key(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    with pytest.raises(ListenRefused):
        async with open_door(workers["own"], slots=table(*free_ports(1)), slot_bind="0.0.0.0"):
            raise AssertionError("it listens")


async def test_a_door_that_paused_loses_no_connection(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"]) as door:
        door.front.pause()
        waiting = asyncio.create_task(door.raw(GET))
        await asyncio.sleep(0)
        assert not waiting.done()
        await door.front.resume()
        assert (await waiting).startswith(b"HTTP/1.1 200")
        assert door.home.daemon_sock.exists()


async def test_sockets_that_were_passed_on_are_served_and_those_not_wanted_are_closed(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    kept, dropped = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    port = kept.getsockname()[1]
    inherited = Inherited([("127.0.0.1:0", kept), ("127.0.0.1:9", dropped)])
    async with open_door(workers["own"], listen=("127.0.0.1:0",), inherited=inherited) as door:
        assert door.port == port
        assert (await door.raw(GET)).startswith(b"HTTP/1.1 200")
        assert dropped.fileno() == -1
