"""The worker program over its socket, on a tiny model whose words mean nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

PROMPT = "one two three"
Client = aiohttp.ClientSession


async def post(client: Client, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, Any]:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def complete(client: Client, **body: Any) -> Any:
    status, reply = await post(client, {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "ignore_eos": True} | body)
    assert status == 200, reply
    return reply


async def text_of(client: Client, **body: Any) -> str:
    return str((await complete(client, **body))["choices"][0]["text"])


async def events_of(client: Client, body: dict[str, Any], path: str = "/v1/completions") -> list[Any]:
    async with client.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = (await response.text()).split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


async def stats(client: Client) -> Any:
    async with client.get("/stats") as response:
        return await response.json()


async def until(client: Client, fits: Callable[[Any], bool]) -> Any:
    """The worker's counts as soon as they fit."""
    async with asyncio.timeout(20):
        while not fits(found := await stats(client)):  # noqa: ASYNC110 — the counts are in another process
            await asyncio.sleep(0.01)
    return found


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize("limits", [{"max_tokens": 8}, {"max_tokens": 40, "stop": [" "]}, {"max_tokens": 1}])
async def test_a_stream_carries_what_the_whole_reply_says(tiny: Client, limits: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, **limits}
    options = {"stream_options": {"include_usage": True}}
    _, whole = await post(tiny, body, "/v1/chat/completions")
    events = await events_of(tiny, body | options, "/v1/chat/completions")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    deltas = [event["choices"][0] for event in events[1:-1]]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


async def test_progress_of_the_prompt_is_told_when_asked_for(tiny: Client) -> None:
    body = {"prompt": [5] * 100, "max_tokens": 2, "temperature": 0}
    told = [event["prompt_progress"] for event in await events_of(tiny, body | {"return_progress": True})
            if "prompt_progress" in event]  # fmt: skip
    assert told[-1]["processed"] == told[-1]["total"] == 100
    assert [step["processed"] for step in told] == sorted({step["processed"] for step in told})
    assert all(step["cache"] == 0 and step["time_ms"] >= 0 for step in told)
    assert not any("prompt_progress" in event for event in await events_of(tiny, body))


@pytest.mark.requirement("R-I4")
async def test_many_requests_at_once_get_what_each_gets_alone(tiny: Client) -> None:
    prompts = [[7 + i] * (1 + 9 * i % 50) for i in range(12)]
    alone = [await text_of(tiny, prompt=prompt) for prompt in prompts]
    together = await asyncio.gather(*(text_of(tiny, prompt=prompt) for prompt in prompts))
    assert list(together) == alone
    assert len(set(alone)) > 1


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [5] * 250, "max_tokens": 5, "stream": True},
        {"prompt": [5] * 250, "max_tokens": 5},
        {"prompt": [5] * 2, "max_tokens": 200, "ignore_eos": True, "stream": True},
        {"prompt": [5] * 2, "max_tokens": 200, "ignore_eos": True},
    ],
    ids=["prefill-streamed", "prefill-whole", "decode-streamed", "decode-whole"],
)
async def test_clients_that_go_away_free_their_slots_and_what_waited(
    tiny_socket: Path, tiny: Client, body: dict[str, Any]
) -> None:
    before = await stats(tiny)
    lost = [Client("http://worker", connector=aiohttp.UnixConnector(str(tiny_socket))) for _ in range(8)]
    requests = [asyncio.create_task(client.post("/v1/completions", json=body).__aenter__()) for client in lost]
    over = sum(before[name] for name in ("served", "aborted"))
    await until(tiny, lambda now: now["busy"] + now["served"] + now["aborted"] > over)
    for request in requests:
        request.cancel()
    for client in lost:
        await client.close()
    await asyncio.gather(*requests, return_exceptions=True)
    after = await until(tiny, lambda now: now["busy"] == 0)
    assert after["aborted"] > before["aborted"]
    assert len(await text_of(tiny)) > 0


