"""A fake engine: a program that serves OpenAI's paths like a real engine, fast, and fails on command.

``python -m homelab_llm.testing.fake_engine --socket PATH --model NAME [--file MODEL.gguf] [--parallel N] …``
It runs no model. How it loads is in the file's metadata (``testing.models``), how it answers one request in a
directive in the prompt (``testing.fake_script``). ``GET /stats`` tells which slots are busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import cast

import httptools
import orjson

from homelab_llm.testing import fake_replies as replies
from homelab_llm.testing.fake_job import OOM_LINE, Ask, FakeServer, Job, Stats
from homelab_llm.testing.fake_replies import STREAM_END, STREAM_HEAD, Kind, Replies, frame, response
from homelab_llm.testing.fake_script import Script
from homelab_llm.testing.models import Scalar, read_metadata

_ROUTES: dict[bytes, Kind] = {b"/v1/chat/completions": "chat", b"/v1/completions": "completion"}
_WHOLE_TOKENS = 512


class Connection(asyncio.Protocol):
    """One client connection; requests on it are answered one after the other."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""
        self._body = b""
        self._requests = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._job: Job | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        self._server.stats.connections += 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._may_write.set()
        if self._job is not None:
            self._job.client_left()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # --- httptools ---

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._requests += self._path not in (b"/stats", b"/slots")  # asking does not change the answer
        if self._requests > 1 and self._path not in (b"/stats", b"/slots"):
            self._server.stats.reused += 1
            if not self._server.pooled and self._transport is not None:
                self._transport.abort()
                return
        if self._job is None:
            self._answer(self._path, self._body)
        else:
            self._waiting.append((self._path, self._body))

    # --- answering ---

    @property
    def open(self) -> bool:
        return self._transport is not None

    def write(self, content: bytes) -> None:
        if self._transport is not None:
            self._transport.write(content)

    async def writable(self) -> None:
        await self._may_write.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def job_ended(self) -> None:
        self._job = None
        if self._waiting:
            self._answer(*self._waiting.popleft())

    def _answer(self, path: bytes, body: bytes) -> None:
        kind = _ROUTES.get(path)
        if kind is None or not self._server.loaded:
            self.write(self._small(path, body))
            return
        try:
            ask = self._server.understand(kind, orjson.loads(body))
        except (ValueError, AttributeError, TypeError) as error:
            self.write(response(400, replies.error(400, "invalid_request_error", str(error))))
            return
        if ask.prompt_tokens >= self._server.context_tokens:
            self.write(_overflow(ask.prompt_tokens, self._server.context_tokens))
        elif ask.script.plain and ask.tokens <= _WHOLE_TOKENS:
            self.write(_at_once(self._server.said(ask), ask))
            self._server.stats.served += 1
        else:
            self._job = Job(self, self._server, ask)

    def _small(self, path: bytes, body: bytes) -> bytes:
        server = self._server
        if path == b"/stats":
            told = {name: getattr(server.stats, name) for name in Stats.__slots__}
            return response(200, {**told, "pid": os.getpid(), "model": server.model, "loaded": server.loaded})
        if path == b"/slots":
            slots = range(server.stats.parallel)
            return response(200, [{"id": slot, "is_processing": slot < server.stats.busy} for slot in slots])
        if path == b"/v1/models":
            return response(200, {"object": "list", "data": [{"id": server.model, "object": "model"}]})
        if not server.loaded:
            return response(503, replies.error(503, "unavailable_error", "Loading model"))
        if path == b"/health":
            return response(200, {"status": "ok"})
        if path == b"/v1/embeddings":
            return self._embed(body)
        return response(404, replies.error(404, "not_found_error", "File Not Found"))

    def _embed(self, body: bytes) -> bytes:
        try:
            given = orjson.loads(body)
            width = int(given.get("dimensions") or self._server.width)
            self._server.stats.served += 1
            return response(200, replies.embeddings(self._server.model, given, width))
        except (ValueError, AttributeError, TypeError) as error:
            return response(400, replies.error(400, "invalid_request_error", str(error)))


def _overflow(prompt_tokens: int, context_tokens: int) -> bytes:
    text = f"the request exceeds the available context size ({prompt_tokens} tokens of {context_tokens})"
    facts = {"n_prompt_tokens": prompt_tokens, "n_ctx": context_tokens}
    return response(400, replies.error(400, "exceed_context_size_error", text, **facts))


