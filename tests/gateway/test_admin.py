"""The admin API, the plain endpoints, the description of them all, and the end of the door."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import LoadFailed
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.shaping import Shaped
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.gateway.routes import ROUTES
from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CHAT = "/v1/chat/completions"


def lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.requirement("B-7")
async def test_a_load_tells_its_progress_line_by_line(one_door: Door) -> None:
    async with one_door.client(control=True) as client:
        reply = await client.post("/admin/models/load", json={"model": "fake", "keep_alive": "10m"})
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert lines(reply.content) == [
        {"stage": "loading", "done": 0.5, "place": 0},
        {"stage": "ready", "done": 1.0, "place": 0},
    ]
    assert one_door.fleet.keep_alives == [600.0]


async def test_a_load_that_fails_ends_with_the_error_as_a_line_or_a_status(one_door: Door) -> None:
    one_door.fleet.refuse = LoadFailed("it ended", hint="mlxctl logs", exit_code=3)
    async with one_door.client(control=True) as client:
        first = await client.post("/admin/models/load", json={"model": "fake"})
        assert (first.status_code, first.json()["error"]["code"]) == (502, "load_failed")
        one_door.fleet.refuse, one_door.fleet.hold = None, asyncio.Event()
        one_door.fleet.hold.set()
        async with client.stream("POST", "/admin/models/load", json={"model": "fake"}) as later:
            read = later.aiter_lines()
            assert json.loads(await anext(read))["stage"] == "loading"
            one_door.fleet.refuse = LoadFailed("it ended", hint="mlxctl logs", exit_code=3)
            rest = [json.loads(line) async for line in read]
        assert rest[-1].get("error", {}).get("code") in ("load_failed", None)
    one_door.fleet.refuse = None


async def test_a_client_that_leaves_ends_its_wait_for_a_load(one_door: Door) -> None:
    one_door.fleet.hold = asyncio.Event()
    _, writer = await asyncio.open_unix_connection(str(one_door.home.daemon_sock))
    body = b'{"model":"fake"}'
    writer.write(
        b"POST /admin/models/load HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    await eventually(lambda: one_door.app.running == 1, what="load to wait")
    writer.close()
    await eventually(lambda: one_door.app.running == 0, what="load to be given up")


async def test_an_unload_says_whether_there_was_something(one_door: Door) -> None:
    async with one_door.client(control=True) as client:
        reply = await client.post("/admin/models/unload", json={"model": "fake", "force": True})
        assert reply.json() == {"unloaded": True}
        assert one_door.fleet.unloaded == [("fake:latest", True)]
        unknown = await client.post("/admin/models/unload", json={"model": "fake", "now": True})
        assert unknown.json()["error"]["code"] == "unknown_field"
        missing = await client.post("/admin/models/unload", json={"model": "none"})
        assert missing.status_code == 404


async def test_status_models_and_shutdown(one_door: Door) -> None:
    async with one_door.client(control=True) as client:
        status = (await client.get("/admin/status")).json()
        assert {"version", "pid", "warnings", "budget_bytes", "used_bytes", "workers"} <= set(status)
        assert [row["id"] for row in (await client.get("/admin/models")).json()["models"]] == ["w1"]
        reply = await client.post("/admin/shutdown")
        assert (reply.status_code, one_door.shutdowns) == (202, [True])


@pytest.mark.requirement("R-G1")
async def test_the_plain_endpoints_answer_get_and_head(one_door: Door) -> None:
    async with one_door.client() as client:
        for path in ("/", "/healthz", "/readyz", "/v1/models", "/v1/models/fake", "/openapi.json"):
            got = await client.get(path)
            assert got.status_code == 200, path
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == got.headers["content-length"]
            assert got.headers["x-request-id"].startswith("req-")
            assert "server" not in got.headers
            assert "date" in got.headers
        assert (await client.get("/")).text == "homelab-llm\n"


async def test_the_model_list_follows_the_store(one_door: Door) -> None:
    async with one_door.client() as client:
        before = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
        one_door.shelf.held["new:latest"] = replace(one_door.shelf.held["fake:latest"], name="new:latest")
        unchanged = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
        one_door.shelf.version += 1
        after = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
    assert unchanged == before
    assert after == [*before, "new:latest"]


async def test_the_api_description_lists_every_route_and_field(one_door: Door) -> None:
    async with one_door.client() as client:
        told = (await client.get("/openapi.json")).json()
    assert {(path, method.upper()) for path, methods in told["paths"].items() for method in methods} == {
        (route.path, method) for route in ROUTES for method in route.methods
    }
    schema = told["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["temperature"]["maximum"] == 2
    assert set(schema["required"]) == {"model", "messages"}
    assert schema["additionalProperties"] is False
    query = [parameter["name"] for parameter in told["paths"]["/admin/events"]["get"]["parameters"]]
    assert query == ["after", "kinds", "follow"]


def test_every_route_is_complete() -> None:
    assert len({(route.path, method) for route in ROUTES for method in route.methods}) == sum(
        len(route.methods) for route in ROUTES
    )
    assert all(route.summary.endswith(".") for route in ROUTES)
    assert {route.access for route in ROUTES if route.path.startswith("/admin")} == {"admin"}
    assert [route.path for route in ROUTES if route.access == "open"] == ["/healthz"]


class CallShape:
    """Turns the text of an answer into one tool call."""

    def __init__(self) -> None:
        self.text = ""

    def feed(self, content: str) -> list[dict[str, Any]]:
        self.text += content
        return []

    def finish(self, _reason: str = "stop") -> tuple[list[dict[str, Any]], str]:
        function = {"name": "get_weather", "arguments": self.text}
        return [{"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}], "tool_calls"


class CallShaper:
    """Forces a tool call by a schema, as the kit does."""

    def shape(self, body: dict[str, Any], facts: ModelFacts, traits: WorkerTraits) -> Shaped:  # noqa: ARG002
        (tool,) = body["tools"]
        told = {name: value for name, value in body.items() if name != "tools"}
        return Shaped({**told, "json_schema": tool["function"]["parameters"]}, CallShape)


@pytest.mark.parametrize("kind", ["own", "llama"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_shaped_request_is_answered_with_a_tool_call_streamed_or_not(
    kind: str, stream: bool, workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    body = {
        "model": "fake", "messages": [{"role": "user", "content": "hi"}], "tools": [tool], "stream": stream,
    }  # fmt: skip
    async with open_door(workers[kind], shaper=CallShaper()) as door:
        reply = await door.post(CHAT, body)
    assert reply.status_code == 200, reply.text
    if stream:
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
        finish = events[-1]["choices"][0]["finish_reason"]
        assert reply.text.endswith("data: [DONE]\n\n")
    else:
        choice = reply.json()["choices"][0]
        calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
        assert choice["message"]["content"] is None
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert finish == "tool_calls"


@pytest.mark.requirement("R-G3")
async def test_a_stop_lets_short_requests_end_and_ends_long_ones_with_an_error_event(
    own_worker: Worker, open_door: OpenDoor
) -> None:
    async with open_door(own_worker) as door:

        def ask(prompt: str) -> asyncio.Task[Any]:
            body = {"model": "fake", "messages": [{"role": "user", "content": prompt}], "stream": True}
            return asyncio.get_running_loop().create_task(door.post(CHAT, body))

        short, long = ask("fake: tokens=5 rate=20"), ask("fake: tokens=9000 rate=20")
        await eventually(lambda: door.fleet.open_leases == 2, what="both to run")
        port = door.port
        await door.front.stop(drain_s=1.5)
        assert (await short).text.endswith("data: [DONE]\n\n")
        told = (await long).text
        assert '"daemon_unavailable"' in told.rstrip().splitlines()[-1]
        assert "[DONE]" not in told
        assert door.fleet.open_leases == 0
        assert not door.home.daemon_sock.exists()
        with pytest.raises(OSError, match=r"refused|Connect"):
            await asyncio.open_connection("127.0.0.1", port)


async def test_keep_alive_of_a_request_reaches_the_fleet(one_door: Door) -> None:
    for given in (30, "5m", -1, 0, None):
        body = {"model": "fake", "messages": [{"role": "user", "content": "fake: tokens=1"}], "keep_alive": given}
        assert (await one_door.post(CHAT, body)).status_code == 200
    assert one_door.fleet.keep_alives == [30.0, 300.0, -1.0, 0.0, None]
