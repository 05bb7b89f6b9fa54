"""Awake: a Mac shall not fall asleep for being idle while it answers. Elsewhere there is nothing to hold off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

_log = logging.getLogger(__name__)
LINGER_S = 5.0


def inhibitor(system: str = sys.platform, pid: int | None = None) -> tuple[str, ...]:
    """The program that holds off idle sleep as long as it runs; it ends by itself with process ``pid`` (us).

    Empty where none is needed. Source: caffeinate(8): ``-i`` prevents idle sleep, ``-w`` waits for a process.
    """
    return ("/usr/bin/caffeinate", "-i", "-w", str(pid or os.getpid())) if system == "darwin" else ()


class Awake:
    """Give ``busy`` to the fleet. The program starts with the first request and ends some seconds after the last.

    Args:
        program: what holds off sleep while it runs; empty = nothing.
        linger_s: how long after the last request; a conversation's next one comes soon.
    """

    def __init__(self, program: Sequence[str] | None = None, linger_s: float = LINGER_S) -> None:
        self._program = inhibitor() if program is None else program
        self._linger_s = linger_s
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The program that runs now."""
        return self._process.pid if self._process is not None else None

    def busy(self, busy: bool) -> None:
        """Requests run or wait, or none does; only on the event loop."""
        if not self._program:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if busy:
            self._hold_off()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self.close)

    def close(self) -> None:
        """Let the machine sleep when it likes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def _hold_off(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        quiet = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(self._program, stdin=quiet, stdout=quiet, stderr=quiet)
        except OSError as error:
            _log.warning("idle sleep cannot be held off", extra={"reason": error.strerror, "program": self._program[0]})
            self._program = ()
