"""Slot ports and aliases: a request goes to the slot's model, whatever it says; the ports serve nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import (
    Cancelled,
    HomelabError,
    InsufficientMemory,
    InvalidInput,
    LoadFailed,
    ModelQuarantined,
)
from homelab_llm.gateway.dialects.openai import preset
from homelab_llm.gateway.routes import ROUTES
from homelab_llm.gateway.seams import Target
from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door

CHAT = "/v1/chat/completions"


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "fake: tokens=2"}], **fields}


def slots_of(door: Door) -> list[int]:
    return [listener.slot for listener in door.front.listeners if listener.slot]


def serve(door: Door, **told: Any) -> int:
    """The first slot serves the fake model; returns its port."""
    door.router.point("jerry-xl", Target(door.shelf.held["fake:latest"], alias="jerry-xl", **told))
    return slots_of(door)[0]


@pytest.mark.requirement("R-F1")
@pytest.mark.parametrize("said", [{}, {"model": "fake:latest"}, {"model": "gpt-4o"}, {"model": ""}, {"model": 7}])
async def test_a_slot_port_serves_its_model_whatever_the_request_names(slot_door: Door, said: dict[str, Any]) -> None:
    port = serve(slot_door)
    reply = await slot_door.post(CHAT, chat(**said), port)
    assert (reply.status_code, reply.json()["model"]) == (200, "fake:latest"), reply.text
    (row,) = slot_door.rows.rows
    assert (row.model, row.alias, row.port, row.priority) == ("fake:latest", "jerry-xl", port, "interactive")


@pytest.mark.requirement("R-F1")
async def test_every_inference_path_is_bound_to_the_slot(slot_door: Door) -> None:
    port = serve(slot_door)
    text = await slot_door.post("/v1/completions", {"prompt": "fake: tokens=1"}, port)
    assert (text.status_code, text.json()["model"]) == (200, "fake:latest")
    slot_door.router.point("jerry-l", Target(slot_door.shelf.held["embedder:latest"], alias="jerry-l"))
    vector = await slot_door.post("/v1/embeddings", {"input": "x", "model": "fake:latest"}, slots_of(slot_door)[1])
    assert vector.status_code == 200, vector.text
    refused = await slot_door.post("/v1/embeddings", {"input": "x"}, port)
    assert refused.json()["error"]["code"] == "unsupported_request"


@pytest.mark.requirement("R-F1")
async def test_a_slot_lists_exactly_its_model(slot_door: Door) -> None:
    port = slots_of(slot_door)[0]
    assert (await slot_door.get("/v1/models", port)).json() == {"object": "list", "data": []}
    serve(slot_door)
    listed = (await slot_door.get("/v1/models", port)).json()["data"]
    assert [row["id"] for row in listed] == ["fake:latest"]
    for name in ("fake:latest", "fake", "jerry-xl"):
        assert (await slot_door.get(f"/v1/models/{name}", port)).json() == listed[0]
    for name in ("embedder:latest", "nothing", "jerry-l"):
        assert (await slot_door.get(f"/v1/models/{name}", port)).status_code == 404


@pytest.mark.requirement("R-F1", "R-G6")
async def test_slot_ports_have_inference_and_health_only(slot_door: Door) -> None:
    port = serve(slot_door)
    token = slot_door.keys.create("root", ("inference", "admin"))
    served = set()
    async with slot_door.client(headers={"authorization": f"Bearer {token}"}) as client:
        for route in ROUTES:
            path = route.path.replace("{id}", "fake:latest")
            reply = await client.request(route.methods[0], slot_door.at(path, port), json={})
            if reply.status_code != 404:
                served.add(route.path)
            else:
                assert reply.json()["error"]["code"] == "endpoint_not_found"
    assert served == {
        "/healthz", "/readyz", "/v1/models", "/v1/models/{id}", CHAT, "/v1/completions", "/v1/embeddings"
    }  # fmt: skip
    assert slot_door.shutdowns == []


@pytest.mark.requirement("R-F1", "B-6")
@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_slot_names_the_command_that_fills_it(slot_door: Door, stream: bool) -> None:
    port = slots_of(slot_door)[0]
    for reply in (
        await slot_door.post(CHAT, chat(stream=stream), port),
        await slot_door.post(CHAT, chat(model="jerry-xl", stream=stream)),
        await slot_door.get("/readyz", port),
    ):
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (503, "slot_empty")
        assert error["hint"] == f"mlxctl load MODEL {port}"
        assert error["facts"] == {"port": port, "alias": "jerry-xl"}
        assert int(reply.headers["retry-after"]) >= 1
    assert (await slot_door.get("/healthz", port)).status_code == 200
    serve(slot_door)
    assert (await slot_door.get("/readyz", port)).status_code == 200
    assert (await slot_door.get("/readyz")).status_code == 200


@pytest.mark.requirement("R-S1", "R-F1")
async def test_hosts_and_origins_are_checked_on_slot_ports_too(slot_door: Door) -> None:
    port = serve(slot_door)
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        reply = await slot_door.post(CHAT, chat(), port, **headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.requirement("R-F1", "R-S1")
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"", 400, "invalid_input"), (b"[]", 400, "invalid_input"), (b'{"model":"x"}', 400, "invalid_input"),
     (b'{"slot":1}', 400, "unknown_field"), (b'{"model":"' + b"m" * 40_000_000 + b'"}', 413,
     "body_too_large")],
    ids=["empty", "list", "no messages", "unknown field", "40 MB"],
)  # fmt: skip
async def test_a_bad_body_on_a_slot_port_is_a_clear_error(slot_door: Door, body: bytes, status: int, code: str) -> None:
    port = serve(slot_door)
    reply = await slot_door.post(CHAT, body, port)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert (await slot_door.post(CHAT, chat(), port)).status_code == 200


@pytest.mark.requirement("R-F1", "R-G4")
async def test_an_alias_is_a_model_name_on_the_front_address(slot_door: Door) -> None:
    serve(slot_door)
    reply = await slot_door.post(CHAT, chat(model="jerry-xl"))
    assert (reply.status_code, reply.json()["model"]) == (200, "fake:latest")
    (row,) = slot_door.rows.rows
    assert (row.model, row.alias, row.port) == ("fake:latest", "jerry-xl", 0)
    unknown = await slot_door.post(CHAT, chat(model="jerry-q"))
    assert unknown.json()["error"]["code"] == "model_not_found"


@pytest.mark.requirement("R-F1")
async def test_aliases_that_serve_are_listed_after_the_models(slot_door: Door) -> None:
    async def listed() -> list[str]:
        return [row["id"] for row in (await slot_door.get("/v1/models")).json()["data"]]

    before = await listed()
    serve(slot_door)
    assert await listed() == [*before, "jerry-xl"]
    assert (await slot_door.get("/v1/models/jerry-xl")).json()["id"] == "jerry-xl"
    slot_door.router.point("jerry-xl", None)
    assert await listed() == before


@pytest.mark.requirement("R-F2")
async def test_the_registry_speaks_where_the_request_says_nothing(slot_door: Door) -> None:
    port = serve(slot_door, max_output_tokens=3, keep_alive_s=77.0, params={"max_tokens": 2, "temperature": 0})
    question = {"messages": [{"role": "user", "content": "hi"}]}

    async def tokens(**said: Any) -> int:
        told = (await slot_door.post(CHAT, {**question, **said}, port)).json()
        return int(told["usage"]["completion_tokens"])

    assert [await tokens(), await tokens(max_tokens=1), await tokens(max_completion_tokens=100)] == [2, 1, 3]
    serve(slot_door, max_output_tokens=3)
    assert await tokens() == 3
    assert await tokens(keep_alive=5) == 3
    assert slot_door.fleet.keep_alives == [77.0, 77.0, 77.0, None, 5.0]


@pytest.mark.requirement("R-F2")
@pytest.mark.parametrize("params", [{"temperature": 9}, {"temperatures": 1}, {"messages": []}, {"model": "x"}])
async def test_bad_parameters_of_the_registry_are_named_and_not_sent(slot_door: Door, params: dict[str, Any]) -> None:
    port = serve(slot_door, params=params)
    reply = await slot_door.post(CHAT, chat(), port)
    error = reply.json()["error"]
    assert error["code"] == "registry_invalid"
    assert "fake:latest" in error["message"]
    assert next(iter(params)) in error["message"]


def test_presets_fill_gaps_bound_answers_and_keep_to_their_endpoint() -> None:
    body: dict[str, Any] = {"temperature": 0.5, "chat_template_kwargs": {"a": 1}}
    given = {"temperature": 1, "top_p": 0.9, "chat_template_kwargs": {"a": 2, "b": 3}, "reasoning_effort": "low"}
    preset(body, given, 10, chat=True)
    template = {"reasoning_effort": "low", "a": 1, "b": 3}
    assert body == {"temperature": 0.5, "top_p": 0.9, "chat_template_kwargs": template, "max_tokens": 10}
    text: dict[str, Any] = {"max_tokens": 5}
    preset(text, given, 10, chat=False)
    assert text == {"temperature": 1, "top_p": 0.9, "max_tokens": 5}
    with pytest.raises(InvalidInput):
        preset({}, {"top_p": 2}, 0, chat=True)


FAILURES = [
    LoadFailed("the worker ended", exit_code=3),
    InsufficientMemory("too big", needed_bytes=9, free_bytes=1, budget_bytes=5),
    ModelQuarantined("it failed three times"),
    Cancelled("the model was unloaded"),
]


@pytest.mark.requirement("R-F3")
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.code)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_follows_its_alias_when_a_swap_fails_and_is_put_back(
    slot_door: Door, failure: HomelabError, stream: bool
) -> None:
    port = serve(slot_door)
    other = replace(slot_door.shelf.held["fake:latest"], name="other:latest")
    slot_door.router.point("jerry-xl", Target(other, alias="jerry-xl"))
    slot_door.fleet.failures.append(failure)
    slot_door.router.swapping = asyncio.Event()
    waiting = asyncio.create_task(slot_door.post(CHAT, chat(stream=stream), port))
    await eventually(lambda: not slot_door.fleet.failures, what="load to fail")
    serve(slot_door)
    slot_door.router.swapping.set()
    reply = await waiting
    assert reply.status_code == 200, reply.text
    assert [name for name, _ in slot_door.fleet.asked] == ["other:latest", "fake:latest"]
    assert [row.model for row in slot_door.rows.rows] == ["fake:latest"]


@pytest.mark.requirement("R-F3")
async def test_a_failure_that_is_no_swap_is_told_at_once_and_following_ends(slot_door: Door) -> None:
    port = serve(slot_door)
    slot_door.fleet.failures.append(LoadFailed("the worker ended", exit_code=3))
    assert (await slot_door.post(CHAT, chat(), port)).json()["error"]["code"] == "load_failed"
    slot_door.fleet.failures.append(LoadFailed("the worker ended", exit_code=3))
    assert (await slot_door.post(CHAT, chat(model="fake"))).json()["error"]["code"] == "load_failed"
    assert len(slot_door.fleet.asked) == 2


@pytest.fixture
def foreign_server() -> Iterator[int]:
    """A model server of another origin on a port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = int(probe.getsockname()[1])
    path = Path(f"/tmp/hlf-{port}.http")
    argv = [sys.executable, "-m", "homelab_llm.testing.fake_engine", "--socket", str(path), "--port", str(port)]
    process = subprocess.Popen([*argv, "--model", "theirs"], stdout=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait(10)
    path.unlink(missing_ok=True)


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.requirement("R-F1")
async def test_an_adopted_server_is_passed_through_and_its_end_is_a_typed_error(
    slot_door: Door, foreign_server: int
) -> None:
    theirs = replace(slot_door.shelf.held["fake:latest"], name="theirs")
    port = serve(slot_door)
    slot_door.router.point("jerry-xl", Target(theirs, alias="jerry-xl", foreign=("127.0.0.1", foreign_server)))
    await eventually(lambda: answers(foreign_server), what="server to listen")
    whole = await slot_door.post(CHAT, chat(), port)
    assert (whole.status_code, whole.json()["model"]) == (200, "theirs"), whole.text
    streamed = await slot_door.post(CHAT, chat(stream=True, n=2), port)
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert {choice["index"] for event in events for choice in event["choices"]} == {0, 1}
    too_long = await slot_door.post(CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]}, port)
    assert too_long.json()["error"]["code"] == "context_overflow"
    crash = await slot_door.post(CHAT, {"messages": [{"role": "user", "content": "fake: crash_at=0"}]}, port)
    assert (crash.status_code, crash.json()["error"]["code"]) == (502, "engine_error")
    await eventually(lambda: not answers(foreign_server), what="server to be gone")
    gone = await slot_door.post(CHAT, chat(), port)
    assert (gone.status_code, gone.json()["error"]["code"]) == (502, "engine_error")
    assert (slot_door.fleet.asked, slot_door.fleet.condemned) == ([], [])


