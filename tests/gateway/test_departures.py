"""Clients that leave: the engine is freed at once, nothing is left open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CLIENTS = 200 if os.environ.get("HOMELAB_SIZE") == "full" else 30
AT_ONCE = 16


def request(prompt: str, **fields: Any) -> bytes:
    body = {"model": "fake:latest", "messages": [{"role": "user", "content": prompt}], **fields}
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(content) + content


async def leave(door: Door, content: bytes, *, after: bytes, abruptly: bool) -> None:
    """Send a request, wait until the reply has ``after`` (or, without, until a lease or a place), and hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    before = len(door.fleet.granted) + len(door.fleet.waiting)
    writer.write(content)
    if after:
        await asyncio.wait_for(reader.readuntil(after), 30)
    else:
        await eventually(lambda: len(door.fleet.granted) + len(door.fleet.waiting) > before, what="place")
    if abruptly:
        writer.transport.abort()
    else:
        writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def nothing_is_left(door: Door) -> None:
    fleet = door.fleet
    await eventually(lambda: fleet.open_leases == 0 and not fleet.waiting, what="leases and places to end")
    await eventually(lambda: door.app.running == 0, what="requests to end")
    stats = await eventually(
        lambda: asyncio.to_thread(lambda: found if (found := fleet.worker.stats())["busy"] == 0 else None),
        what="slots to be free",
    )
    assert stats["overcommitted"] == 0
    assert all(lease.ended == 1 for lease in fleet.granted)


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize("abruptly", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize(
    ("prompt", "stream", "after"),
    [
        ("fake: tokens=5000 rate=50", True, b"tok1"),
        ("fake: tokens=50 prefill_s=0.5", True, b""),
        ("fake: tokens=20 rate=20", False, b""),
    ],
    ids=["mid-stream", "prefill", "whole reply"],
)
@pytest.mark.parametrize("kind", ["own_worker", "llama_worker"])
async def test_clients_that_leave_free_every_slot(
    kind: str, prompt: str, stream: bool, after: bytes, abruptly: bool, open_door: OpenDoor, request_worker: Any
) -> None:
    worker = request_worker(kind)
    async with open_door(worker) as door:
        content = request(prompt, stream=stream)
        for _ in range(0, CLIENTS, AT_ONCE):
            queued = not after and worker.traits.notices_abort  # else the real fleet would keep the slots a while
            together = AT_ONCE if queued else worker.parallel
            await asyncio.gather(*(leave(door, content, after=after, abruptly=abruptly) for _ in range(together)))
            await eventually(lambda: door.fleet.open_leases == 0, what="leases to end")
            await eventually(lambda: asyncio.to_thread(lambda: worker.stats()["busy"] == 0), what="slots to be free")
        await nothing_is_left(door)
        await door.still_serves()
        assert {row.error for row in door.rows.rows[:-1]} == {"cancelled"}


@pytest.fixture
def request_worker(request: pytest.FixtureRequest) -> Any:
    """A worker of a kind, by the name of its fixture."""
    return request.getfixturevalue


@pytest.mark.requirement("R-I3")
async def test_a_client_that_leaves_after_a_large_request_is_noticed_too(
    own_worker: Worker, open_door: OpenDoor
) -> None:
    async with open_door(own_worker) as door:
        content = request("x" * 3_000_000 + " fake: tokens=5000 rate=50", stream=True)
        await leave(door, content, after=b"tok1", abruptly=False)
        await nothing_is_left(door)


@pytest.mark.requirement("R-I3")
async def test_a_client_that_leaves_the_queue_gives_up_its_place(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    async with open_door(workers["own"]) as door:
        door.fleet.hold = asyncio.Event()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(request("hello"))
        await eventually(lambda: door.app.running == 1, what="request to wait")
        writer.close()
        await eventually(lambda: door.app.running == 0, what="request to end")
        assert door.fleet.granted == []
        assert [row.error for row in door.rows.rows] == ["cancelled"]
        assert await reader.read() == b""


async def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing(one_door: Door) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", one_door.port)
    content = request("hello")
    writer.write(content[:-10])
    await eventually(lambda: one_door.app.running == 1, what="request to begin")
    writer.close()
    await eventually(lambda: one_door.app.running == 0, what="request to end")
    assert one_door.fleet.granted == []


@pytest.mark.requirement("R-I3")
async def test_a_client_that_stops_reading_is_let_go(talkative_worker: Worker, open_door: OpenDoor) -> None:
    async with open_door(talkative_worker, stall_timeout_s=0.6) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 10)
        transport = writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request("fake: tokens=300000 coalesce=512", stream=True, max_tokens=300_000))
        await eventually(lambda: door.fleet.granted, what="lease")
        await eventually(lambda: door.fleet.open_leases == 0, within_s=30, what="lease to end")
        assert door.rows.rows[0].error == "cancelled"
        assert door.fleet.condemned == []
        transport.abort()
        await nothing_is_left(door)
