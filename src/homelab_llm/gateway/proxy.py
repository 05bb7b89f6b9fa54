"""Proxy: from a checked request to a worker's reply at the client. The one place where the two ends meet.

Order: route the name → lease (waits, loads) → shape → worker → client → lease ends. Whatever happens, the lease
ends exactly once and the worker's connection is closed or pooled.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from homelab_llm.core.errors import (
    Cancelled,
    EngineError,
    EngineReplyInvalid,
    HomelabError,
    InsufficientMemory,
    InvalidInput,
    RegistryInvalid,
    UnsupportedRequest,
)
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.shaping import ReplyShape
from homelab_llm.gateway.dialects.openai import Ask, open_with, preset
from homelab_llm.gateway.engine_errors import error_from, error_of
from homelab_llm.gateway.exchange import Exchange
from homelab_llm.gateway.foreign import ForeignLease
from homelab_llm.gateway.seams import Fleet, Lease, Router, Shaper, Target
from homelab_llm.gateway.sse import Passage
from homelab_llm.gateway.upstream import Connection, Upstream, UpstreamGarbled, UpstreamLost
from homelab_llm.gateway.weave import Weave

log = logging.getLogger(__name__)

CHAT_PATH = b"/v1/chat/completions"
COMPLETION_PATH = b"/v1/completions"
EMBEDDING_PATH = b"/v1/embeddings"
INTERACTIVE, BATCH = 0, 10
_MOVES = 4  # a request follows an alias at most this often
_UNLOADED = (EngineError, InsufficientMemory, Cancelled)  # what a model that is being swapped away or in can end with
_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})')


class Sink(Protocol):
    """Takes a worker's stream and gives what of it goes to the client."""

    usage: dict[str, Any] | None
    progress: tuple[int, int] | None
    error: dict[str, Any] | None
    done: bool

    def feed(self, data: bytes) -> bytes: ...


@dataclass(slots=True)
class Call:
    """One answer to be made by a worker: choice ``index`` of the reply."""

    body: dict[str, Any]
    index: int = 0
    new_prompt: bool = True


class _Use:
    """A lease in use: it ends with the block, exactly once.

    The worker's slot is not free yet when the block was cancelled or the reply was garbled; a silent worker is ended.
    """

    __slots__ = ("_exchange", "_lease")

    def __init__(self, lease: Lease, exchange: Exchange) -> None:
        self._lease = lease
        self._exchange = exchange

    def __enter__(self) -> Lease:
        return self._lease

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._exchange.stalled:
            log.warning("worker sent nothing for too long; ending it", extra={"model": self._exchange.row.model})
            self._lease.condemn()
        self._lease.release(
            abandoned=kind is not None and issubclass(kind, asyncio.CancelledError | EngineReplyInvalid)
        )


