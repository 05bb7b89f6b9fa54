"""``mlxctl version``."""

from __future__ import annotations

import platform

import homelab_llm
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.ops.record import read_record


@verb("version")
def version(invocation: Invocation) -> None:
    """Say the version of this program, and of the daemon where one runs."""
    record = read_record(invocation.home) if invocation.home.daemon_json.exists() else None
    running = record if record and invocation.daemon_if_running() else None
    data = {
        "version": homelab_llm.__version__,
        "python": platform.python_version(),
        "daemon": {"version": running.version, "pid": running.pid} if running else None,
    }
    lines = [f"mlxctl {homelab_llm.__version__} (Python {platform.python_version()})"]
    if running:
        lines.append(f"daemon {running.version} (pid {running.pid})")
        if running.version != homelab_llm.__version__:
            invocation.output.warning("the daemon runs another version", "mlxctl daemon restart")
    invocation.output.result(data, lambda: lines)
