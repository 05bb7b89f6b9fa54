"""The fake engine's requests: understanding one, and playing its script while it holds a slot."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import orjson

from homelab_llm.testing import fake_replies as replies
from homelab_llm.testing.fake_replies import STREAM_END, STREAM_HEAD, Kind, Replies, frame, response
from homelab_llm.testing.fake_script import DEFAULT_TOKENS, Script, example_of, schema_of, script_of, texts_of

OOM_LINE = "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 17179869184"
_PROGRESS_S = 0.05


@dataclass(slots=True)
class Stats:
    """What ``GET /stats`` answers.

    ``reused``: requests that came on a connection already used. ``overcommitted``: requests that came while
    every slot was busy; a scheduler that counts right never causes one.
    """

    parallel: int
    busy: int = 0
    most_busy: int = 0
    served: int = 0
    aborted: int = 0
    failed: int = 0
    overcommitted: int = 0
    connections: int = 0
    reused: int = 0


@dataclass(slots=True)
class Ask:
    """One request, understood. ``pieces`` is None for the default tokens."""

    kind: Kind
    script: Script
    stream: bool
    include_usage: bool
    progress: bool
    tokens: int
    finish: str
    prompt_tokens: int
    pieces: list[str] | None

    @property
    def usage(self) -> dict[str, Any]:
        return replies.usage_of(self.prompt_tokens, self.tokens)

    def piece(self, index: int) -> str:
        if self.script.stamp:
            return str(time.monotonic_ns())
        return self.pieces[index] if self.pieces is not None else replies.token(index)


class FakeServer:
    """The state of the process: what it says, how busy it is, whether it is loaded."""

    def __init__(
        self, model: str, *, parallel: int, context_tokens: int, width: int, pooled: bool, deaf: bool, default: Script
    ) -> None:
        self.model = model
        self.context_tokens = context_tokens
        self.width = width
        self.pooled = pooled
        self.deaf = deaf
        self.loaded = False
        self.stats = Stats(parallel)
        self._default = default
        self._replies: dict[Kind, Replies] = {
            "chat": Replies(model, "chat"),
            "completion": Replies(model, "completion"),
        }

    def said(self, ask: Ask) -> Replies:
        """The words for this kind of request."""
        return self._replies[ask.kind]

    def take(self) -> None:
        """A request takes a slot."""
        if self.stats.busy >= self.stats.parallel:
            self.stats.overcommitted += 1
        self.stats.busy += 1
        self.stats.most_busy = max(self.stats.most_busy, self.stats.busy)

    def understand(self, kind: Kind, body: dict[str, Any]) -> Ask:
        """Raises ``ValueError`` where a real engine answers 400."""
        texts = texts_of(body)
        script = script_of(texts[-1], self._default)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        schema = schema_of(body)
        pieces: list[str] | None = None
        if schema is not None:
            text = orjson.dumps(example_of(schema)).decode()
            pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        wanted = len(pieces) if pieces is not None else script.tokens or limit or DEFAULT_TOKENS
        prompt_tokens = sum(len(text.split()) for text in texts)
        tokens = min(wanted, limit or wanted, max(1, self.context_tokens - prompt_tokens))
        stopped = pieces is not None or script.tokens is not None or not limit
        return Ask(
            kind=kind,
            script=script,
            stream=bool(body.get("stream")),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            progress=bool(body.get("return_progress")),
            tokens=tokens,
            finish="stop" if stopped and tokens == wanted else "length",
            prompt_tokens=prompt_tokens,
            pieces=pieces,
        )


class Client(Protocol):
    """The connection an answer goes to."""

    @property
    def open(self) -> bool: ...

    def write(self, content: bytes) -> None: ...

    async def writable(self) -> None: ...

    def close(self) -> None: ...

    def job_ended(self) -> None: ...


class Job:
    """An answer that takes time: it holds a slot until it ended or the engine noticed that the client left."""

    def __init__(self, connection: Client, server: FakeServer, ask: Ask) -> None:
        self._connection = connection
        self._server = server
        self._ask = ask
        self._said = server.said(ask)
        self._faults = ask.script.faults
        self._decoding = False
        self._opened = False
        server.take()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def client_left(self) -> None:
        """A deaf engine (llama.cpp) sees this only while it streams tokens, or at its next progress event."""
        if not self._server.deaf or (self._ask.stream and self._decoding):
            self._task.cancel()

    async def _run(self) -> None:
        stats = self._server.stats
        try:
            await self._prefill()
            self._decoding = True
            if self._ask.stream:
                await self._stream()
            else:
                await self._reply()
            stats.served += 1
        except _BrokenOff:
            stats.failed += 1
        except asyncio.CancelledError:
            stats.aborted += 1
        finally:
            stats.busy -= 1
            self._connection.job_ended()

    async def _prefill(self) -> None:
        ask, total = self._ask, self._ask.prompt_tokens
        started = time.monotonic()
        left_s = ask.script.prefill_s
        while left_s > 0:
            await asyncio.sleep(min(left_s, _PROGRESS_S))
            spent_s = time.monotonic() - started
            left_s = ask.script.prefill_s - spent_s
            if ask.stream and ask.progress:
                done = min(total, int(total * spent_s / ask.script.prefill_s))
                await self._say(self._said.progress(total, done, spent_s * 1000))

    async def _say(self, content: bytes) -> None:
        if not self._connection.open:
            raise asyncio.CancelledError
        self._connection.write(frame(content) if self._opened else STREAM_HEAD + frame(content))
        self._opened = True
        await self._connection.writable()

    async def _stream(self) -> None:
        ask, said = self._ask, self._said
        if ask.progress:
            await self._say(said.progress(ask.prompt_tokens, ask.prompt_tokens, ask.script.prefill_s * 1000))
        if self._faults.get(0) != "error" and (opening := said.opening()):
            await self._say(opening)
        if ask.script.rate or ask.pieces is not None or ask.script.stamp or ask.script.coalesce < 2 or self._faults:
            await self._stream_each()
        else:
            for at in range(0, ask.tokens, ask.script.coalesce):
                await self._say(said.tokens(at, min(at + ask.script.coalesce, ask.tokens)))
                await asyncio.sleep(0)
        await self._say(said.closing(ask.finish, ask.usage if ask.include_usage else None))
        self._connection.write(STREAM_END)

    async def _stream_each(self) -> None:
        started = time.monotonic()
        for index in range(self._ask.tokens):
            await self._meet(index)
            await self._pace(started, index)
            await self._say(self._said.text(self._ask.piece(index)))
        await self._meet(self._ask.tokens)

    async def _reply(self) -> None:
        started = time.monotonic()
        text: list[str] = []
        for index in range(self._ask.tokens):
            await self._meet(index)
            await self._pace(started, index)
            text.append(self._ask.piece(index))
        await self._meet(self._ask.tokens)
        self._connection.write(response(200, self._said.whole("".join(text), self._ask.finish, self._ask.usage)))

    async def _pace(self, started_s: float, index: int) -> None:
        """Wait until token ``index`` is due; without a rate, let others run now and then."""
        if self._ask.script.rate:
            await asyncio.sleep(max(0.0, started_s + (index + 1) / self._ask.script.rate - time.monotonic()))
        elif index % 16 == 0:
            await asyncio.sleep(0)

    async def _meet(self, index: int) -> None:
        """Suffer what the script has for this moment."""
        fault = self._faults.get(index)
        if fault is None:
            return
        await asyncio.sleep(0.005)  # what was written before must have left the process
        if fault == "crash":
            _die(self._ask.script.exit)
        if fault == "oom":
            print(OOM_LINE, file=sys.stderr, flush=True)  # noqa: T201 — an engine's log
            _die(None)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stall":
            await asyncio.Event().wait()
        self._break_off(fault, index)

    def _break_off(self, fault: str, index: int) -> NoReturn:
        told = replies.error(500, "server_error", f"the fake engine was told to fail at token {index}")
        if fault == "close":
            self._connection.close()
        elif not self._opened:
            self._connection.write(response(500, told) if fault == "error" else response(200, b'{"choices": [{'))
        else:
            content = replies.event(told) if fault == "error" else b'data: {"choices": [{\n\n'
            self._connection.write(frame(content) + STREAM_END)
        raise _BrokenOff


class _BrokenOff(Exception):
    """The script ended this answer early."""


def _die(code: int | None) -> NoReturn:
    if code is not None:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()
