"""A planned restart at the front door: what the old daemon cannot serve any more, the new one answers through it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import HandedOver, QueueFull
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.waits import Wait
from homelab_llm.gateway.seams import Target
from homelab_llm.testing.events import eventually
from homelab_llm.testing.homes import temporary_home

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CHAT = "/v1/chat/completions"


def chat(prompt: str = "fake: tokens=2", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": prompt}], **fields}


@dataclass(slots=True)
class Pair:
    """The daemon that goes and the one that comes; both have the slot ``jerry-xl``."""

    old: Door
    new: Door
    slot: int

    def hand_over(self) -> None:
        self.old.app.hand_over(self.new.home.daemon_sock)


@pytest.fixture
def new_home() -> Iterator[Home]:
    with temporary_home() as home:
        yield home


@pytest.fixture
async def pair(workers: dict[str, Worker], open_door: OpenDoor, new_home: Home) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        slots = SlotTable.of(str(free_port()), ("jerry-xl",))
        old = await stack.enter_async_context(open_door(workers["own"], slots=slots))
        new = await stack.enter_async_context(open_door(workers["own"], slots=SlotTable(), at=new_home))
        new.router._slots = slots  # it would have the port by inheriting the socket
        yield Pair(old, new, slots.ports[0])
        assert old.fleet.open_leases == new.fleet.open_leases == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.requirement("B-5")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_comes_after_the_handover_is_answered_by_the_new_daemon(pair: Pair, stream: bool) -> None:
    pair.hand_over()
    reply = await pair.old.post(CHAT, chat(stream=stream), **{"x-priority": "batch"})
    assert reply.status_code == 200, reply.text
    assert reply.headers["connection"] == "close"
    if stream:
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.text.endswith("data: [DONE]\n\n")
    else:
        assert reply.json()["choices"][0]["message"]["content"] == "tok0 tok1"
    (row,) = pair.new.rows.rows
    assert (row.request_id, row.priority, row.client) == (reply.headers["x-request-id"], "batch", "127.0.0.1")
    assert (pair.old.rows.rows, pair.old.fleet.asked, pair.new.fleet.asked) == ([], [], [("fake:latest", 10)])


@pytest.mark.requirement("B-5", "R-F1")
async def test_slot_and_key_of_a_forwarded_request_are_kept(pair: Pair) -> None:
    token = pair.old.keys.create("laptop")
    pair.new.router.point("jerry-xl", Target(pair.new.shelf.held["fake:latest"], alias="jerry-xl"))
    pair.hand_over()
    headers = {"authorization": f"Bearer {token}"}
    reply = await pair.old.post(CHAT, chat(model="anything"), pair.slot, **headers)
    assert (reply.status_code, reply.json()["model"]) == (200, "fake:latest")
    (row,) = pair.new.rows.rows
    assert (row.key, row.port, row.alias) == ("laptop", pair.slot, "jerry-xl")
    assert [r["id"] for r in (await pair.old.get("/v1/models", pair.slot)).json()["data"]] == ["fake:latest"]
    assert (await pair.old.get("/admin/status", pair.slot)).status_code == 404


@pytest.mark.requirement("B-5", "R-G3")
async def test_errors_and_plain_endpoints_pass_as_they_are(pair: Pair) -> None:
    pair.hand_over()
    pair.new.fleet.refuse = QueueFull("the queue is full", queue_length=9, retry_after_s=3.4)
    full = await pair.old.post(CHAT, chat())
    assert (full.status_code, full.headers["retry-after"], full.json()["error"]["code"]) == (503, "4", "queue_full")
    empty = await pair.old.post(CHAT, b"")
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "invalid_input")
    typed = await pair.old.post(CHAT, chat(), **{"content-type": "text/plain"})
    assert typed.status_code == 415
    assert (await pair.old.get("/v1/models")).json() == (await pair.new.get("/v1/models")).json()
    async with pair.old.client() as client:
        assert (await client.head("/healthz")).status_code == 200
        assert (await client.get("/v1/models/fake%2Fno?x=1")).status_code == 404
    assert (await pair.old.post("/admin/shutdown", {})).status_code == 401
    assert pair.new.shutdowns == []


def begins_to_wait(pair: Pair) -> asyncio.Event:
    """Requests at the old daemon wait from now on, until the event; then they are handed over."""
    hold = pair.old.fleet.hold = asyncio.Event()
    pair.old.fleet.stands = Wait("queued", 0.0, 2)
    return hold


def hand_over_those_that_wait(pair: Pair, hold: asyncio.Event) -> None:
    pair.hand_over()
    pair.old.fleet.refuse = HandedOver("handed over")
    hold.set()


@pytest.mark.requirement("B-5")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_waits_goes_on_at_the_new_daemon(pair: Pair, stream: bool) -> None:
    hold = begins_to_wait(pair)
    waiting = asyncio.create_task(pair.old.post(CHAT, chat(stream=stream)))
    await eventually(lambda: len(pair.old.fleet.asked) == 1, what="request to wait")
    hand_over_those_that_wait(pair, hold)
    reply = await waiting
    assert (reply.status_code, "tok1" in reply.text, reply.headers["connection"]) == (200, True, "close")
    assert [row.request_id for row in pair.new.rows.rows] == [reply.headers["x-request-id"]]
    assert pair.old.rows.rows == []


@pytest.mark.requirement("B-5", "B-7")
@pytest.mark.parametrize("refused", [False, True])
async def test_a_stream_that_has_begun_with_comments_goes_on(
    pair: Pair, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homelab_llm.gateway.exchange.COMMENT_AFTER_S", 0.0)
    hold = begins_to_wait(pair)
    if refused:
        pair.new.fleet.refuse = QueueFull("the queue is full", queue_length=9, retry_after_s=3.4)
    async with pair.old.client() as client, client.stream("POST", CHAT, json=chat(stream=True)) as reply:
        read = reply.aiter_bytes()
        assert (await anext(read)).startswith(b": waiting for fake:latest, place 2 in the queue\n\n")
        hand_over_those_that_wait(pair, hold)
        content = b"".join([block async for block in read])
    if refused:
        last = content.rstrip().splitlines()[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "queue_full"
        assert b"[DONE]" not in content
    else:
        assert b"tok1" in content
        assert content.endswith(b"data: [DONE]\n\n")


@pytest.mark.requirement("B-5")
async def test_a_request_that_has_a_worker_ends_where_it_is(pair: Pair) -> None:
    running = asyncio.create_task(pair.old.post(CHAT, chat("fake: tokens=20 rate=100")))
    await eventually(lambda: pair.old.fleet.open_leases == 1, what="request to run")
    pair.hand_over()
    reply = await running
    assert (reply.status_code, reply.headers["connection"]) == (200, "close")
    assert (len(pair.old.rows.rows), pair.new.rows.rows) == (1, [])


@pytest.mark.requirement("B-5", "R-I3")
async def test_a_client_that_leaves_ends_its_request_at_the_new_daemon(pair: Pair) -> None:
    pair.hand_over()
    body = json.dumps(chat("fake: tokens=5000 rate=50", stream=True)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.old.port)
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (CHAT.encode(), len(body)) + body)
    await asyncio.wait_for(reader.readuntil(b"tok1"), 10)
    writer.close()
    await eventually(lambda: pair.new.fleet.open_leases == 0 and pair.new.app.running == 0, what="request to end")
    assert pair.new.fleet.granted[0].abandoned
    await eventually(lambda: pair.old.app.running == 0, what="forward to end")


@pytest.mark.requirement("B-5")
async def test_a_handover_that_fails_is_undone_without_a_failed_request(pair: Pair) -> None:
    """The new daemon dies before it serves: the socket is the old one's again, and so are the requests."""
    hold = begins_to_wait(pair)
    waiting = asyncio.create_task(pair.old.post(CHAT, chat()))
    await eventually(lambda: len(pair.old.fleet.asked) == 1, what="request to wait")
    pair.old.app.hand_over(pair.old.home.daemon_sock)
    pair.old.front.pause()
    pair.old.fleet.failures.append(HandedOver("handed over"))
    hold.set()
    await eventually(lambda: not pair.old.fleet.failures, what="request to be handed over")
    pair.old.app.resume()
    await pair.old.front.resume()
    assert (await waiting).status_code == 200
    assert len(pair.old.rows.rows) == 1
    await pair.old.still_serves()