class Proxy:
    """Serves inference requests.

    Args:
        stall_s: a worker that streams nothing for this long is ended.
    """

    def __init__(
        self,
        router: Router,
        fleet: Fleet,
        shaper: Shaper,
        upstream: Upstream,
        *,
        stall_s: float,
    ) -> None:
        self._router = router
        self._fleet = fleet
        self._shaper = shaper
        self._upstream = upstream
        self._stall_s = stall_s

    async def generate(self, exchange: Exchange, ask: Ask, path: bytes) -> None:
        """Chat and text completion.

        Raises:
            HomelabError: for the client, before or after its stream began.
        """
        if ask.stream:
            exchange.comments = True
        lease, target = await self._lease(exchange, ask)
        with _Use(lease, exchange):
            shape = None
            body = self._body(ask, target, chat=path == CHAT_PATH)
            if ask.shaped and target.foreign is None:
                shaped = self._shaper.shape(body, target.model.facts, lease.traits)
                body, shape = shaped.body, shaped.reply
            body["model"] = target.model.name
            if ask.stream or shape or ask.parts > 1 or not lease.traits.notices_abort:
                await self._stream(exchange, ask, path, lease, body, shape=shape)
            else:
                await self._whole(exchange, path, lease, body)

    async def embed(self, exchange: Exchange, ask: Ask) -> None:
        """Embeddings; never streamed, so a stall is bounded by the request's deadline."""
        dimensions = ask.body.pop("dimensions", None)
        lease, target = await self._lease(exchange, ask, dimensions)
        with _Use(lease, exchange):
            await self._whole(exchange, EMBEDDING_PATH, lease, {**ask.body, "model": target.model.name})

    # --- before the worker ---

    def _route(self, exchange: Exchange, ask: Ask, dimensions: int | None) -> Target:
        """Where the request goes, by what is true now."""
        target = self._router.route(ask.model, exchange.slot)
        _check_able(target.model, ask, dimensions)
        row = exchange.row
        row.model = target.model.name
        row.alias = target.alias
        row.streamed = ask.stream
        if ask.stream:
            exchange.waiting_for = partial(self._standing, exchange.request_id, target.model.name)
        return target

    async def _lease(self, exchange: Exchange, ask: Ask, dimensions: int | None = None) -> tuple[Lease, Target]:
        """Wait for a worker. When an alias moves to another model meanwhile, the request follows it."""
        target = self._route(exchange, ask, dimensions)
        for _ in range(_MOVES):
            try:
                return await self._acquire(exchange, ask, target), target
            except _UNLOADED:
                if not target.alias or not await self._router.settled(target):
                    raise
            target = self._route(exchange, ask, dimensions)
        return await self._acquire(exchange, ask, target), target

    async def _acquire(self, exchange: Exchange, ask: Ask, target: Target) -> Lease:
        if target.foreign is not None:
            return ForeignLease(target.foreign)
        priority = INTERACTIVE
        if ask.batch or exchange.batch:
            exchange.row.priority, priority = "batch", BATCH
        keep_alive_s = target.keep_alive_s if ask.keep_alive_s is None else ask.keep_alive_s
        lease = await self._fleet.acquire(
            target.model, exchange.request_id, keep_alive_s=keep_alive_s, priority=priority
        )
        exchange.row.wait_ms = exchange.elapsed_ms
        exchange.content = b""
        return lease

    @staticmethod
    def _body(ask: Ask, target: Target, *, chat: bool) -> dict[str, Any]:
        """The request's fields, with what the registry or the model says where it says nothing."""
        body = ask.body
        if target.params or target.max_output_tokens:
            try:
                preset(body, target.params, target.max_output_tokens, chat=chat)
            except InvalidInput as error:
                raise RegistryInvalid(
                    f"the registry's parameters of {target.model.name}: {error.message}",
                    hint="mlxctl registry edit",
                    model=target.model.name,
                ) from error
        if target.opening is not None:
            open_with(body, target.opening, chat=chat)
        return body

    def _standing(self, request_id: str, name: str) -> str:
        wait = self._fleet.standing(request_id)
        if wait is None:
            return f"waiting for {name}"
        place = f", place {wait.place} in the queue" if wait.place else ""
        if wait.stage == "queued":
            return f"waiting for {name}{place}"
        return f"loading {name}: {wait.stage} {wait.done:.0%}{place}"

    # --- whole replies ---

    async def _whole(self, exchange: Exchange, path: bytes, lease: Lease, body: dict[str, Any]) -> None:
        """Pass on a reply that the worker sends whole; what need not come before it comes after."""
        connection: Connection | None = None
        try:
            connection = await self._upstream.post(lease.socket, path, orjson.dumps(body), pooled=lease.traits.pooled)
            content = await connection.whole()
            if connection.status != 200:
                raise error_of(connection.status, content, lease.context_tokens)
            await exchange.whole(200, content)
        except (UpstreamLost, UpstreamGarbled) as error:
            raise await _why(lease, error) from error
        finally:
            if connection is not None:
                self._upstream.finish(connection)
        if (place := content.rfind(b'"usage"')) >= 0 and (found := _USAGE.match(content, place)):
            _count(exchange, orjson.loads(found[1]))

    # --- streams ---

    async def _stream(
        self,
        exchange: Exchange,
        ask: Ask,
        path: bytes,
        lease: Lease,
        body: dict[str, Any],
        *,
        shape: Callable[[], ReplyShape] | None,
    ) -> None:
        """Stream from the worker, and to the client if it asked for that; else put the reply together."""
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if lease.traits.progress:
            body["return_progress"] = True
        old_logprobs = path == COMPLETION_PATH and "logprobs" in body
        if ask.stream and ask.parts == 1 and shape is None and not old_logprobs:
            passage = Passage(keep_usage=ask.include_usage)
            await self._run(exchange, path, lease, body, passage, to_client=True)
            _count(exchange, passage.usage)
            await exchange.end()
            return
        weave = Weave(
            chat=path == CHAT_PATH,
            stream=ask.stream,
            include_usage=ask.include_usage,
            shape=shape,
            old_logprobs=old_logprobs,
        )
        for call in _calls(ask, body):
            weave.begin(call.index, new_prompt=call.new_prompt)
            await self._run(exchange, path, lease, call.body, weave, to_client=ask.stream)
        _count(exchange, weave.usage)
        if ask.stream:
            await exchange.write(weave.close())
            await exchange.end()
        else:
            await exchange.json(weave.reply())

    async def _run(
        self, exchange: Exchange, path: bytes, lease: Lease, body: dict[str, Any], sink: Sink, *, to_client: bool
    ) -> None:
        """One request to the worker through ``sink``; returns when its stream is complete.

        Raises:
            HomelabError: the worker refused, failed, stalled or died; or the client's request was ended.
        """
        connection: Connection | None = None
        exchange.stall_s = self._stall_s
        exchange.heard_s = time.monotonic()
        exchange.waiting_for = partial(_prefill, sink)
        try:
            connection = await self._upstream.post(lease.socket, path, orjson.dumps(body), pooled=lease.traits.pooled)
            if connection.status != 200:
                raise error_of(connection.status, await connection.whole(), lease.context_tokens)
            while data := await connection.block():
                if b"data:" in data:  # a comment is no sign of life: llama.cpp's HTTP thread sends them by itself
                    exchange.heard_s = time.monotonic()
                if (block := sink.feed(data)) and to_client:
                    exchange.writing_s, exchange.heard_s = exchange.heard_s, 0.0
                    await exchange.write(block)
                    exchange.writing_s, exchange.heard_s = 0.0, time.monotonic()
                if sink.error is not None:
                    raise error_from(sink.error, lease.context_tokens)
                if sink.done and not lease.traits.pooled:
                    break  # nothing is left to wait for on a connection that is not used again
            if not sink.done:
                raise UpstreamLost("the worker ended its stream early")
        except (UpstreamLost, UpstreamGarbled) as error:
            raise await _why(lease, error) from error
        finally:
            exchange.heard_s = exchange.writing_s = 0.0
            if connection is not None:
                self._upstream.finish(connection)


