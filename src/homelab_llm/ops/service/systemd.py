"""A systemd user unit. Sources: systemd.service(5), systemd.exec(5), systemd.syntax(7), loginctl(1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from homelab_llm.ops.service.command import run_tool
from homelab_llm.ops.service.spec import ServiceSpec, ServiceState

UNIT = "homelab-llm.service"
_LINGER_HINT = "loginctl enable-linger    # so that it also runs while you are logged out"


def quote(argument: str) -> str:
    """An argument of ``ExecStart``: quoted, with ``%`` and ``$`` doubled so that neither is expanded."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def render_unit(spec: ServiceSpec) -> str:
    """The unit: ready when the daemon says so, restarted after a crash but not after a wrong setting.

    Only the daemon gets signals (``KillMode=process``) and its runtime folder stays, so that workers outlive it and the
    next daemon adopts them. That daemon reads ``/proc`` to prove who they are: no option may hide it, nor the home.
    """
    return f"""\
[Unit]
Description=homelab-llm daemon
StartLimitIntervalSec=120
StartLimitBurst=5

[Service]
Type=notify
ExecStart={" ".join(quote(argument) for argument in spec.argv)}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2 3 5
TimeoutStartSec=60
TimeoutStopSec=60
KillMode=process
RuntimeDirectoryPreserve=yes
NotifyAccess=main
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


class SystemdUser:
    """The systemd instance of this user."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
        self.path = Path(base) / "systemd" / "user" / UNIT

    def render(self, spec: ServiceSpec) -> str:
        return render_unit(spec)

    def install(self, spec: ServiceSpec) -> ServiceState:
        disabled_by_hand = self.path.exists() and not self.state().enabled
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(render_unit(spec), "utf-8")
        self._systemctl("daemon-reload")
        if not disabled_by_hand:
            self._systemctl("enable", UNIT)
            self._systemctl("restart", UNIT)
        return self.state()

    def uninstall(self) -> bool:
        if not self.path.exists():
            return False
        self._systemctl("disable", "--now", UNIT)
        self.path.unlink()
        self._systemctl("daemon-reload")
        return True

    def restart(self) -> None:
        self._systemctl("restart", UNIT)

    def state(self) -> ServiceState:
        installed = self.path.exists()
        enabled = installed and self._asks("is-enabled")
        lingers = "Linger=yes" in run_tool(("loginctl", "show-user", "--property=Linger"), self._environ).stdout
        return ServiceState(
            manager="systemd",
            path=self.path,
            installed=installed,
            enabled=enabled,
            running=installed and self._asks("is-active"),
            hint=_hint(installed=installed, enabled=enabled, lingers=lingers),
        )

    def _asks(self, question: str) -> bool:
        return run_tool(("systemctl", "--user", "--quiet", question, UNIT), self._environ).returncode == 0

    def _systemctl(self, *arguments: str) -> None:
        run_tool(("systemctl", "--user", *arguments), self._environ, must=True)


def _hint(*, installed: bool, enabled: bool, lingers: bool) -> str:
    if not installed:
        return "mlxctl service install"
    if not enabled:
        return f"systemctl --user enable --now {UNIT}"
    return "" if lingers else _LINGER_HINT