@pytest.mark.requirement("B-5", "R-G3")
async def test_a_new_daemon_that_is_gone_is_a_clear_error(pair: Pair) -> None:
    pair.old.app.hand_over(pair.old.home.runtime / "nobody.sock")
    reply = await pair.old.post(CHAT, chat())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "daemon_unavailable")
    assert reply.headers["retry-after"]
    assert [row.error for row in pair.old.rows.rows] == ["daemon_unavailable"]


@pytest.mark.requirement("R-S1")
async def test_only_the_daemons_own_socket_believes_where_a_request_came_from(pair: Pair) -> None:
    told = {"x-homelab-request": "req-1234", "x-homelab-slot": str(pair.slot), "x-homelab-key": "root"}
    over_tcp = await pair.old.post(CHAT, chat(), **told)
    assert over_tcp.status_code == 200
    row = pair.old.rows.rows[-1]
    assert (row.key, row.port, row.request_id != "req-1234") == ("", 0, True)
    async with pair.old.client(control=True) as client:
        inside = await client.post(CHAT, json=chat(), headers=told)
        assert (inside.status_code, inside.json()["error"]["code"]) == (503, "slot_empty")
        for bad in ({"x-homelab-request": "evil id"}, {**told, "x-homelab-slot": "8100; x"}):
            reply = await client.post(CHAT, json=chat(), headers=bad)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-homelab-request")
    row = pair.old.rows.rows[-1]
    assert (row.key, row.port, row.request_id, row.error) == ("root", pair.slot, "req-1234", "slot_empty")


@pytest.mark.requirement("R-S1", "R-G6")
async def test_what_was_passed_on_is_not_trusted_as_if_it_came_over_the_socket(pair: Pair) -> None:
    """An admin key may restart the daemon, but not with a program of its choice; also not by way of the old daemon."""
    started: list[str] = []

    async def restart(python: str) -> dict[str, Any]:
        started.append(python)
        return {"restarted": True}

    pair.new.app._admin._restart = restart
    token = pair.old.keys.create("root", ("inference", "admin"))
    pair.hand_over()
    headers = {"authorization": f"Bearer {token}"}
    evil = await pair.old.post("/admin/restart", {"python": "/tmp/evil"}, **headers)
    assert (evil.status_code, evil.json()["error"]["code"]) == (403, "forbidden")
    assert (await pair.old.post("/admin/restart", {}, **headers)).status_code == 200
    async with pair.new.client(control=True) as client:
        assert (await client.post("/admin/restart", json={"python": "/usr/bin/python3"})).status_code == 200
    assert started == ["", "/usr/bin/python3"]
