"""``run/daemon.json``: what the running daemon says about itself, for programs that look for it.

The file may outlive a killed daemon; whether one runs is told by its socket, never by this file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.paths import Home

MANAGED_BY = ("NOTIFY_SOCKET", "HOMELAB_SERVICE")
"""Variables that a service manager gives to the daemon it starts: systemd the first, our LaunchAgent the second."""


@dataclass(frozen=True, slots=True)
class DaemonRecord:
    """Who runs and where it listens; ``listeners`` are the actual addresses, ports included.

    ``warnings`` are ``{text, hint}``; ``engine`` is the engine it prefers; ``managed`` says that a service manager
    started it and would miss it.
    """

    pid: int
    version: str
    started_unix_s: float
    socket: str
    listeners: list[str] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    engine: str = "auto"
    managed: bool = False


def write_record(home: Home, record: DaemonRecord) -> None:
    """Publish the record in one step."""
    write_atomic(home.daemon_json, json.dumps(asdict(record), indent=2).encode() + b"\n", mode=0o600)


def update_record(home: Home, listeners: list[str], warnings: list[dict[str, str]]) -> None:
    """Tell of this process's changed addresses and warnings; nothing when the record is not ours."""
    record = read_record(home)
    if record is not None and record.pid == os.getpid():
        write_record(home, replace(record, listeners=listeners, warnings=warnings))


def read_record(home: Home) -> DaemonRecord | None:
    """The record, or None when there is none that reads as one."""
    try:
        found: dict[str, Any] = json.loads(home.daemon_json.read_bytes())
        return DaemonRecord(**{name: found[name] for name in DaemonRecord.__dataclass_fields__ if name in found})
    except (OSError, ValueError, TypeError):
        return None
