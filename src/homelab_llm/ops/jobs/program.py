"""The program that does one job, in a process and session of its own: ``python -m homelab_llm.ops.jobs.program``.

The first line of standard input is the order: ``{"kind", "parameters", "home", "settings"}``. Standard output gets
JSON lines: ``{"progress": {…}}`` again and again, at last ``{"result": {…}}``, ``{"error": {…}}`` or
``{"cancelled": true}``.
It ends in order on SIGTERM, and when standard input ends, for then the daemon is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from homelab_llm.core.errors import Cancelled, HomelabError
from homelab_llm.core.paths import Home

if TYPE_CHECKING:
    from homelab_llm.store.progress import JobProgress

NICE = 10
GRACE_S = 5.0  # between the wish to end and the end by force
_RESULT_BYTES = 256 << 10


class Channel:
    """Standard output, kept from everything else that prints: that goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self.notes: list[str] = []

    def say(self, **told: Any) -> None:
        """Write one line; a reader that is gone does not matter, for ``_follow`` notices."""
        with contextlib.suppress(BrokenPipeError):
            self._out.write(json.dumps(told, default=str).encode() + b"\n")

    def progress(self, step: JobProgress) -> None:
        """Tell how far it is; a note is kept for the result."""
        if step.note:
            self.notes.append(step.note)
            return
        self.say(progress=asdict(step))


def main() -> NoReturn:
    """Do the job and end, whatever threads are left."""
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of a terminal is the daemon's business
    signal.signal(signal.SIGTERM, _interrupt)
    channel = Channel()
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_follow, args=(sys.stdin.buffer,), daemon=True).start()
    code = 1
    try:
        _work(channel, order)
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())  # a defect: its text is the last the daemon hears
        _end(code)


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGTERM)  # a program that was started for this and still runs has no purpose any more
    os._exit(code)


def _work(channel: Channel, order: dict[str, Any]) -> None:
    try:
        result = _run(channel, order)
        if channel.notes:
            result["notes"] = [*result.get("notes", ()), *channel.notes]
        if len(json.dumps(result, default=str)) > _RESULT_BYTES:
            result = {"truncated": True}
        channel.say(result=result)
    except (KeyboardInterrupt, Cancelled):
        channel.say(cancelled=True)
    except HomelabError as error:
        channel.say(error=error.as_dict())


def _run(channel: Channel, order: dict[str, Any]) -> dict[str, Any]:
    from homelab_llm.core.settings import Settings
    from homelab_llm.ops.jobs.kinds import KINDS
    from homelab_llm.store.model_store import ModelStore

    store = ModelStore(Home.at(Path(order["home"])).store)
    settings = Settings.model_validate(order["settings"])
    return KINDS[order["kind"]].run(store, order["parameters"], settings, channel.progress)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what it has begun to tidy must not be interrupted
    threading.Thread(target=_insist, daemon=True).start()
    raise KeyboardInterrupt


def _follow(stream: BinaryIO) -> None:
    """End with the daemon."""
    while stream.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _insist() -> None:
    time.sleep(GRACE_S)
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with the programs that it has started
    os._exit(1)


if __name__ == "__main__":
    main()
