"""The process of a worker host, whether this daemon started it or an earlier one: alive, dead by proof, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import BinaryIO

from homelab_llm.inference.fleet import processes

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


class HostProcess:
    """One process, named by pid and start time. It is never signalled under another name than that."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started
        self._dead = False

    @classmethod
    def spawn(cls, argv: Sequence[str], log: BinaryIO) -> HostProcess:
        """Start a host in a session of its own. Blocks for the milliseconds a start takes.

        Not asyncio's way: its transports kill their processes when they are collected, and a host outlives us.

        Raises:
            OSError: it could not be executed.
        """
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
        found = cls(process.pid, processes.start_time(process.pid) or 0)
        process.returncode = 0  # from here on we wait for it ourselves
        return found

    @property
    def identity(self) -> processes.Identity:
        """What names it for ever."""
        return self.pid, self.started

    @property
    def dead(self) -> bool:
        """Whether it is dead by proof; reaps it when it was a child of ours."""
        if not self._dead and not processes.alive(self.pid, self.started):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            self._dead = True
        return self._dead

    async def wait(self) -> None:
        """Until it is dead."""
        pause_s = _FIRST_PAUSE_S
        while not self.dead:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def kill(self) -> None:
        """End it at once, and nobody who has its number by now."""
        if self.dead:
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                handle = os.pidfd_open(self.pid) if processes.LINUX else -1
            except OSError:  # an old kernel
                handle = -1
            if handle < 0:
                os.kill(self.pid, signal.SIGKILL)
                return
            try:
                if processes.alive(self.pid, self.started):  # the handle names the process that was just looked at
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
