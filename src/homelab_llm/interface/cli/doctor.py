"""``mlxctl doctor``."""

from __future__ import annotations

from dataclasses import asdict

from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.invocation import Invocation, verb


@verb("doctor")
def doctor(invocation: Invocation) -> int:
    """Check this installation: what is wrong, why, and the next command. Exit code 1 when something is broken."""
    from homelab_llm.ops import checks
    from homelab_llm.ops.checks_engines import engines, memory
    from homelab_llm.ops.doctor import Surroundings, examine

    client = invocation.daemon_if_running()
    surroundings = Surroundings(invocation.home, invocation.environ, client.get if client else None)
    every = (
        checks.python,
        checks.home,
        checks.disk,
        checks.settings,
        checks.daemon,
        checks.ports,
        engines,
        memory,
        checks.models,
    )
    findings = list(examine(surroundings, every))
    broken = any(finding.status == "fail" for finding in findings)
    if invocation.output.json:
        invocation.output.result({"ok": not broken, "checks": [asdict(finding) for finding in findings]}, "")
    else:
        invocation.output.checks((f.status, f.name, f.why, f.step) for f in findings)
    return exit_codes.FAILED if broken else exit_codes.OK
