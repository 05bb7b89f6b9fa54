"""The controller's routes: what they read, what they answer, how they fail; and the stream of events."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import LoadFailed, SlotInUse
from homelab_llm.core.events import Event
from homelab_llm.gateway.routes import ROUTES
from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CALLS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("/admin/slots/unload", {"slot": 8100}, ("unload", "8100")),
    ("/admin/slots/unload", {"slot": "jerry-xl"}, ("unload", "jerry-xl")),
    ("/admin/slots/unload-all", {}, ("unload_all",)),
    ("/admin/slots/adopt", {"slot": "8103"}, ("adopt", "8103")),
    ("/admin/verify", {}, ("verify",)),
    ("/admin/models/pin", {"model": "a:b", "pinned": True}, ("pin", "a:b", True)),
    ("/admin/models/unquarantine", {"model": "a:b"}, ("unquarantine", "a:b")),
    ("/admin/fit", {"model": "a:b"}, ("fit", "a:b", None)),
    ("/admin/fit", {"model": "a:b", "context_tokens": 9}, ("fit", "a:b", 9)),
    ("/admin/explain", {"request": {"model": "x"}}, ("explain", {"model": "x"}, 0)),
    ("/admin/explain", {"request": {"model": "x"}, "slot": 8100}, ("explain", {"model": "x"}, 8100)),
    ("/admin/explain", {"request": {"n": 1}, "slot": "jerry-l"}, ("explain", {"n": 1, "model": "jerry-l"}, 0)),
    ("/admin/registry/refresh", {}, ("refresh",)),
]
STEPS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("/admin/slots/load", {"model": "a:b", "slot": "auto"}, ("load", "a:b", "auto", False)),
    ("/admin/slots/load", {"model": "a:b", "slot": 8100, "force": True}, ("load", "a:b", "8100", True)),
    ("/admin/slots/swap", {"model": "a:b", "slot": "jerry-xl"}, ("swap", "jerry-xl", "a:b")),
    ("/admin/reconcile", {}, ("reconcile", False)),
    ("/admin/reconcile", {"apply": True}, ("reconcile", True)),
]


@pytest.mark.requirement("R-F3", "R-G5")
async def test_a_verb_reaches_the_controller_as_it_was_sent(one_door: Door) -> None:
    controller = one_door.controller
    async with one_door.client(control=True) as client:
        for path, body, call in CALLS:
            controller.error = None
            reply = await client.post(path, json=body)
            told = {"refreshed": True} if call == ("refresh",) else {"ok": True}
            assert (reply.status_code, reply.json()) == (200, told), path
            assert controller.calls.pop() == call
            controller.error = SlotInUse("port 8100 serves another model", hint="mlxctl unload 8100", port=8100)
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "slot_in_use"), path
            assert refused.json()["error"]["facts"] == {"port": 8100}


@pytest.mark.requirement("R-F3", "B-7")
@pytest.mark.parametrize(("path", "body", "call"), STEPS)
async def test_steps_are_json_lines_and_an_error_is_the_last_of_them(
    one_door: Door, path: str, body: dict[str, Any], call: tuple[Any, ...]
) -> None:
    async with one_door.client(control=True) as client:
        reply = await client.post(path, json=body)
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(line) for line in reply.text.splitlines()] == one_door.controller.steps
        assert one_door.controller.calls == [call]
        one_door.controller.error = LoadFailed("the worker ended", hint="mlxctl logs", exit_code=3)
        failed = await client.post(path, json=body)
        first, last = [json.loads(line) for line in failed.text.splitlines()]
    assert (first["stage"], last["error"]["code"], last["error"]["facts"]) == (
        "loading",
        "load_failed",
        {"exit_code": 3},
    )
    assert one_door.controller.closed_early == 0


@pytest.mark.requirement("R-F3")
async def test_a_client_that_leaves_calls_the_work_off(one_door: Door) -> None:
    one_door.controller.hold = asyncio.Event()
    reader, writer = await asyncio.open_unix_connection(str(one_door.home.daemon_sock))
    body = b'{"model":"a:b","slot":"auto"}'
    head = b"POST /admin/slots/load HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await asyncio.wait_for(reader.readuntil(b"loading"), 10)
    writer.close()
    await eventually(lambda: one_door.controller.closed_early == 1, what="work to be called off")
    await eventually(lambda: one_door.app.running == 0, what="request to end")


BAD: list[tuple[str, Any, str]] = [
    ("/admin/slots/load", {}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b"}, "invalid_input"),
    ("/admin/slots/load", {"model": "", "slot": "auto"}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": -1}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": 65536}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": True}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": 8100.0}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": ""}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": ["8100"]}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": "x" * 64}, "body_too_large"),
    ("/admin/slots/load", {"model": "x" * 301, "slot": "auto"}, "body_too_large"),
    ("/admin/slots/load", {"model": "a:b", "slot": "auto", "force": 1}, "invalid_input"),
    ("/admin/slots/load", {"model": "a:b", "slot": "auto", "forced": True}, "unknown_field"),
    ("/admin/slots/swap", {"slot": 8100}, "invalid_input"),
    ("/admin/slots/unload", {}, "invalid_input"),
    ("/admin/slots/unload", {"slot": None}, "invalid_input"),
    ("/admin/slots/unload", {"slot": 7}, "slot_not_found"),
    ("/admin/slots/unload", {"slot": 8110}, "slot_not_found"),
    ("/admin/slots/unload-all", {"all": True}, "unknown_field"),
    ("/admin/slots/adopt", [], "invalid_input"),
    ("/admin/reconcile", {"apply": "yes"}, "invalid_input"),
    ("/admin/verify", {"fix": True}, "unknown_field"),
    ("/admin/models/pin", {"model": "a:b"}, "invalid_input"),
    ("/admin/models/pin", {"model": "a:b", "pinned": "true"}, "invalid_input"),
    ("/admin/models/unquarantine", {"model": 1}, "invalid_input"),
    ("/admin/fit", {"model": "a:b", "context_tokens": 0}, "invalid_input"),
    ("/admin/fit", {"model": "a:b", "context_tokens": 2**31}, "invalid_input"),
    ("/admin/explain", {"request": "x"}, "invalid_input"),
    ("/admin/explain", {"request": {"x": list(range(6000))}}, "body_too_large"),
    ("/admin/registry/refresh", {"file": "/etc/passwd"}, "unknown_field"),
]


@pytest.mark.requirement("R-S1", "R-F3")
async def test_bad_input_of_a_verb_is_a_clear_error_and_reaches_nobody(one_door: Door) -> None:
    async with one_door.client(control=True) as client:
        for path, body, code in BAD:
            reply = await client.post(path, json=body)
            error = reply.json()["error"]
            assert (400 <= reply.status_code < 500, error["code"]) == (True, code), (path, body, error)
            assert len(error["message"]) < 300
    assert one_door.controller.calls == []
    await one_door.still_serves()


@pytest.mark.requirement("R-G6")
async def test_without_an_admin_key_nothing_is_controlled(one_door: Door) -> None:
    token = one_door.keys.create("user")
    async with one_door.client() as client:
        for route in ROUTES:
            if route.access == "admin":
                for headers, status in (({}, 401), ({"authorization": f"Bearer {token}"}, 403)):
                    reply = await client.request(route.methods[0], route.path, headers=headers, json={})
                    assert reply.status_code == status, route.path
    assert one_door.controller.calls == []


async def test_a_daemon_without_registry_says_so(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"], controlled=False) as door, door.client(control=True) as client:
        for path, body, _ in [*CALLS, *STEPS]:
            reply = await client.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict"), path
        for path in ("/admin/slots", "/admin/events"):
            assert (await client.get(path)).status_code == 409
        assert (await client.post("/admin/restart", json={})).status_code == 409


async def test_the_slots_are_told_as_the_controller_tells_them(one_door: Door) -> None:
    one_door.controller.answer = {"slots": [{"port": 8100}], "drift": False}
    async with one_door.client(control=True) as client:
        assert (await client.get("/admin/slots")).json() == one_door.controller.answer


# --- events ---


async def read_events(door: Door, target: str, until: bytes, **headers: str) -> list[bytes]:
    """What a reader of events gets up to ``until``, as blocks."""
    reader, writer = await asyncio.open_unix_connection(str(door.home.daemon_sock))
    told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{told}\r\n".encode())
    try:
        content = await asyncio.wait_for(reader.readuntil(until), 10)
    finally:
        writer.close()
    assert b"200 OK" in content
    assert b"text/event-stream" in content
    return [block for block in content.split(b"\n\n") if b"event: " in block]


def ids(blocks: list[bytes]) -> list[int]:
    return [int(line[4:]) for block in blocks for line in block.splitlines() if line.startswith(b"id: ")]


@pytest.mark.requirement("R-F6", "B-7")
async def test_events_are_told_as_they_happen_with_id_kind_and_data(one_door: Door) -> None:
    reading = asyncio.create_task(read_events(one_door, "/admin/events", b'"kind":"evicted"'))
    await eventually(lambda: one_door.app.running == 1, what="reader")
    await eventually(lambda: bool(one_door.events._subscriptions), what="subscription")
    one_door.events.publish(Event("loading", "loads fake", model="fake:latest", facts={"needed_bytes": 7}))
    one_door.events.publish(Event("evicted", "gone\nby two lines"))
    blocks = await reading
    lines = [line for line in blocks[0].splitlines() if b": " in line][-3:]
    assert lines[:2] == [b"id: 1", b"event: loading"]
    told = json.loads(lines[2].removeprefix(b"data: "))
    assert (told["kind"], told["model"], told["facts"], told["id"]) == (
        "loading",
        "fake:latest",
        {"needed_bytes": 7},
        1,
    )
    await eventually(lambda: one_door.app.running == 0, what="reader to be noticed as gone")
    assert one_door.events._subscriptions == set()


async def test_a_reader_resumes_after_the_last_event_it_saw(one_door: Door) -> None:
    for number in range(5):
        one_door.events.publish(Event("loaded" if number % 2 else "loading", f"{number}"))
    last = b'"id":5}'
    assert ids(await read_events(one_door, "/admin/events?after=3", last)) == [4, 5]
    assert ids(await read_events(one_door, "/admin/events", last, Last_Event_ID="2")) == [3, 4, 5]
    assert ids(await read_events(one_door, "/admin/events?after=4", last, Last_Event_ID="1")) == [5]
    assert ids(await read_events(one_door, "/admin/events?after=0&kinds=loading", last)) == [1, 3, 5]
    assert ids(await read_events(one_door, "/admin/events?after=999", last)) == [1, 2, 3, 4, 5]  # of an earlier life


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many(one_door: Door) -> None:
    big = "x" * 5_000
    reader, writer = await asyncio.open_unix_connection(str(one_door.home.daemon_sock), limit=1 << 20)
    writer.write(b"GET /admin/events HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b": events"), 10)
    for _ in range(3000):
        one_door.events.publish(Event("loading", big))
    told = 0
    content = bytearray()
    while b"id: 3000\n" not in content[-20_000:]:
        content += await asyncio.wait_for(reader.read(1 << 20), 10)
    for line in content.splitlines():
        if line.startswith(b'data: {"dropped":'):
            told += int(line.removeprefix(b'data: {"dropped":').rstrip(b"}"))
    got = content.count(b"event: loading")
    assert told > 0
    assert got + told == 3000
    writer.close()


async def test_an_idle_stream_of_events_is_kept_open_by_comments(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    async with open_door(workers["own"], request_deadline_s=0.2) as door:
        door.app._events._comment_s = 0.05
        reader, writer = await asyncio.open_unix_connection(str(door.home.daemon_sock))
        writer.write(b"GET /admin/events HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(8):  # longer than a request may last
            await asyncio.wait_for(reader.readuntil(b": waiting\n\n"), 10)
        writer.close()


async def test_a_stop_ends_streams_of_events_at_once(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"]) as door:
        reading = asyncio.create_task(read_events(door, "/admin/events", b"0\r\n\r\n"))
        await eventually(lambda: bool(door.events._subscriptions), what="subscription")
        await asyncio.wait_for(door.front.stop(drain_s=30), 10)
        assert await reading == []


QUERIES = [
    "after=x", "after=", "after=-1", "after=1e3", "after=" + "9" * 30, "kinds=a b", "kinds=", "kinds=A", "since=1",
    "after=1&after=1&" * 5 + "after", "kinds=" + "k" * 50, "follow=maybe",
]  # fmt: skip


@pytest.mark.requirement("R-S1")
async def test_a_bad_query_for_events_is_refused(one_door: Door) -> None:
    async with one_door.client(control=True) as client:
        for query in QUERIES:
            reply = await client.get(f"/admin/events?{query}")
            assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), query
