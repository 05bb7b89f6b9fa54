"""Ownership: this process is the daemon of a home. One lock, held for life or passed on to the next daemon."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from homelab_llm.core.errors import DaemonRunning
from homelab_llm.core.locks import holder_pid, sign, try_lock
from homelab_llm.core.paths import Home


class Ownership:
    """The home's lock in this process's hand.

    ``ours`` says whether what tells others of a daemon (record, socket) is this process's. A lock that was passed on
    becomes ours when we serve; one that we passed on is not ours from ``give_away`` on. ``after_crash``: the daemon
    before this one left its record, so it did not end in order, or the machine did not.
    """

    def __init__(self, handle: int, *, ours: bool, after_crash: bool = False) -> None:
        self.handle = handle
        self.ours = ours
        self.after_crash = after_crash

    def sign(self) -> None:
        """Name this process in the lock."""
        sign(self.handle)

    def give_away(self) -> None:
        """Another process that holds the same lock is the daemon from now on."""
        self.ours = False
        self.close()

    def close(self) -> None:
        """Let go; the lock is free when nobody holds it any more."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


@contextmanager
def sole_daemon(home: Home, passed_on: int | None = None) -> Iterator[Ownership]:
    """Hold the home for life; what a killed daemon left behind is removed.

    Args:
        passed_on: the lock as another daemon holds it, when that one starts this one.

    Raises:
        DaemonRunning: another process holds the home; ``pid`` is the one that its lock names.
    """
    home.ensure()
    if passed_on is not None and _is_lock(home, passed_on):
        owner = Ownership(passed_on, ours=False)
    else:
        handle = try_lock(home.daemon_lock)
        if handle is None:
            raise _held(home)
        owner = Ownership(handle, ours=True, after_crash=home.daemon_json.exists())
        tidy(home)
    try:
        yield owner
    finally:
        owner.close()


def tidy(home: Home) -> None:
    """Remove what tells others that a daemon is here. Only for who owns the home."""
    for path in (home.daemon_json, home.daemon_sock):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _is_lock(home: Home, handle: int) -> bool:
    try:
        ours, named = os.fstat(handle), home.daemon_lock.stat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _held(home: Home) -> DaemonRunning:
    pid = holder_pid(home.daemon_lock)
    return DaemonRunning(
        f"another daemon owns {home.root}" + (f" (pid {pid})" if pid else ""), hint="mlxctl daemon status", pid=pid
    )