def _at_once(said: Replies, ask: Ask) -> bytes:
    """The whole answer as bytes."""
    if not ask.stream:
        text = "".join(ask.piece(index) for index in range(ask.tokens))
        return response(200, said.whole(text, ask.finish, ask.usage))
    out = [STREAM_HEAD]
    if ask.progress:
        out.append(frame(said.progress(ask.prompt_tokens, ask.prompt_tokens, 0.0)))
    if opening := said.opening():
        out.append(frame(opening))
    out.extend(frame(block) for block in _blocks(said, ask))
    out.append(frame(said.closing(ask.finish, ask.usage if ask.include_usage else None)) + STREAM_END)
    return b"".join(out)


def _blocks(said: Replies, ask: Ask) -> list[bytes]:
    if ask.pieces is not None:
        return [said.text(piece) for piece in ask.pieces[: ask.tokens]]
    step = ask.script.coalesce
    return [said.tokens(at, min(at + step, ask.tokens)) for at in range(0, ask.tokens, step)]


def _progress(done: float) -> None:
    print(f'@progress {{"stage": "load", "done": {done:.3f}}}', flush=True)  # noqa: T201 — the worker's protocol


async def _load(server: FakeServer, metadata: dict[str, Scalar]) -> None:
    """Load as the model's metadata says."""
    how, load_s = metadata.get("fake.load", "ok"), float(metadata.get("fake.load_s", 0.0))
    steps = 10 if load_s else 2
    for step in range(steps):
        _progress(step / steps)
        if how == "hang":
            await asyncio.Event().wait()
        if step == steps // 2 and how == "crash":
            print("error: the fake model cannot be loaded", file=sys.stderr, flush=True)  # noqa: T201 — an engine's log
            os._exit(3)
        if step == steps // 2 and how == "oom":
            print(OOM_LINE, file=sys.stderr, flush=True)  # noqa: T201 — an engine's log
            os._exit(1)
        if load_s:
            await asyncio.sleep(load_s / steps)
    _progress(1.0)
    server.loaded = True


async def _serve(options: argparse.Namespace, metadata: dict[str, Scalar]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    if metadata.get("fake.ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
    options.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(options.socket))
    options.socket.chmod(0o600)
    canary = str(metadata.get("fake.canary", "ok"))
    server = FakeServer(
        f"other-than-{options.model}" if canary == "other" else options.model,
        parallel=options.parallel,
        context_tokens=options.context,
        width=options.embedding_width,
        pooled=not options.unpooled,
        deaf=options.deaf,
        default=Script(
            rate=float(metadata.get("fake.rate", 0.0)),
            prefill_s=float(metadata.get("fake.prefill_s", 0.0)),
            error_at=0 if canary == "error" else None,
            stall_at=0 if canary == "hang" else None,
            crash_at=0 if canary == "crash" else None,
        ),
    )
    await loop.create_unix_server(lambda: Connection(server), sock=listener)
    if options.port:
        await loop.create_server(lambda: Connection(server), "127.0.0.1", options.port)
    memory = b"\x01" * (int(metadata.get("fake.memory_mb", 0)) << 20)
    children = [
        subprocess.Popen(["sleep", "3600"])  # noqa: ASYNC220 — before anybody waits for an answer
        for _ in range(int(metadata.get("fake.children", 0)))
    ]
    print(f"fake engine: {len(memory)} bytes held, {len(children)} children", flush=True)  # noqa: T201 — an engine's log
    loading = loop.create_task(_load(server, metadata))
    await stopped.wait()
    loading.cancel()
    options.socket.unlink(missing_ok=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fake_engine", description="Serve a fake model on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True, help="the socket to serve on")
    parser.add_argument("--port", type=int, default=0, help="serve on this loopback port too, for others' clients")
    parser.add_argument("--model", default="fake", help="the name in replies")
    parser.add_argument("--file", type=Path, help="a fake model whose metadata tells how to load")
    parser.add_argument("--parallel", type=int, default=4, help="slots")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request, prompt and answer")
    parser.add_argument("--embedding-width", type=int, default=8, help="numbers in an embedding")
    parser.add_argument("--unpooled", action="store_true", help="break a connection that is used again, as llama.cpp")
    parser.add_argument("--deaf", action="store_true", help="notice a lost client only while streaming, as llama.cpp")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM."""
    options = _options(arguments)
    metadata = read_metadata(options.file) if options.file else {}
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(options, metadata))
    else:
        uvloop.run(_serve(options, metadata))


if __name__ == "__main__":
    main()
