"""A conversion program as a child process: its progress, its figures, its error; killed when it is no longer wanted."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from homelab_llm.core.errors import HomelabError, JobFailed, error_of

_PACKAGE = "homelab_llm.inference.conversion"
_TICK_S = 0.2  # how often who watches may call the work off
_TAIL_BYTES = 2000
_MAX_LINE_BYTES = 1 << 20


def run_program(module: str, arguments: Sequence[str], report: Callable[[str, float], None]) -> dict[str, Any]:
    """Run a program of ``inference/conversion`` to its end; its ``@result``, empty when it has none.

    Args:
        report: called with stage and fraction, and again at least five times a second; what it raises ends the program.

    Raises:
        HomelabError: what the program said.
        JobFailed: it died without a word; facts: ``signal`` or ``exit_code``.
    """
    argv = [sys.executable, "-P", "-m", f"{_PACKAGE}.{module}", *arguments, "--lifeline"]
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for us to answer, and the whole group can be ended.
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        try:
            found = _listen(child, report)
            code = child.wait()
        finally:
            _end(child)
        if "error" in found:
            raise error_of(found["error"])
        if code != 0:
            raise _died(module, code, os.pread(said.fileno(), 1 << 20, 0)[-_TAIL_BYTES:])
        return dict(found.get("result", {}))


def _listen(child: subprocess.Popen[bytes], report: Callable[[str, float], None]) -> dict[str, Any]:
    assert child.stdout is not None  # noqa: S101 — it is a pipe
    found: dict[str, Any] = {}
    stage, done, rest = "converting", 0.0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_TICK_S):
                block = os.read(child.stdout.fileno(), 1 << 16)
                if not block:
                    return found
                *lines, rest = (rest + block).split(b"\n")
                rest = rest[-_MAX_LINE_BYTES:]
                for line in lines:
                    word, _, text = line.partition(b" ")
                    if word in (b"@progress", b"@result", b"@error"):
                        said = json.loads(text)
                        found[word[1:].decode()] = said
                        if word == b"@progress":
                            stage, done = str(said["stage"]), float(said["done"])
            report(stage, done)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()


def _died(module: str, code: int, tail: bytes) -> HomelabError:
    lines = [line for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
    why = f": {lines[-1].strip()[:300]}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "more free memory, or a smaller model" if -code == signal.SIGKILL else ""
        return JobFailed(f"the program {module} was ended by {name}{why}", hint=hint, signal=name)
    return JobFailed(f"the program {module} failed{why}", exit_code=code)
