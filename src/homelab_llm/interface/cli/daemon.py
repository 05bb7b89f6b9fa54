"""Verbs of the daemon as a process: ``daemon start|stop|restart|status``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import DaemonUnavailable, DeadlineExceeded, EndpointNotFound, UnsupportedRequest
from homelab_llm.core.paths import Home
from homelab_llm.core.units import format_duration
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup
from homelab_llm.ops.launch import owner_pid
from homelab_llm.ops.record import DaemonRecord, read_record

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient

STOP_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 700.0  # a migration of the database may be part of it
_HERE = "homelab_llm.interface.cli.daemon"


@click.group(
    "daemon",
    cls=LazyGroup,
    verbs={name: f"{_HERE}:{name}" for name in ("start", "stop", "restart", "status")},
)
def daemon() -> None:
    """Start, stop and look at the daemon."""


@verb("start")
def start(invocation: Invocation) -> None:
    """Start the daemon in the background, unless it runs."""
    was_there = invocation.daemon_if_running() is not None
    invocation.daemon()
    _tell(invocation, "already running" if was_there else "started")


@verb("stop")
def stop(invocation: Invocation) -> None:
    """End the daemon: running requests first, then every worker."""
    if stop_daemon(invocation):
        invocation.output.result({"running": False, "stopped": True}, "stopped")
    else:
        invocation.output.result({"running": False, "stopped": False}, "the daemon is not running")


@verb("restart")
@click.option("--cold", is_flag=True, help="Stop it, then start it: models are unloaded, running requests end.")
def restart(invocation: Invocation, cold: bool) -> None:
    """Put a new daemon in place of the running one without losing a request or unloading a model.

    The new one reads the settings again; if it fails, the old one goes on. Under launchd the service is restarted; its
    workers live on.
    """
    client = invocation.daemon_if_running()
    record = read_record(invocation.home)
    if client is not None and not cold and _hand_over(invocation, client):
        _tell(invocation, "restarted")
        return
    if client is not None and record is not None and record.managed:
        with invocation.output.loading("restarting the service"):
            _restart_service(invocation, record.pid)
    else:
        stop_daemon(invocation)
        invocation.daemon()
    _tell(invocation, "started")


@verb("status")
def status(invocation: Invocation) -> None:
    """Say whether the daemon runs and where it listens; exit code 10 when it does not."""
    if invocation.daemon_if_running() is None:
        if pid := owner_pid(invocation.home):
            raise DaemonUnavailable(f"the daemon (pid {pid}) does not answer", hint="mlxctl logs daemon", pid=pid)
        raise DaemonUnavailable("the daemon is not running", hint="mlxctl daemon start")
    _tell(invocation, "running")


def stop_daemon(invocation: Invocation) -> bool:
    """Ask the daemon to end and wait until its lock is free; False when none ran.

    Raises:
        DeadlineExceeded: it still holds the home after a minute.
    """
    client = invocation.daemon_if_running()
    pid = owner_pid(invocation.home)
    if client is None and pid is None:
        return False
    with invocation.output.loading("stopping the daemon"):
        if client is not None:
            client.post("/admin/shutdown", {})
        elif pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it holds the home but answers nobody: starting, or hung
                os.kill(pid, signal.SIGTERM)
        _wait_until_free(invocation.home)
    return True


def _hand_over(invocation: Invocation, client: DaemonClient) -> bool:
    """A planned restart by the Python that runs this; False when this daemon cannot be replaced like that.

    Raises:
        DaemonUnavailable: the new daemon failed; the old one goes on.
    """
    with invocation.output.loading("restarting the daemon"):
        try:
            client.post("/admin/restart", {"python": sys.executable}, timeout_s=RESTART_TIMEOUT_S)
        except EndpointNotFound:  # a daemon of an earlier version
            return False
        except UnsupportedRequest as refused:
            invocation.output.note(refused.message)
            return False
    return True


def _restart_service(invocation: Invocation, old_pid: int) -> None:
    from homelab_llm.ops.service.choose import choose_manager

    choose_manager(sys.platform, invocation.environ).restart()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while invocation.daemon_if_running() is None or owner_pid(invocation.home) == old_pid:
        if time.monotonic() > deadline:
            raise DaemonUnavailable("the service did not come back", hint="mlxctl service status")
        time.sleep(0.05)


def _wait_until_free(home: Home) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (pid := owner_pid(home)) is not None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"the daemon (pid {pid}) has not ended within {STOP_TIMEOUT_S:.0f} s",
                hint=f"mlxctl logs daemon, then kill {pid}",
                limit_s=STOP_TIMEOUT_S,
                pid=pid,
            )
        time.sleep(0.02)


def _tell(invocation: Invocation, word: str) -> None:
    record = read_record(invocation.home)
    data = {"running": True, "state": word, **(_shown(record) if record else {})}

    def lines() -> list[str]:
        if record is None:
            return [word]
        up = format_duration(max(time.time() - record.started_unix_s, 0))
        return [f"{word} (pid {record.pid}, {record.version}, up {up})", *(f"http://{a}" for a in record.listeners)]

    invocation.output.result(data, lines)
    for warning in record.warnings if record else ():
        invocation.output.warning(warning["text"], warning["hint"])


def _shown(record: DaemonRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
