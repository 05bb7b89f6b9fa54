"""The canary: one tiny request over the worker's own HTTP path, to be answered before anybody real is let in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httptools

from homelab_llm.core.errors import LoadFailed
from homelab_llm.inference.fleet.control import connect
from homelab_llm.inference.fleet.record import Probe

ANSWER_S = 120.0
"""How long the answer may take: a large model is read from the disk at its first token."""

_MOST_BYTES = 1 << 20
_ASKED: dict[Probe, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "1", "max_tokens": 1, "temperature": 0}),
    "embedding": ("/v1/embeddings", {"input": "1"}),
}


def probe_of(capabilities: tuple[str, ...]) -> Probe:
    """What to ask a model with these capabilities."""
    if "embedding" in capabilities:
        return "embedding"
    return "completion" if {"chat", "completion"} & set(capabilities) else ""


async def send_canary(socket: Path, probe: Probe, model: str, *, log: str) -> None:
    """Ask, and return when the answer is right; an empty ``probe`` is right at once. ``log`` is for people.

    Raises:
        LoadFailed: no answer in time, an error, no result in it, or another model's name.
    """
    if not probe:
        return
    path, body = _ASKED[probe]
    try:
        async with asyncio.timeout(ANSWER_S):
            status, answer = await _post(socket, path, json.dumps(body).encode())
    except TimeoutError:
        raise _failed(log, model, f"did not answer its first request within {ANSWER_S:g} s") from None
    except (OSError, httptools.HttpParserError) as error:
        raise _failed(log, model, f"broke off its first request: {error or type(error).__name__}") from error
    if wrong := judge(probe, model, status, answer):
        raise _failed(log, model, wrong)


def judge(probe: Probe, model: str, status: int, answer: bytes) -> str:
    """What is wrong with an answer, in words; empty when it is right. A model name counts where one is told."""
    try:
        told = json.loads(answer)
    except ValueError:
        told = None
    if status != 200:
        return f"answered its first request with HTTP {status}{_said(told)}"
    if not isinstance(told, dict):
        return "answered its first request with something that is not JSON"
    name = told.get("model")
    if isinstance(name, str) and name and name != model:
        return f"answers as another model: {name[:80]!r}"
    results = told.get("data" if probe == "embedding" else "choices")
    return "" if isinstance(results, list) and results else "answered its first request without a result"


def _said(told: Any) -> str:
    error = told.get("error") if isinstance(told, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f": {text[:200]}" if isinstance(text, str) else ""


def _failed(log: str, model: str, what: str) -> LoadFailed:
    return LoadFailed(f"{model} {what}", hint="mlxctl logs; the check is the setting fleet.canary", log=log)


class _Answer:
    """Collects one HTTP response for the parser."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def _post(socket: Path, path: str, body: bytes) -> tuple[int, bytes]:
    loop = asyncio.get_running_loop()
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    head = f"POST {path} HTTP/1.1\r\nHost: worker\r\nContent-Type: application/json\r\n"
    with await connect(socket) as connection:
        request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(connection, request.encode() + body)
        while not answer.complete and len(answer.body) < _MOST_BYTES:
            content = await loop.sock_recv(connection, 1 << 16)
            if not content:
                raise ConnectionResetError("the connection ended early")
            parser.feed_data(content)
    return parser.get_status_code(), answer.body
