"""The fake engine keeps OpenAI's forms, and fails when and as it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homelab_llm.store.inspect.model import inspect_model
from homelab_llm.testing.events import eventually
from homelab_llm.testing.fake_script import example_of
from homelab_llm.testing.models import read_metadata, stored_fake_model, write_fake_model

from .conftest import FakeProcess, FakeProcesses


def events(raw: bytes) -> list[Any]:
    """The SSE events of a stream; ``[DONE]`` stays text."""
    found = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    return [text if text == "[DONE]" else json.loads(text) for text in found]


def test_a_fake_model_passes_the_stores_strict_reader(tmp_path: Path) -> None:
    path = write_fake_model(tmp_path / "m.gguf", weights_bytes=5000, load_s=0.5, ignore_term=True)
    facts = inspect_model({"model.gguf": path})
    assert facts == replace(stored_fake_model(path, "m").facts, parameters=facts.parameters)
    metadata = read_metadata(path)
    assert (metadata["fake.load_s"], metadata["fake.ignore_term"]) == (0.5, True)


async def test_a_stream_has_role_deltas_finish_usage_and_end(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    async with fake.chat("two words fake: tokens=3", stream=True, stream_options={"include_usage": True}) as response:
        role, *deltas, finish, usage, done = events(await response.read())
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["delta"]["content"] for event in deltas] == ["tok0", " tok1", " tok2"]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (4, 3)
    assert done == "[DONE]"


@pytest.mark.parametrize("how", ["tokens=700", "tokens=5 coalesce=0", "tokens=5 rate=1000", "tokens=5 prefill_s=0.01"])
async def test_streamed_and_whole_replies_say_the_same_however_they_leave(fakes: FakeProcesses, how: str) -> None:
    fake = await fakes.start()
    async with fake.chat(f"fake: {how}") as response:
        whole = (await response.json())["choices"][0]["message"]["content"]
    async with fake.chat(f"fake: {how}", stream=True) as response:
        said = [event["choices"][0]["delta"].get("content") for event in events(await response.read())[:-1]]
    assert "".join(text for text in said if text) == whole
    assert whole.startswith("tok0 tok1 tok2 tok3 tok4")


async def test_max_tokens_ends_a_reply_by_length(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    async with fake.http.post("http://fake/v1/completions", json={"prompt": "once", "max_tokens": 2}) as response:
        choice = (await response.json())["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("tok0 tok1", "length")


async def test_prefill_tells_its_progress_when_asked(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    async with fake.chat("a b c fake: tokens=1 prefill_s=0.12", stream=True, return_progress=True) as response:
        told = [event["prompt_progress"] for event in events(await response.read())[:-1] if "prompt_progress" in event]
    assert told[-1]["processed"] == told[-1]["total"] == 6
    assert len(told) >= 2


async def test_a_schema_is_answered_with_json_that_fits(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with fake.chat("where?", response_format=wanted) as response:
        assert json.loads((await response.json())["choices"][0]["message"]["content"]) == {"city": "x"}


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"enum": ["a", "b"]}, "a"),
        ({"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]}, 3),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": ["number", "null"], "exclusiveMinimum": 1}}}, 2),
        ({"allOf": [{"required": ["a"], "properties": {"a": {"const": 1}}}]}, {"a": 1}),
        ({"$ref": "#"}, None),
    ],
)
def test_examples_follow_their_schema(schema: dict[str, Any], example: object) -> None:
    assert example_of(schema) == example


async def test_embeddings_depend_on_the_input_alone_in_both_encodings(fakes: FakeProcesses) -> None:
    fake = await fakes.start()

    async def embed(**body: Any) -> list[Any]:
        async with fake.http.post("http://fake/v1/embeddings", json=body) as response:
            return [item["embedding"] for item in (await response.json())["data"]]

    first, second = await embed(input=["a", "b"])
    assert [first] == await embed(input="a")
    assert first != second
    assert sum(value * value for value in first) == pytest.approx(1)
    (packed,) = await embed(input="a", encoding_format="base64")
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(first, rel=1e-6)


async def test_a_prompt_beyond_the_context_is_refused_with_both_counts(fakes: FakeProcesses) -> None:
    fake = await fakes.start("--context", "8")
    async with fake.chat("w " * 9) as response:
        error = (await response.json())["error"]
    assert (response.status, error["type"]) == (400, "exceed_context_size_error")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (9, 8)


async def test_the_slots_in_use_are_told_and_too_many_requests_are_counted(fakes: FakeProcesses) -> None:
    fake = await fakes.start("--parallel", "1")
    async with fake.chat("fake: tokens=1000 rate=100", stream=True) as first:
        await first.content.readany()
        assert (await fake.stats())["busy"] == 1
        async with fake.chat("fake: tokens=1000 rate=100", stream=True):
            stats = await fake.stats()
            assert (stats["busy"], stats["overcommitted"]) == (2, 1)


@pytest.mark.parametrize(
    ("options", "text", "fields"),
    [
        ((), "fake: tokens=1000 rate=10", {"stream": True}),
        ((), "fake: tokens=1000 rate=10", {}),
        ((), "fake: prefill_s=600", {"stream": True}),
        ((), "fake: stall_at=1 tokens=5", {"stream": True}),
        (("--deaf",), "fake: tokens=1000 rate=10", {"stream": True}),
        (("--deaf",), "fake: prefill_s=600", {"stream": True, "return_progress": True}),
    ],
)
async def test_a_lost_client_frees_its_slot(
    fakes: FakeProcesses, options: tuple[str, ...], text: str, fields: dict[str, Any]
) -> None:
    fake = await fakes.start(*options)
    await leave_while_busy(fake, text, **fields)
    await eventually(lambda: has(fake, busy=0, aborted=1))


async def test_a_deaf_engine_works_on_for_a_client_that_left_in_prefill(fakes: FakeProcesses) -> None:
    fake = await fakes.start("--deaf")
    await leave_while_busy(fake, "fake: tokens=2 prefill_s=0.2")
    await eventually(lambda: has(fake, busy=0, served=1, aborted=0))


async def test_an_unpooled_engine_breaks_a_connection_that_is_used_again(fakes: FakeProcesses) -> None:
    fake = await fakes.start("--unpooled")
    reader, writer = await asyncio.open_unix_connection(str(fake.socket))
    writer.write(request("hi"))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    writer.write(request("hi"))
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert await has(fake, reused=1, served=1)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("crash_at=2", -signal.SIGABRT),
        ("crash_at=2 exit=3", 3),
        ("kill_at=2", -signal.SIGKILL),
        ("oom_at=2", -signal.SIGABRT),
    ],
)
async def test_a_fault_ends_the_process_after_the_tokens_before_it(fakes: FakeProcesses, fault: str, code: int) -> None:
    fake = await fakes.start()
    received = b""
    with pytest.raises(aiohttp.ClientError):
        async with fake.chat(f"fake: tokens=9 {fault}", stream=True) as response:
            async for part in response.content.iter_any():
                received += part
    assert received.count(b"tok") == 2
    await eventually(lambda: fake.process.poll() is not None)
    assert fake.process.returncode == code


async def test_errors_and_garbage_come_at_their_token(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    async with fake.chat("fake: tokens=9 error_at=0", stream=True) as response:
        assert (response.status, (await response.json())["error"]["type"]) == (500, "server_error")
    async with fake.chat("fake: tokens=9 error_at=1", stream=True) as response:
        assert events(await response.read())[-1]["error"]["code"] == 500
    async with fake.chat("fake: tokens=9 garbage_at=1", stream=True) as response:
        assert (await response.read()).endswith(b'data: {"choices": [{\n\n')
    assert await has(fake, failed=3, busy=0)


async def test_a_directive_it_does_not_know_is_refused(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    async with fake.chat("fake: speed=3") as response:
        assert response.status == 400


async def test_it_answers_503_until_it_is_loaded(fakes: FakeProcesses) -> None:
    fake = await fakes.start(model={"load": "hang"})
    async with fake.http.get("http://fake/health") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (503, "unavailable_error")
    async with fake.chat("hi") as response:
        assert response.status == 503


@pytest.mark.parametrize(("load", "code"), [("crash", 3), ("oom", 1)])
async def test_a_load_fails_as_the_model_says(fakes: FakeProcesses, load: str, code: int) -> None:
    fake = await fakes.start(model={"load": load, "load_s": 0.5})
    await eventually(lambda: fake.process.poll() is not None)
    assert fake.process.returncode == code


async def test_a_term_ends_it_and_its_socket(fakes: FakeProcesses) -> None:
    fake = await fakes.start()
    fake.process.terminate()
    await eventually(lambda: fake.process.poll() is not None)
    assert fake.process.returncode == 0
    assert not fake.socket.exists()


def request(text: str, **fields: Any) -> bytes:
    """A chat request as bytes."""
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def has(fake: FakeProcess, **wanted: int) -> bool:
    """Whether the engine's statistics show these values."""
    stats = await fake.stats()
    return {name: stats[name] for name in wanted} == wanted


async def leave_while_busy(fake: FakeProcess, text: str, **fields: Any) -> None:
    """Send a request, and close the connection when the engine works on it."""
    _, writer = await asyncio.open_unix_connection(str(fake.socket))
    writer.write(request(text, **fields))
    await eventually(lambda: has(fake, busy=1))
    writer.close()
