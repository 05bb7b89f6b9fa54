"""The llama.cpp worker program: one GGUF file, llama.cpp's own server (in ``xllamacpp``), one Unix socket.

Run as ``python -P -m homelab_llm.inference.workers.llama_cpp.server --socket … --model …``. It ends with 0 on SIGTERM,
with 1 and a line ``error: …`` when the model cannot be loaded, with 2 when its arguments cannot be used.

How this server behaves (measured with xllamacpp 2026.10, SmolLM2-135M; ``WorkerTraits`` of the engine follow from it):

* A closed connection is noticed only where something is written to it. Time until the slot is free again:
  decoding a stream 0.02 s; decoding a reply that is not streamed: never, to its last token; prefill of 6,000 tokens
  34 s (to its end), streamed or not; with ``stream`` and ``return_progress`` one batch of 256 tokens, 0.4 to 0.8 s.
* After a streamed reply it closes the connection, though it said keep-alive: every second request on a kept one fails.
* Its converter from JSON Schema takes minutes for ``minLength`` > ``maxLength`` and the process dies of a pattern
  such as ``((a{1000}){1000}){1000}``; ``tool_choice: required`` is not enforced. So ``kit`` writes the grammars.
* A context that is too small is answered 400 ``exceed_context_size_error`` with ``n_prompt_tokens`` and ``n_ctx``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BATCH_TOKENS = 96  # one batch is how long an abort in prefill takes to be noticed
_REASON_S = 2.0
_REASON = re.compile(r" E [^\n]*?(?:error loading model: |gguf_init_from\w+: )([^\n]+)")
_LOG_LEVEL_WARNINGS = 2
_SPARE_HTTP_THREADS = 4  # for /health, /slots and connections about to close, beside one per slot


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``--context`` is per request, ``--embedding`` serves embeddings and nothing else."""
    parser = argparse.ArgumentParser(prog="llama_cpp.server", description="Serve one GGUF file on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alias", default="model", help="name of the model in replies")
    parser.add_argument("--context", type=int, default=4096, help="tokens per request")
    parser.add_argument("--parallel", type=int, default=1, help="requests at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--chat-template", type=Path, help="a Jinja template in place of the model's own")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="a GGUF adapter to apply; repeatable")
    given = parser.parse_args(argv)
    for name in ("context", "parallel", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return given


def server_params(given: argparse.Namespace, bind: Path) -> Any:
    """llama.cpp's parameters (``xllamacpp.CommonParams``) for a private server that listens at ``bind``."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(given.model)
    params.model_alias = {given.alias}
    params.hostnames = [str(bind)]
    params.n_ctx = given.context * given.parallel
    params.n_parallel = given.parallel
    # A text to embed must fit one physical batch; a prompt is cut into batches, small ones, for aborts.
    params.n_batch = params.n_ubatch = given.context if given.embedding else min(MAX_BATCH_TOKENS, given.context)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.n_threads_http = given.parallel + _SPARE_HTTP_THREADS
    params.embedding = given.embedding
    params.ctx_shift = False  # an overflow is an error, never a silent cut
    params.fit_params = False  # never another context than the one that was promised
    params.cache_ram_mib = 0  # no memory beyond the estimate; each slot keeps its last prompt
    params.cache_idle_slots = False
    params.use_jinja = True
    if given.chat_template is not None:
        params.chat_template = given.chat_template.read_text("utf-8")
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in given.lora]
    params.ui = False
    params.cors_origins = ""
    params.verbosity = _LOG_LEVEL_WARNINGS
    return params


def start(given: argparse.Namespace) -> Any:
    """Load the model and serve; the socket appears under its name when the server is ready.

    llama.cpp takes a host name for a Unix socket only when it ends in ``.sock``; a bound socket may be renamed.

    Raises:
        RuntimeError: the server could not start; llama.cpp wrote the reason to standard error.
    """
    import xllamacpp

    bind = given.socket.with_suffix(".sock")
    for stale in (bind, given.socket):
        stale.unlink(missing_ok=True)
    server = xllamacpp.Server(server_params(given, bind))
    bind.rename(given.socket)
    return server


def reason_of_failure(given: argparse.Namespace) -> str:
    """Why the model cannot be loaded, in llama.cpp's words: fails once more, with standard error caught in a file.

    The first attempt prints freely (the words of an abort must not get lost), and a thread could not read along:
    llama.cpp loads with the interpreter locked.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            with contextlib.suppress(RuntimeError):
                start(given)
            deadline_s = time.monotonic() + _REASON_S  # llama.cpp writes its log from a thread of its own
            while not (telling := _telling(caught.fileno())) and time.monotonic() < deadline_s:
                time.sleep(0.02)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        said = telling or _REASON.findall(_text_of(caught.fileno()))
    return (said or ["see the log"])[-1].strip().replace(str(given.model), "the model file")


def _text_of(file: int) -> str:
    return os.pread(file, 1 << 20, 0).decode("utf-8", "replace")


def _telling(file: int) -> list[str]:
    """The lines that say more than that loading failed."""
    return [line for line in _REASON.findall(_text_of(file)) if "failed to load model from" not in line]


def serve(server: Any) -> None:  # noqa: ARG001 — the reference keeps it alive
    """Block until SIGTERM or SIGINT; works whichever thread the kernel hands the signal to."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.read(readable, 1)


def complain(text: str) -> int:
    """Say why this program ends; the exit code for it."""
    print(f"error: llama.cpp cannot load the model: {text}", file=sys.stderr, flush=True)  # noqa: T201 — a worker's output is its log
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to end."""
    given = parse(argv)
    if not given.model.is_file():  # llama.cpp would wait for ever to open a FIFO
        return complain("the model file is not there" if not given.model.exists() else "it is not a regular file")
    if given.chat_template is not None and not given.chat_template.is_file():
        return complain("the chat template is not there")
    if not all(path.is_file() for path in given.lora):
        return complain("an adapter is not there")
    try:
        server = start(given)
    except RuntimeError:
        return complain(reason_of_failure(given))
    serve(server)
    given.socket.unlink(missing_ok=True)
    # The server's destructor waits for running replies that are not streamed, for minutes; nothing outlives this
    # process but the socket's name, so the quick end is clean.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
