"""A LaunchAgent. Sources: launchd.plist(5), launchctl(1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from homelab_llm.ops.service.command import run_tool
from homelab_llm.ops.service.spec import ServiceSpec, ServiceState

LABEL = "org.homelab-llm.mlxserve"


def render_agent(spec: ServiceSpec) -> bytes:
    """The property list: started at login, and again after a crash, at most every ten seconds.

    Workers outlive the daemon (``AbandonProcessGroup``), so that the next one adopts them.
    """
    import plistlib  # an XML parser, which a daemon that only asks where the file is does not need

    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(spec.argv),
            "EnvironmentVariables": {"HOMELAB_SERVICE": "launchd"},
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": 60,
            "AbandonProcessGroup": True,
            "ProcessType": "Interactive",
            "Umask": 0o077,
            "StandardOutPath": str(spec.log),
            "StandardErrorPath": str(spec.log),
        }
    )


class LaunchdUser:
    """The launchd domain of this user's graphical session."""

    def __init__(self, environ: Mapping[str, str], *, uid: int | None = None) -> None:
        self._environ = environ
        self._domain = f"gui/{os.getuid() if uid is None else uid}"
        self.path = Path(environ.get("HOME", "~")).expanduser() / "Library" / "LaunchAgents" / f"{LABEL}.plist"

    def render(self, spec: ServiceSpec) -> str:
        return render_agent(spec).decode("utf-8")

    def install(self, spec: ServiceSpec) -> ServiceState:
        disabled_by_hand = self._disabled()
        if self._loaded():
            self._launchctl("bootout", f"{self._domain}/{LABEL}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(render_agent(spec))
        if not disabled_by_hand:
            self._launchctl("bootstrap", self._domain, str(self.path))
        return self.state()

    def uninstall(self) -> bool:
        if not self.path.exists():
            return False
        if self._loaded():
            self._launchctl("bootout", f"{self._domain}/{LABEL}")
        self.path.unlink()
        return True

    def restart(self) -> None:
        self._launchctl("kickstart", "-k", f"{self._domain}/{LABEL}")

    def state(self) -> ServiceState:
        installed = self.path.exists()
        enabled = installed and not self._disabled()
        printed = run_tool(("launchctl", "print", f"{self._domain}/{LABEL}"), self._environ)
        hint = "mlxctl service install"
        if installed:
            hint = "" if enabled else f"launchctl enable {self._domain}/{LABEL}"
        return ServiceState(
            manager="launchd",
            path=self.path,
            installed=installed,
            enabled=enabled,
            running=printed.returncode == 0 and "state = running" in printed.stdout,
            hint=hint,
        )

    def _loaded(self) -> bool:
        return run_tool(("launchctl", "print", f"{self._domain}/{LABEL}"), self._environ).returncode == 0

    def _disabled(self) -> bool:
        listed = run_tool(("launchctl", "print-disabled", self._domain), self._environ).stdout
        return any(f'"{LABEL}"' in line and ("disabled" in line or "true" in line) for line in listed.splitlines())

    def _launchctl(self, *arguments: str) -> None:
        run_tool(("launchctl", *arguments), self._environ, must=True)
