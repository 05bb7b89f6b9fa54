"""Watching the daemon: a file descriptor that becomes readable when that one process is gone.

Linux: pidfd_open(2). macOS: kqueue with EVFILT_PROC and NOTE_EXIT. Where neither works, ``gone`` is to be asked
now and then.
"""

from __future__ import annotations

import os
import select

from homelab_llm.inference.fleet import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Watch:
    """One watched process, named by pid and start time. ``fd`` is -1 when it can only be asked."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started
        self.fd = self._open()

    def gone(self) -> bool:
        """Whether the process is dead by proof."""
        return not processes.alive(self.pid, self.started)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _open(self) -> int:
        try:
            return os.pidfd_open(self.pid) if processes.LINUX else _kqueue_of(self.pid)
        except OSError:
            return -1


def _kqueue_of(pid: int) -> int:
    kernel: Any = select  # these names exist on BSD and macOS only
    queue = kernel.kqueue()
    flags = kernel.KQ_EV_ADD | kernel.KQ_EV_ONESHOT
    queue.control([kernel.kevent(pid, kernel.KQ_FILTER_PROC, flags, kernel.KQ_NOTE_EXIT)], 0, 0)
    return os.dup(queue.fileno())  # outlives the kqueue object
