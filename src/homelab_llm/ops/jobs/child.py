"""Child: the daemon's side of the program that does one job. Starts it, hears it, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from homelab_llm.core.jobs import Report
from homelab_llm.ops.record import MANAGED_BY

_LINE_BYTES = 1 << 20
_LAST_LINES = 20
_LAST_CHARACTERS = 400
_WORDS_S = 1.0
_END_S = 7.0  # longer than the program gives itself
_REPORTED = frozenset(known.name for known in fields(Report))
PROGRAM = (sys.executable, "-P", "-m", "homelab_llm.ops.jobs.program")


@dataclass(slots=True)
class Outcome:
    """What became of it: exactly one of a result, an error, cancelled, or died with this exit code and last words."""

    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    cancelled: bool = False
    exit_code: int = 0
    last_words: list[str] = field(default_factory=list)

    @property
    def died(self) -> bool:
        """Whether it ended without saying what came of its work."""
        return self.result is None and self.error is None and not self.cancelled


class Child:
    """One program; ``run`` once."""

    def __init__(
        self, order: Mapping[str, Any], report: Callable[[Report], None], *, patience_s: float = _END_S
    ) -> None:
        self._order = order
        self._report = report
        self._patience_s = patience_s
        self._process: Process | None = None
        self._ending: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def pid(self) -> int:
        """Its process; 0 before and after."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def run(self) -> Outcome:
        """Start it and wait until it has ended, with every program it started.

        Raises:
            OSError: it cannot be started.
        """
        process = self._process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name not in MANAGED_BY},
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        outcome = Outcome()
        words = asyncio.create_task(_keep_last(process, outcome))
        try:
            if self._stopped:
                self._signal(signal.SIGTERM)
            await asyncio.gather(self._send(process), self._hear(process, outcome))
            outcome.exit_code = await process.wait()
        finally:
            if outcome.died:
                self._signal(signal.SIGKILL)  # what it started and left behind
            if self._ending is not None:
                self._ending.cancel()
            await asyncio.wait({words}, timeout=_WORDS_S)
            words.cancel()
        outcome.cancelled = outcome.cancelled or (outcome.died and self._stopped)
        return outcome

    def stop(self) -> None:
        """Ask it to end, and kill it when it does not; ``run`` then returns."""
        if not self._stopped:
            self._stopped = True
            self._signal(signal.SIGTERM)
            self._ending = asyncio.get_running_loop().create_task(self._insist())

    async def _insist(self) -> None:
        await asyncio.sleep(self._patience_s)
        self._signal(signal.SIGKILL)

    async def _send(self, process: Process) -> None:
        if process.stdin is not None:
            process.stdin.write(json.dumps(self._order).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # it died at once: its exit code says so
                await process.stdin.drain()

    async def _hear(self, process: Process, outcome: Outcome) -> None:
        if process.stdout is None:
            return
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond its bound: nothing that our program says
                continue
            if not line:
                return
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                self._take(json.loads(line), outcome)

    def _take(self, told: dict[str, Any], outcome: Outcome) -> None:
        if isinstance(step := told.get("progress"), dict):
            self._report(Report(**{name: step[name] for name in _REPORTED & step.keys()}))
        elif isinstance(result := told.get("result"), dict):
            outcome.result = result
        elif isinstance(error := told.get("error"), dict):
            outcome.error = error
        elif told.get("cancelled"):
            outcome.cancelled = True

    def _signal(self, number: signal.Signals) -> None:
        """To the whole session, also when the program itself has just ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


async def _keep_last(process: Process, outcome: Outcome) -> None:
    """Its last lines of standard error."""
    kept: deque[str] = deque(maxlen=_LAST_LINES)
    while process.stderr is not None:
        try:
            line = await process.stderr.readline()
        except ValueError:
            continue
        if not line:
            return
        kept.append(line.decode("utf-8", "replace").rstrip()[:_LAST_CHARACTERS])
        outcome.last_words[:] = kept
