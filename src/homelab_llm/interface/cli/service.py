"""``mlxctl service``: the daemon as a service of this user."""

from __future__ import annotations

import sys
from typing import Any

import click

from homelab_llm.core.errors import DaemonRunning
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup
from homelab_llm.ops.service.choose import choose_manager, file_manager
from homelab_llm.ops.service.spec import ServiceSpec, ServiceState

_HERE = "homelab_llm.interface.cli.service"


@click.group("service", cls=LazyGroup, verbs={name: f"{_HERE}:{name}" for name in ("install", "uninstall", "status")})
def service() -> None:
    """Run the daemon as a service of this user: systemd or launchd, without root."""


@verb("install")
@click.option("--print", "only_print", is_flag=True, help="Print the unit or property list; change nothing.")
def install(invocation: Invocation, only_print: bool) -> None:
    """Start the daemon now, at every login, and after a crash.

    A service that was disabled by hand stays disabled.
    """
    spec = ServiceSpec.of(invocation.home)
    if only_print:
        text = file_manager(sys.platform, invocation.environ).render(spec)
        invocation.output.result({"file": text}, text.rstrip("\n"))
        return
    manager = choose_manager(sys.platform, invocation.environ)
    if not manager.state().running and invocation.daemon_if_running():
        raise DaemonRunning(
            "a daemon that is not the service runs already", hint="mlxctl daemon stop, then mlxctl service install"
        )
    invocation.home.ensure()
    _tell(invocation, manager.install(spec))


@verb("uninstall")
def uninstall(invocation: Invocation) -> None:
    """Stop the service and remove its file; models, settings and logs stay."""
    removed = choose_manager(sys.platform, invocation.environ).uninstall()
    invocation.output.result({"removed": removed}, "removed" if removed else "no service was installed")


@verb("status")
def status(invocation: Invocation) -> None:
    """Say whether the service is installed, enabled and running."""
    _tell(invocation, choose_manager(sys.platform, invocation.environ).state())


def _tell(invocation: Invocation, state: ServiceState) -> None:
    data: dict[str, Any] = {name: getattr(state, name) for name in state.__dataclass_fields__}
    words = ", ".join(
        (
            "installed" if state.installed else "not installed",
            "enabled" if state.enabled else "not enabled",
            "running" if state.running else "not running",
        )
    )
    invocation.output.result(data, lambda: [f"{state.manager}: {words}", f"file   {state.path}"])
    if state.hint and not invocation.output.json:
        invocation.output.note(f"try: {state.hint}")
