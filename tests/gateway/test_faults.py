"""Workers that die, stall, lie or are late: a typed error, never text, and the door goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import InsufficientMemory, LoadFailed, QueueFull
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.core.waits import Wait
from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CHAT = "/v1/chat/completions"


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake:latest", "messages": [{"role": "user", "content": prompt}], **fields}


async def stream(door: Door, prompt: str, **fields: Any) -> tuple[int, list[Any], bytes]:
    """Status, events and all bytes of a streamed chat."""
    reply = await door.post(CHAT, chat(prompt, stream=True, **fields))
    events = [json.loads(line[6:]) for line in reply.content.splitlines() if line.startswith(b"data: {")]
    return reply.status_code, events, reply.content


async def stream_after_a_comment(door: Door, prompt: str, then: Callable[[], None]) -> tuple[list[Any], bytes]:
    """Events and all bytes of a streamed chat; ``then`` is called when the first bytes, a comment, have come."""
    content = b""
    async with (
        door.client() as client,
        client.stream("POST", CHAT, json=chat(prompt, stream=True)) as reply,
    ):
        assert reply.status_code == 200
        async for part in reply.aiter_bytes():
            if not content:
                then()
            content += part
    return [json.loads(line[6:]) for line in content.splitlines() if line.startswith(b"data: {")], content


@pytest.mark.requirement("R-I2", "R-G3")
@pytest.mark.parametrize("fault", ["crash_at=5", "kill_at=5", "oom_at=5", "close_at=5"])
@pytest.mark.parametrize("kind", ["own_worker", "llama_worker"])
async def test_a_worker_that_breaks_off_in_mid_stream_ends_it_with_an_error_event(
    kind: str, fault: str, open_door: OpenDoor, request: pytest.FixtureRequest
) -> None:
    async with open_door(request.getfixturevalue(kind)) as door:
        status, events, content = await stream(door, f"fake: tokens=50 rate=100 {fault}")
        assert status == 200
        assert [event["choices"][0]["delta"].get("content") for event in events[1:6]] == [
            "tok0", " tok1", " tok2", " tok3", " tok4",
        ]  # fmt: skip
        assert events[-1]["error"]["code"] == "worker_crashed"
        assert b"[DONE]" not in content
        assert all(choice["finish_reason"] is None for event in events[:-1] for choice in event["choices"])
        assert door.fleet.open_leases == 0
        assert door.rows.rows[-1].error == "worker_crashed"


@pytest.mark.requirement("R-G3")
@pytest.mark.parametrize(("fault", "status"), [("crash_at=0", 502), ("crash_at=3", 502), ("error_at=3", 502)])
@pytest.mark.parametrize("kind", ["own_worker", "llama_worker"])
async def test_a_worker_that_breaks_off_before_a_whole_reply_is_a_status(
    kind: str, fault: str, status: int, open_door: OpenDoor, request: pytest.FixtureRequest
) -> None:
    async with open_door(request.getfixturevalue(kind)) as door:
        reply = await door.post(CHAT, chat(f"fake: tokens=9 coalesce=1 {fault}"))
        assert reply.status_code == status
        assert reply.json()["error"]["type"] == "api_error"


@pytest.mark.requirement("R-I2")
async def test_a_worker_that_is_gone_is_a_typed_error_also_on_kept_connections(
    own_worker: Worker, open_door: OpenDoor
) -> None:
    async with open_door(own_worker) as door:
        await door.still_serves()
        own_worker.process.send_signal(signal.SIGKILL)
        own_worker.process.wait(10)
        for _ in range(2):
            reply = await door.post(CHAT, chat("fake: tokens=1"))
            assert (reply.status_code, reply.json()["error"]["code"]) == (502, "worker_crashed")
            assert reply.headers["x-should-retry"] == "true"


async def test_an_error_before_the_first_event_of_a_stream_is_a_status(door: Door) -> None:
    reply = await door.post(CHAT, chat("fake: tokens=5 error_at=0", stream=True))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "engine_error"


@pytest.mark.requirement("R-G3")
async def test_garbage_of_a_worker_is_a_typed_error_where_the_reply_is_put_together(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    async with open_door(workers["llama"]) as door:
        reply = await door.post(CHAT, chat("fake: tokens=5 garbage_at=2 coalesce=1"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_reply_invalid")
        await door.still_serves()


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize("kind", ["own_worker", "llama_worker"])
async def test_a_silent_worker_is_ended_and_the_client_told(
    kind: str, open_door: OpenDoor, request: pytest.FixtureRequest
) -> None:
    async with open_door(request.getfixturevalue(kind), stall_timeout_s=0.5) as door:
        status, events, content = await stream(door, "fake: tokens=9 stall_at=3 rate=100")
        assert status == 200
        assert events[-1]["error"]["code"] == "worker_stalled"
        assert b"[DONE]" not in content
        await eventually(lambda: door.fleet.condemned, what="worker to be ended")
        assert door.fleet.condemned == ["w1"]


async def test_a_slow_stream_is_not_a_silent_worker(own_worker: Worker, open_door: OpenDoor) -> None:
    async with open_door(own_worker, stall_timeout_s=0.8) as door:
        _, events, content = await stream(door, "fake: tokens=10 rate=5")
        assert b"[DONE]" in content
        assert all("error" not in event for event in events)


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_has_a_time_limit(own_worker: Worker, open_door: OpenDoor, streamed: bool) -> None:
    async with open_door(own_worker, request_deadline_s=0.5) as door:
        reply = await door.post(CHAT, chat("fake: tokens=500 rate=20", stream=streamed))
        assert reply.status_code == (200 if streamed else 504)
        assert b'"deadline_exceeded"' in reply.content
        await eventually(lambda: asyncio.to_thread(lambda: own_worker.stats()["busy"] == 0), what="slot to be free")


@pytest.mark.requirement("B-6", "R-G3")
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_the_fleet_refuses_is_a_status_with_its_numbers(one_door: Door, streamed: bool) -> None:
    one_door.fleet.refuse = QueueFull("256 requests wait", queue_length=256, retry_after_s=3.4)
    reply = await one_door.post(CHAT, chat("hi", stream=streamed))
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "4"
    assert reply.json()["error"]["facts"] == {"queue_length": 256, "retry_after_s": 3.4}
    one_door.fleet.refuse = InsufficientMemory("too big", needed_bytes=9, free_bytes=1, budget_bytes=5)
    reply = await one_door.post(CHAT, chat("hi", stream=streamed))
    assert (reply.status_code, reply.headers["x-should-retry"]) == (507, "false")
    one_door.fleet.refuse = None


@pytest.mark.requirement("B-7")
async def test_a_waiting_stream_is_told_what_it_waits_for_in_comments(
    workers: dict[str, Worker], open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homelab_llm.gateway.exchange.COMMENT_AFTER_S", 0.05)
    async with open_door(workers["own"], stall_timeout_s=0.4) as door:
        door.fleet.hold, door.fleet.stands = asyncio.Event(), Wait("load", 0.4, 3)
        events, content = await stream_after_a_comment(door, "fake: tokens=2", door.fleet.hold.set)
        assert content.startswith(b": loading fake:latest: load 40%, place 3 in the queue\n\n")
        assert [event["choices"][0]["delta"].get("content") for event in events[1:3]] == ["tok0", " tok1"]
        assert content.endswith(b"data: [DONE]\n\n")


@pytest.mark.requirement("B-7", "R-G3")
async def test_a_load_that_fails_after_comments_is_an_error_event(
    workers: dict[str, Worker], open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homelab_llm.gateway.exchange.COMMENT_AFTER_S", 0.05)
    async with open_door(workers["own"], stall_timeout_s=0.4) as door:
        hold = door.fleet.hold = asyncio.Event()

        def fail() -> None:
            door.fleet.refuse = LoadFailed("the worker ended while loading", exit_code=3)
            hold.set()

        events, content = await stream_after_a_comment(door, "hi", fail)
        assert [event["error"]["code"] for event in events] == ["load_failed"]
        assert b"[DONE]" not in content


async def test_a_worker_that_closes_kept_connections_is_reached_anew(
    home: Any, open_door: OpenDoor, request: pytest.FixtureRequest
) -> None:
    """The fake breaks a connection used twice, as llama.cpp does; its traits claim that it does not."""
    worker = request.getfixturevalue("llama_worker")
    worker.traits = WorkerTraits(pooled=True, notices_abort=True, progress=True, grammar=True, tools=True)
    async with open_door(worker) as door:
        for _ in range(4):
            await door.still_serves()


@pytest.mark.requirement("R-I3")
async def test_own_workers_are_reached_over_kept_connections_and_llama_over_new_ones(
    own_worker: Worker, llama_worker: Worker, open_door: OpenDoor
) -> None:
    for worker, kept in ((own_worker, True), (llama_worker, False)):
        async with open_door(worker) as door:
            before = worker.stats()["reused"]
            for _ in range(5):
                await door.still_serves()
            assert worker.stats()["reused"] - before == (4 if kept else 0)


async def test_never_more_requests_reach_a_worker_than_it_has_slots(own_worker: Worker, open_door: OpenDoor) -> None:
    async with open_door(own_worker) as door:
        replies = await asyncio.gather(*(door.post(CHAT, chat("fake: tokens=4 rate=40")) for _ in range(20)))
        assert [reply.status_code for reply in replies] == [200] * 20
        stats = own_worker.stats()
        assert (stats["overcommitted"], stats["most_busy"]) == (0, 4)


async def test_a_defect_of_ours_is_an_error_with_the_request_id_and_no_trace(
    one_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(shelf: object, name: str) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(one_door.shelf), "resolve", broken)
    reply = await one_door.post(CHAT, chat("hi"))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (500, "internal_error")
    assert error["facts"]["request_id"] == reply.headers["x-request-id"]
    assert "secret" not in reply.text