def _check_able(model: StoredModel, ask: Ask, dimensions: int | None) -> None:
    """Refuse what the model cannot do before it is loaded."""
    able = model.facts.capabilities
    if not ask.embedding:
        if able and "chat" not in able and "completion" not in able:
            raise UnsupportedRequest(f"{model.name} makes embeddings, not answers", hint="mlxctl list", field="model")
        return
    if able and "embedding" not in able:
        raise UnsupportedRequest(
            f"{model.name} makes no embeddings", hint="mlxctl pull all-minilm:l6-v2", field="model"
        )
    width = model.facts.embedding_width
    if dimensions is not None and dimensions != width:
        raise UnsupportedRequest(
            f"this model's embeddings have {width or 'a fixed number of'} dimensions",
            hint="leave 'dimensions' out",
            field="dimensions",
            width=width,
        )


def _calls(ask: Ask, body: dict[str, Any]) -> list[Call]:
    """One call for each answer; a given seed grows by one with each choice, so that they differ."""
    calls: list[Call] = []
    for number, prompt in enumerate(ask.prompts or [None]):
        for choice in range(ask.choices):
            own = dict(body)
            if prompt is not None:
                own["prompt"] = prompt
            if choice and own.get("seed", -1) >= 0:
                own["seed"] = (own["seed"] + choice) % (2**32 - 1)
            calls.append(Call(own, number * ask.choices + choice, new_prompt=choice == 0))
    return calls


async def _why(lease: Lease, error: Exception) -> HomelabError:
    """The typed reason why a worker broke off; garbled replies do not mean that it died."""
    if isinstance(error, UpstreamGarbled):
        return EngineReplyInvalid(str(error))
    return await lease.failure()


def _prefill(sink: Sink) -> str:
    if sink.progress is None:
        return "waiting for the first token"
    return f"reading the prompt: {sink.progress[0]} of {sink.progress[1]} tokens"


def _count(exchange: Exchange, usage: dict[str, Any] | None) -> None:
    """Write a reply's token counts into the record."""
    if not usage:
        return
    row = exchange.row
    row.prompt_tokens = usage.get("prompt_tokens") or 0
    row.completion_tokens = usage.get("completion_tokens") or 0
    row.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
