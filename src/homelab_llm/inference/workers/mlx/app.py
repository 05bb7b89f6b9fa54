"""The worker's ASGI application: a handful of paths, dispatched by hand because each costs a request its time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import orjson

from homelab_llm.core.errors import EndpointNotFound, HomelabError, InvalidInput, WorkerStalled
from homelab_llm.inference.workers.mlx.batcher import Batcher
from homelab_llm.inference.workers.mlx.events import Event, Job
from homelab_llm.inference.workers.mlx.exchange import Exchange, Receive, Send, send_json
from homelab_llm.inference.workers.mlx.prompt import Prompter
from homelab_llm.inference.workers.mlx.reply import error_body
from homelab_llm.inference.workers.mlx.request import Ask, parse_chat, parse_completion

MAX_BODY_BYTES = 64 << 20
_LARGE_BODY_BYTES = 64 << 10
_PARSERS: dict[str, Callable[[Any], Ask]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
}


class App:
    """What the socket answers. ``open`` is called once, when model and tokenizer are loaded."""

    def __init__(self, model: str, *, context_tokens: int) -> None:
        self._model = model
        self._context_tokens = context_tokens
        self._batcher: Batcher | None = None
        self._prompter: Prompter | None = None
        self._running: set[Exchange] = set()
        self._created_unix_s = 0

    def open(self, batcher: Batcher, prompter: Prompter, *, created_unix_s: int) -> None:
        """From now on requests are served."""
        self._batcher, self._prompter, self._created_unix_s = batcher, prompter, created_unix_s

    def close(self, error: HomelabError) -> None:
        """End every running request with ``error`` and refuse new ones."""
        self._batcher = None
        for exchange in self._running:
            exchange.fail(error)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope["method"], scope["path"], receive, send)
        except HomelabError as error:
            await send_json(send, *error_body(error))

    async def _answer(self, method: str, path: str, receive: Receive, send: Send) -> None:
        if method == "POST" and (parse := _PARSERS.get(path)):
            await self._generate(parse, receive, send)
        elif method != "GET" or path not in ("/health", "/stats", "/v1/models"):
            raise EndpointNotFound(f"there is no {method[:10]} {path[:80]} here")
        elif path == "/v1/models":
            told = {"id": self._model, "object": "model", "created": self._created_unix_s, "owned_by": "mlx"}
            await send_json(send, 200, {"object": "list", "data": [told]})
        elif path == "/stats":
            stats = self._batcher.stats() if self._batcher else {}
            await send_json(send, 200, {**stats, "pid": os.getpid(), "model": self._model})
        else:
            self._parts()
            await send_json(send, 200, {"status": "ok"})

    def _parts(self) -> tuple[Batcher, Prompter]:
        if self._batcher is None or self._prompter is None:
            raise WorkerStalled("the model is loading, or the worker is ending")
        return self._batcher, self._prompter

    async def _generate(self, parse: Callable[[Any], Ask], receive: Receive, send: Send) -> None:
        batcher, prompter = self._parts()
        body = await _read_body(receive)
        if body is None:
            return
        if len(body) > _LARGE_BODY_BYTES:  # long texts take long to cut into tokens
            ask, ids = await asyncio.to_thread(self._understand, parse, body, prompter)
        else:
            ask, ids = self._understand(parse, body, prompter)
        exchange = Exchange(ask, ids, prompter=prompter, model=self._model, context_tokens=self._context_tokens)
        self._running.add(exchange)
        try:
            await exchange.run(batcher, receive, send)
        finally:
            self._running.discard(exchange)

    def _understand(self, parse: Callable[[Any], Ask], body: bytes, prompter: Prompter) -> tuple[Ask, list[int]]:
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the body is not JSON: {error}") from error
        ask = parse(given)
        return ask, prompter.encode(ask, context_tokens=self._context_tokens)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before it ended.

    Raises:
        InvalidInput: it is larger than this worker reads.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise InvalidInput(f"the body is larger than {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def deliver(batch: list[tuple[Job, Event]]) -> None:
    """Hand the events of one step to their requests; on the event loop's thread."""
    for job, event in batch:
        job.sink(event)
