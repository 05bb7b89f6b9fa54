"""``--engine`` of ``run`` and ``chat``: a daemon that prefers this engine, or the reason why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homelab_llm.core.errors import Conflict
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.ops.record import read_record

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient


def daemon_with_engine(invocation: Invocation, engine: str) -> DaemonClient:
    """A running daemon; ``auto`` takes any. One that prefers another engine is restarted when it is idle and ours.

    Raises:
        Conflict: it serves requests, or a service manager keeps it.
    """
    client = invocation.daemon_if_running()
    record = read_record(invocation.home)
    if client is None or engine == "auto" or record is None or record.engine == engine:
        return client or invocation.daemon(engine=engine)
    found = client.get("/admin/status")
    busy = found.get("waiting") or any(worker.get("leases") for worker in found.get("workers") or ())
    if record.managed or busy:
        raise Conflict(
            f"the running daemon prefers the engine {record.engine}"
            + (" and serves requests" if busy else " and a service manager keeps it"),
            hint=f"set engine.prefer: {engine} in {invocation.home.config}, then restart the daemon",
        )
    from homelab_llm.interface.cli.daemon import stop_daemon

    invocation.output.note(f"restarting the idle daemon with the engine {engine}")
    stop_daemon(invocation)
    return invocation.daemon(engine=engine)
