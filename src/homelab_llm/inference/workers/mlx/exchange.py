"""One request on its way through the worker: submitted, followed, answered as a stream or whole, or given up.

A client that goes away is noticed at any moment (waiting, prefill, decode; streamed or not) because the connection
is watched beside the work; its job then leaves the batch at the next step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.workers.mlx.answer import Answer, Piece
from homelab_llm.inference.workers.mlx.batcher import Batcher
from homelab_llm.inference.workers.mlx.events import Event, Failed, Job, Progress, Token
from homelab_llm.inference.workers.mlx.prompt import Prompter
from homelab_llm.inference.workers.mlx.reply import Reply, error_body, event, usage
from homelab_llm.inference.workers.mlx.request import Ask

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class _Gone(Exception):
    """The client closed the connection."""


class Exchange:
    """One accepted request: its prompt is encoded and fits."""

    def __init__(self, ask: Ask, ids: list[int], *, prompter: Prompter, model: str, context_tokens: int) -> None:
        describe = prompter.describe if ask.logprobs is not None else None
        room = context_tokens - len(ids)
        self._ask = ask
        self._answer = Answer(prompter.decode, ask.stops, describe)
        self._reply = Reply(ask.kind, model)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._began_s = time.monotonic()
        self.job = Job(
            prompt=ids,
            max_tokens=min(ask.max_tokens or room, room),
            sampling=ask.sampling,
            sink=self._events.put_nowait,
            ignore_end=ask.ignore_end,
            logprobs=ask.logprobs,
        )

    async def run(self, batcher: Batcher, receive: Receive, send: Send) -> None:
        """Generate and answer; returns when the reply is sent or the client is gone."""
        watch = asyncio.create_task(self._watch(receive))
        over = False
        batcher.submit(self.job)
        try:
            await (self._stream(send) if self._ask.stream else self._whole(send))
            over = True
        except _Gone:
            pass
        finally:
            watch.cancel()
            batcher.cancel(self.job, enough=over)

    def fail(self, error: HomelabError) -> None:
        """End it from outside, for example because the worker ends."""
        self._events.put_nowait(Failed(error))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(None)

    async def _next(self) -> list[Event]:
        """All events there are, at least one.

        Raises:
            _Gone: the client went away.
        """
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        found = [event for event in events if event is not None]
        if len(found) < len(events):
            raise _Gone
        return found

    async def _whole(self, send: Send) -> None:
        pieces: list[Piece] = []
        while not self._answer.over():
            for item in await self._next():
                if isinstance(item, Failed):
                    await send_json(send, *error_body(item.error))
                    return
                if isinstance(item, Token) and not self._answer.over():
                    pieces.append(self._answer.feed(item))
        logprobs = [entry for piece in pieces for entry in piece.logprobs] if self._ask.logprobs is not None else None
        text = "".join(piece.text for piece in pieces)
        await send_body(send, 200, self._reply.whole(text, self._answer.finish, logprobs, self._counts()))

    async def _stream(self, send: Send) -> None:
        started = opened = False
        while not self._answer.over():
            out: list[bytes] = []
            for item in await self._next():
                if isinstance(item, Failed):
                    await self._break_off(send, item.error, started, b"".join(out))
                    return
                if isinstance(item, Progress):
                    if self._ask.progress:
                        out.append(self._reply.progress(item, (time.monotonic() - self._began_s) * 1000))
                elif not self._answer.over():
                    if not opened:
                        opened = True
                        out.append(self._reply.opening())
                    if piece := self._answer.feed(item):
                        out.append(self._reply.piece(piece))
            if self._answer.over():
                counts = self._counts() if self._ask.include_usage else None
                out.append(self._reply.closing(self._answer.finish, counts))
            if body := b"".join(out):
                if not started:
                    started = True
                    await send(_STREAM_START)
                await send({"type": "http.response.body", "body": body, "more_body": not self._answer.over()})

    async def _break_off(self, send: Send, error: HomelabError, started: bool, before: bytes) -> None:
        """An error before the first byte is a status; later it is an event, and the end mark stays away."""
        status, body = error_body(error)
        if not started:
            await send_json(send, status, body)
            return
        await send({"type": "http.response.body", "body": before + event(body)})

    def _counts(self) -> dict[str, Any]:
        return usage(len(self.job.prompt), self._answer.tokens)


_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}


async def send_json(send: Send, status: int, value: Any) -> None:
    """A whole JSON response."""
    await send_body(send, status, orjson.dumps(value))


async def send_body(send: Send, status: int, body: bytes) -> None:
    """A whole response whose body is JSON already."""
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
