"""Starting the daemon when a verb needs it: once, however many processes ask at the same moment.

One lock file is held from the look to the answer; who waited for it finds a running daemon. A daemon that somebody
else is starting or that is still draining owns the home's lock: ours then ends with ``DaemonRunning`` and is tried
again until the time is up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from homelab_llm.core.errors import DaemonUnavailable
from homelab_llm.core.locks import holder_pid, locked, try_lock
from homelab_llm.core.paths import Home
from homelab_llm.ops.record import MANAGED_BY
from homelab_llm.ops.tail import last_lines

START_TIMEOUT_S = 30.0
_POLL_S = 0.02
_RETRY_S = 0.2
_CONFLICT = 6  # exit code of DaemonRunning; a test holds it against the table of the command line


def daemon_log(home: Home) -> Path:
    """Where a detached daemon writes."""
    return home.logs / "daemon.log"


def ensure_daemon(
    home: Home, answers: Callable[[], bool], environ: Mapping[str, str], *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Return when a daemon of this home answers; start one when none does. Blocks.

    Raises:
        DaemonUnavailable: it died (with the last lines of its log) or did not answer in time.
        StoreBusy: another process was busy starting it all that time.
    """
    if answers():
        return
    home.ensure()
    deadline = time.monotonic() + timeout_s
    with locked(home.run / "start.lock", wait_s=timeout_s):
        while not answers():
            child = spawn(home, environ)
            code = _settled(child, answers, deadline)
            if code is None:
                return
            if code != _CONFLICT:
                raise _died(home, code)
            if time.monotonic() >= deadline:
                raise _late(home, timeout_s)
            time.sleep(_RETRY_S)


def owner_pid(home: Home) -> int | None:
    """The process that holds this home's lock right now; None when nobody does."""
    if not home.daemon_lock.exists():
        return None
    handle = try_lock(home.daemon_lock)
    if handle is None:
        return holder_pid(home.daemon_lock)
    os.close(handle)
    return None


def spawn(home: Home, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A daemon in a session of its own: it outlives this process and its terminal."""
    log = os.open(daemon_log(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "homelab_llm.ops.serve", "--home", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in environ.items() if name not in MANAGED_BY},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)


def _settled(child: subprocess.Popen[bytes], answers: Callable[[], bool], deadline: float) -> int | None:
    """None when a daemon answers, else the exit code of the one we started."""
    while time.monotonic() < deadline:
        code = child.poll()
        if answers():
            child.returncode = child.returncode if code is not None else 0  # it lives on: no warning about a lost child
            return None
        if code is not None:
            return code
        time.sleep(_POLL_S)
    child.terminate()
    return child.wait()


def _died(home: Home, code: int) -> DaemonUnavailable:
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = last_lines(daemon_log(home), 5)
    told = "".join(f"\n  {line}" for line in lines)
    return DaemonUnavailable(f"the daemon did not start ({ended}){told}", hint="mlxctl doctor", log=lines)


def _late(home: Home, timeout_s: float) -> DaemonUnavailable:
    return DaemonUnavailable(
        f"another daemon owns this home but does not answer within {timeout_s:.0f} s",
        hint="mlxctl daemon status",
        log=last_lines(daemon_log(home), 5),
    )
