"""What a service manager must know about the daemon, and what it tells about it. Values only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from homelab_llm.core.paths import Home


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """How to run the daemon: absolute ``argv``, its home, and where its output goes."""

    argv: tuple[str, ...]
    home: Path
    log: Path

    @classmethod
    def of(cls, home: Home) -> ServiceSpec:
        """The daemon of ``home``, run by the Python that runs this."""
        argv = (sys.executable, "-m", "homelab_llm.ops.serve", "--home", str(home.root))
        return cls(argv, home.root, home.logs / "daemon.log")


@dataclass(frozen=True, slots=True)
class ServiceState:
    """``installed``: its file is there; ``enabled``: it starts by itself; ``running``: it does now."""

    manager: str
    path: Path
    installed: bool
    enabled: bool
    running: bool
    hint: str = ""


class ServiceManager(Protocol):
    """systemd or launchd, for one service."""

    def render(self, spec: ServiceSpec) -> str:
        """The file that describes the service."""
        ...

    def install(self, spec: ServiceSpec) -> ServiceState:
        """Write the file and start the service; one that was disabled by hand stays disabled."""
        ...

    def uninstall(self) -> bool:
        """Stop the service and remove its file; False when it was not installed."""
        ...

    def restart(self) -> None: ...

    def state(self) -> ServiceState: ...
