"""A model must answer before it counts as loaded, and as the model that was planned."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homelab_llm.core.errors import LoadFailed
from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import canary
from homelab_llm.inference.fleet.canary import judge, probe_of, send_canary
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Loaded
from homelab_llm.testing.events import eventually

from .conftest import Bench

pytestmark = pytest.mark.requirement("R-F6")

GOOD: dict[str, Any] = {"model": "m", "choices": [{"text": "a"}]}


async def served(bench: Bench) -> int:
    """How many requests the engine has answered."""
    connector = aiohttp.UnixConnector(str(bench.supervisor.sockets("abc12")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://w/stats") as reply:
        return int((await reply.json())["served"])


async def test_a_model_is_reported_loaded_after_one_answer(bench: Bench) -> None:
    await bench.ready()
    assert await served(bench) == 1


async def test_without_a_canary_a_model_counts_as_loaded_when_its_server_says_so(home: Home, bench: Bench) -> None:
    bench.supervisor = Supervisor(home, bench.events, load_timeout_s=20, drain_s=5, canary=False)
    await bench.ready(canary="error")
    assert await served(bench) == 0
    await bench.supervisor.close()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("error", "answered its first request with HTTP 500: the fake engine was told to fail"),
        ("other", "answers as another model: 'other-than-model-abc12'"),
        ("crash", "was ended by SIGABRT"),
    ],
)
async def test_a_wrong_answer_fails_the_load(bench: Bench, how: str, words: str) -> None:
    event = await bench.failed_load(canary=how)
    assert event.error.code == "load_failed"
    assert words in event.error.message
    assert event.error.facts["log"] == "abc12.log"
    assert not any(isinstance(event, Loaded) for event in bench.events)


async def test_a_canary_that_is_not_answered_ends_at_its_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "ANSWER_S", 0.2)
    event = await bench.failed_load(canary="hang")
    assert "did not answer its first request within 0.2 s" in event.error.message


async def test_a_load_is_called_off_while_its_canary_hangs(bench: Bench) -> None:
    bench.supervisor.start("abc12", bench.plan("abc12", canary="hang"))

    async def asked() -> bool:
        try:
            return await served(bench) == 0 and await busy(bench) == 1
        except (aiohttp.ClientError, OSError):
            return False

    await eventually(asked, what="the canary in its slot")
    bench.supervisor.drain("abc12")
    assert (await bench.exit_of()).error is None


async def busy(bench: Bench) -> int:
    connector = aiohttp.UnixConnector(str(bench.supervisor.sockets("abc12")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://w/stats") as reply:
        return int((await reply.json())["busy"])


def test_the_question_fits_the_model() -> None:
    assert probe_of(("chat", "completion")) == probe_of(("completion",)) == "completion"
    assert probe_of(("embedding",)) == "embedding"
    assert probe_of(("vision",)) == ""


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, GOOD, ""),
        (200, {"choices": [{"text": ""}]}, ""),
        (200, GOOD | {"model": "other"}, "another model"),
        (200, GOOD | {"choices": []}, "without a result"),
        (200, [], "not JSON"),
        (503, {"error": {"message": "busy"}}, "HTTP 503: busy"),
        (500, {"error": "words"}, "HTTP 500: words"),
        (404, None, "HTTP 404"),
    ],
)
def test_an_answer_is_judged_by_status_name_and_result(status: int, body: object, words: str) -> None:
    verdict = judge("completion", "m", status, json.dumps(body).encode())
    assert words in verdict if words else verdict == ""


def test_an_answer_that_is_not_json_is_wrong() -> None:
    assert "not JSON" in judge("completion", "m", 200, b"<html>")
    assert judge("embedding", "m", 200, b'{"data": [{"embedding": [1]}]}') == ""


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_server_that_breaks_off_is_wrong(home: Home, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    path: Path = home.runtime / "abc12.http"
    server = await asyncio.start_unix_server(serve, path)
    with pytest.raises(LoadFailed, match="broke off"):
        await send_canary(path, "completion", "m", log="abc12.log")
    server.close()