@pytest.mark.requirement("R-I3")
async def test_a_stop_string_ends_the_text_before_it_and_the_work_too(tiny: Client) -> None:
    long = await text_of(tiny, max_tokens=30)
    stop = long[len(long) // 2 :][:3]
    reply = await complete(tiny, max_tokens=200, stop=[stop])
    assert reply["choices"][0]["text"] == long[: long.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] <= 30
    assert (await until(tiny, lambda now: now["busy"] == 0))["aborted"] >= 0


@pytest.mark.requirement("R-I3")
async def test_a_seed_repeats_the_text_alone_and_in_company(tiny: Client) -> None:
    body = {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 12}
    first = await text_of(tiny, **body, seed=11)
    mixed = await asyncio.gather(*(text_of(tiny, **body, seed=seed) for seed in (11, 12, 13)), text_of(tiny))
    assert mixed[0] == first
    assert len(set(mixed)) == 4
    assert await text_of(tiny, **body) != await text_of(tiny, **body)


@pytest.mark.requirement("R-I3")
async def test_penalties_and_bias_change_the_text(tiny: Client) -> None:
    plain = await complete(tiny, logprobs=0)
    first = plain["choices"][0]["logprobs"]["content"][0]["id"]
    banned = await complete(tiny, logprobs=0, logit_bias={str(first): -100})
    assert banned["choices"][0]["logprobs"]["content"][0]["id"] != first
    forced = await complete(tiny, logprobs=0, logit_bias={"400": 100})
    assert {entry["id"] for entry in forced["choices"][0]["logprobs"]["content"]} == {400}
    varied = await complete(tiny, logprobs=0, logit_bias={"400": 30, "500": 29}, presence_penalty=2)
    assert {entry["id"] for entry in varied["choices"][0]["logprobs"]["content"]} == {400, 500}


@pytest.mark.requirement("R-I3")
async def test_log_probabilities_are_those_of_the_likeliest_tokens_in_order(tiny: Client) -> None:
    entries = (await complete(tiny, logprobs=3))["choices"][0]["logprobs"]["content"]
    assert len(entries) == 8
    for entry in entries:
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert (entry["id"], entry["logprob"]) == (entry["top_logprobs"][0]["id"], pytest.approx(values[0]))
    assert "".join(entry["token"] for entry in entries) == await text_of(tiny)


@pytest.mark.requirement("R-I3")
async def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(tiny: Client) -> None:
    status, reply = await post(tiny, {"prompt": [5] * 256})
    assert status == 400
    assert reply["error"]["type"] == "exceed_context_size_error"
    assert (reply["error"]["n_prompt_tokens"], reply["error"]["n_ctx"]) == (256, 256)


async def test_an_answer_ends_where_the_context_does(tiny: Client) -> None:
    reply = await complete(tiny, prompt=[5] * 250, max_tokens=100)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] == 256


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": "x", "temperature": -1}, "invalid_request_error"),
        ({"prompt": "x", "top_p": "all"}, "invalid_request_error"),
        ({"prompt": [10**9]}, "invalid_request_error"),
        ({"prompt": [49152]}, "invalid_request_error"),
        ({"prompt": ""}, "invalid_request_error"),
        ({"prompt": "x", "n": 3}, "not_supported_error"),
        ({"prompt": "x", "response_format": {"type": "json_object"}}, "not_supported_error"),
        ([], "invalid_request_error"),
    ],
)
async def test_a_bad_request_is_refused_and_the_next_one_is_served(tiny: Client, body: Any, kind: str) -> None:
    status, reply = await post(tiny, body)
    assert (status, reply["error"]["type"]) == (400, kind)
    assert len(await text_of(tiny)) > 0


async def test_a_bias_on_a_token_the_model_does_not_have_is_refused(tiny: Client) -> None:
    status, reply = await post(tiny, {"prompt": "x", "logit_bias": {"49152": 1}})
    assert (status, reply["error"]["type"]) == (400, "invalid_request_error")


async def test_bytes_that_are_no_json_and_paths_that_do_not_exist_are_refused(tiny: Client) -> None:
    for raw in (b"{", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000):
        async with tiny.post("/v1/completions", data=raw) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"
    async with tiny.get("/v1/completions") as response:
        assert response.status == 404


async def test_the_worker_tells_its_name_and_health(tiny: Client, tiny_socket: Path) -> None:
    async with tiny.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with tiny.get("/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    assert stat.S_IMODE(tiny_socket.stat().st_mode) == 0o600


@pytest.mark.requirement("R-I3")
async def test_a_connection_is_used_again_and_again(tiny_socket: Path) -> None:
    made: list[int] = []
    trace = aiohttp.TraceConfig()

    async def count(*_: Any) -> None:
        made.append(1)

    trace.on_connection_create_end.append(count)
    connector = aiohttp.UnixConnector(str(tiny_socket))
    async with Client("http://worker", connector=connector, trace_configs=[trace]) as client:
        for _ in range(4):
            await events_of(client, {"prompt": "x", "max_tokens": 2})
            await complete(client, max_tokens=2)
    assert len(made) == 1


def start(folder: Path, socket: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.mlx.server"]
    command = [*program, "--socket", str(socket), "--model", str(folder), "--name", "x"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_signal_ends_the_worker_in_order_also_while_it_generates(tiny_mlx: Path) -> None:
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as place:
        socket = Path(place) / "w.sock"
        with start(tiny_mlx, socket) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("ready"):
                    break
            reply = asyncio.run(_break_off(socket, process))
            assert process.wait(20) == 0
        assert not socket.exists()
    assert [json.loads(line.removeprefix("@progress "))["done"] for line in lines[:-1]] == [0.0, 0.2, 1.0]
    assert '"error"' in reply
    assert "[DONE]" not in reply


async def _break_off(socket: Path, process: subprocess.Popen[str]) -> str:
    """Start a long stream, end the worker in its middle, and return what came."""
    body = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with Client("http://worker", connector=aiohttp.UnixConnector(str(socket))) as client:
        async with client.post("/v1/completions", json=body) as response:
            first = await response.content.readline()
            process.send_signal(signal.SIGTERM)
            return (first + await response.content.read()).decode()


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_folder_that_cannot_be_loaded_ends_the_worker_with_a_sentence(
    tiny_mlx: Path, tmp_path: Path, missing: str
) -> None:
    for path in tiny_mlx.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as place, start(tmp_path, Path(place) / "w.sock") as process:
        log, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\nerror: " in log
    assert "Traceback" not in log
