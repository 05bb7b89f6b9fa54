"""Which service manager this machine has for an ordinary user."""

from __future__ import annotations

from collections.abc import Mapping

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.core.registry.handles import ManagedBy
from homelab_llm.ops.service.command import run_tool
from homelab_llm.ops.service.launchd import LaunchdUser
from homelab_llm.ops.service.spec import ServiceManager
from homelab_llm.ops.service.systemd import SystemdUser

_FOREGROUND = "mlxctl daemon start, or run mlxserve under the manager you have"


def choose_manager(platform: str, environ: Mapping[str, str]) -> ServiceManager:
    """launchd on macOS, the user's systemd elsewhere.

    Raises:
        UnsupportedRequest: this machine runs neither for this user; the message says which part is missing.
    """
    if platform == "darwin":
        return LaunchdUser(environ)
    asked = run_tool(("systemctl", "--user", "show-environment"), environ)
    if asked.returncode == 127:
        raise UnsupportedRequest("this machine has no systemd, so no service can be installed", hint=_FOREGROUND)
    if asked.returncode:
        said = asked.stderr.strip().splitlines()
        raise UnsupportedRequest(
            "systemd runs no instance for this user" + (f" ({said[-1]})" if said else ""),
            hint=f"log in with a full session, or: {_FOREGROUND}",
        )
    return SystemdUser(environ)


def file_manager(platform: str, environ: Mapping[str, str]) -> ServiceManager:
    """The manager whose file can be printed on any machine of this kind, whether it runs here or not."""
    return LaunchdUser(environ) if platform == "darwin" else SystemdUser(environ)


def manager_name(platform: str, environ: Mapping[str, str]) -> ManagedBy:
    """What keeps the daemon running: the manager whose service file is there, else people by hand."""
    manager = LaunchdUser(environ) if platform == "darwin" else SystemdUser(environ)
    if not manager.path.exists():
        return "manual"
    return "launchd" if platform == "darwin" else "systemd"
