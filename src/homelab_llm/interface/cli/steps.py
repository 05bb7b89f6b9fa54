"""Work that the daemon reports step by step, one JSON line each: shown while it goes, and called off by Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from homelab_llm.core.errors import Cancelled, DaemonUnavailable, error_of

if TYPE_CHECKING:
    from homelab_llm.interface.cli.invocation import Invocation
    from homelab_llm.interface.daemon_client import DaemonClient

_LAST = ("ready", "done")


def follow_steps(
    invocation: Invocation,
    client: DaemonClient,
    path: str,
    body: Mapping[str, Any],
    *,
    title: str,
    called_off: str,
    each: Callable[[Mapping[str, Any]], None] = lambda _step: None,
) -> dict[str, Any]:
    """Ask for the work and show its steps; the last one, which holds the result.

    Args:
        called_off: what is left behind when the work is called off, for the message.
        each: gets every step but the last.

    Raises:
        Cancelled: Ctrl-C; the connection was closed, so the daemon calls the work off.
        DaemonUnavailable: the reply ended before the work did.
        HomelabError: the error the work ended with.
    """
    try:
        with invocation.output.loading(title) as progress, client.stream(path, body) as reply:
            for line in filter(None, reply.lines()):
                step = json.loads(line)
                if isinstance(step.get("error"), dict):
                    raise error_of(step["error"])
                if step.get("stage") in _LAST:
                    return dict(step)
                progress.update(_words(step, title), float(step.get("done") or 0), 1)
                each(step)
    except KeyboardInterrupt:
        raise Cancelled(f"called off: {called_off}", hint="mlxctl status") from None
    raise DaemonUnavailable("the daemon went away before the work was done", hint="mlxctl status")


def _words(step: Mapping[str, Any], title: str) -> str:
    """What is going on; a text that only names the model, as the title does, says less than the stage."""
    text, stage = str(step.get("text") or ""), str(step.get("stage") or "")
    place = f"place {step['place']} in the queue" if step.get("place") else ""
    return ", ".join(filter(None, (stage if text in title else text, place)))
