"""The MLX worker program: one model folder on one Unix socket.

    python -m homelab_llm.inference.workers.mlx.server --socket S --model FOLDER --name N --parallel P --context C

Answers ``/health`` with 503 while it loads, then 200. SIGTERM ends it with status 0; a model that cannot be
loaded with 1, a generation thread that cannot go on with 3, each with a sentence in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import HomelabError, WorkerStalled

LOAD_FAILED, GENERATION_FAILED = 1, 3
_KEEP_ALIVE_S = 3600  # the gateway keeps connections and must not meet one that was closed just now
_GRACE_S = 2.0


def _say(line: str, *, to: Any = None) -> None:
    print(line, file=to or sys.stderr, flush=True)


def _progress(done: float) -> None:
    _say("@progress " + json.dumps({"stage": "load", "done": done}), to=sys.stdout)


def listen(path: Path) -> socket.socket:
    """A Unix socket only this user may open; a left-over one is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    return listener


class Worker:
    """The program while it runs; ``status`` is its exit status."""

    def __init__(self, options: argparse.Namespace) -> None:
        from homelab_llm.inference.workers.mlx.app import App, deliver
        from homelab_llm.inference.workers.mlx.batcher import Batcher

        self.status = 0
        self._ready = False
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._app = App(options.name, context_tokens=options.context)
        self._server = _uvicorn_server(self._app)
        self._batcher = Batcher(
            self._load,
            lambda batch: self._soon(deliver, batch),
            loaded=lambda _: self._soon(self._open),
            ended=lambda error: self._soon(self._end, error),
        )

    async def serve(self, listener: socket.socket) -> None:
        """Serve until SIGTERM, SIGINT or a failure."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end, None)
        self._batcher.start()
        await self._server.serve(sockets=[listener])
        if not await asyncio.to_thread(self._batcher.stop, _GRACE_S):
            os._exit(self.status)  # a kernel that does not return; waiting longer changes nothing

    def _load(self) -> Any:
        """On the generation thread: MLX keeps a model and its stream on the thread that made them."""
        from homelab_llm.inference.workers.mlx.generator import Generator
        from homelab_llm.inference.workers.mlx.prompt import Prompter

        _progress(0.0)
        self._prompter = Prompter(self._options.model, self._options.chat_template)
        _progress(0.2)
        options = self._options
        generator = Generator.load(options.model, parallel=options.parallel, adapters=options.adapter)
        _progress(1.0)
        return generator

    def _open(self) -> None:
        self._ready = True
        self._app.open(self._batcher, self._prompter, created_unix_s=int(time.time()))
        _say(f"ready: {self._options.name}, {self._options.parallel} at once, {self._options.context} tokens each")

    def _end(self, error: HomelabError | None) -> None:
        if self._server.should_exit:
            return
        if error is not None:
            self.status = GENERATION_FAILED if self._ready else LOAD_FAILED
            _say(f"error: {error.message}" + (f"; {error.hint}" if error.hint else ""))
        self._app.close(error or WorkerStalled("the worker is ending"))
        self._server.should_exit = True

    def _soon(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed when a last step ends
            self._loop.call_soon_threadsafe(call, *arguments)


def _uvicorn_server(app: Any) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """Without uvicorn's own signal handling, which would end the process by the signal."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(_GRACE_S),
        )
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mlx-worker", description="Serve an MLX model folder on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True, help="the socket to serve on")
    parser.add_argument("--model", type=Path, required=True, help="a folder mlx-lm can load")
    parser.add_argument("--name", required=True, help="the model's name in replies")
    parser.add_argument("--parallel", type=int, default=4, help="requests in the batch at once")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request, prompt and answer")
    parser.add_argument("--chat-template", type=Path, help="a Jinja template in place of the model's own")
    pair = ("CONFIG", "WEIGHTS")
    parser.add_argument(
        "--adapter", type=Path, nargs=2, action="append", default=[], metavar=pair, help="a PEFT adapter; repeatable"
    )
    options = parser.parse_args(arguments)
    if options.parallel < 1 or options.context < 2:
        parser.error("--parallel must be at least 1 and --context at least 2")
    return options


async def _main(options: argparse.Namespace) -> int:
    worker = Worker(options)
    listener = listen(options.socket)
    try:
        await worker.serve(listener)
    finally:
        options.socket.unlink(missing_ok=True)
    return worker.status


def main(arguments: list[str] | None = None) -> int:
    """Serve as the arguments say; the exit status."""
    options = _options(arguments)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_main(options))
    return int(uvloop.run(_main(options)))


if __name__ == "__main__":
    sys.exit(main())