@pytest.mark.requirement("B-10")
@pytest.mark.parametrize(
    ("headers", "tier", "batch"),
    [({}, None, False), ({"x-priority": "interactive"}, "auto", False), ({}, "default", False),
     ({}, "priority", False), ({"x-priority": "batch"}, None, True), ({"x-priority": "Batch"}, "auto", True),
     ({}, "flex", True), ({"x-priority": "interactive"}, "flex", True)],
)  # fmt: skip
async def test_a_request_can_stand_back(one_door: Door, headers: dict[str, str], tier: str | None, batch: bool) -> None:
    body = {**chat(model="fake"), **({"service_tier": tier} if tier else {})}
    assert (await one_door.post(CHAT, body, **headers)).status_code == 200
    vector = {"model": "embedder", "input": "x", **({"service_tier": tier} if tier else {})}
    assert (await one_door.post("/v1/embeddings", vector, **headers)).status_code == 200
    assert [priority for _, priority in one_door.fleet.asked] == [10 if batch else 0] * 2
    assert {row.priority for row in one_door.rows.rows} == {"batch" if batch else "interactive"}


@pytest.mark.requirement("B-10", "R-G3")
async def test_a_priority_that_is_none_is_refused(one_door: Door) -> None:
    reply = await one_door.post(CHAT, chat(model="fake"), **{"x-priority": "highest"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "X-Priority")
    reply = await one_door.post(CHAT, chat(model="fake", service_tier="gold"))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "service_tier")
    assert one_door.fleet.asked == []


async def test_an_alias_can_be_loaded_ahead_with_the_registrys_keep_alive(slot_door: Door) -> None:
    async with slot_door.client(control=True) as client:
        empty = await client.post("/admin/models/load", json={"model": "jerry-xl"})
        assert empty.json()["error"]["code"] == "slot_empty"
        serve(slot_door, keep_alive_s=-1.0)
        for body in ({}, {"keep_alive": 9}):
            reply = await client.post("/admin/models/load", json={"model": "jerry-xl", **body})
            assert json.loads(reply.text.splitlines()[-1])["stage"] == "ready"
    assert slot_door.fleet.keep_alives == [-1.0, 9.0]
