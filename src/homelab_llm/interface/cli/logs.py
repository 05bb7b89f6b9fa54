"""``mlxctl logs``: the daemon's log, or the output of a worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import click

from homelab_llm.core.errors import NotFound
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.output import Output

_WORKER_ID = re.compile(r"[a-z0-9]{1,12}")


@verb("logs")
@click.argument("which", default="daemon", metavar="[daemon|WORKER]")
@click.option("-f", "--follow", "keep_on", is_flag=True, help="Go on as lines are added, until Ctrl-C.")
@click.option(
    "-n", "--lines", "count", type=click.IntRange(0), default=50, show_default=True, help="Lines to begin with."
)
def logs(invocation: Invocation, which: str, keep_on: bool, count: int) -> None:
    """Print a log. WORKER is the id that `ps` shows, or the name of a loaded model. Requests: `mlxctl db query`.

    With --json every line is a JSON object.
    """
    from homelab_llm.ops.tail import follow, last_lines

    path = _path(invocation, which)
    if not path.exists():
        invocation.output.note(f"no log at {path} yet; a systemd service writes to: journalctl --user -u homelab-llm")
    _print(invocation.output, last_lines(path, count))
    if keep_on:
        _print(invocation.output, follow(path))


def _print(output: Output, lines: Iterable[str]) -> None:
    for line in lines:
        if output.json:
            output.event(_as_object(line))
        else:
            output.answer(line + "\n")


def _as_object(line: str) -> object:
    try:
        found = json.loads(line)
    except ValueError:
        return {"line": line}
    return found if isinstance(found, dict) else {"line": line}


def _path(invocation: Invocation, which: str) -> Path:
    """The file of that log.

    Raises:
        NotFound: neither a log, nor a worker's id, nor a loaded model.
    """
    home = invocation.home
    if which == "daemon":
        return home.logs / "daemon.log"
    if _WORKER_ID.fullmatch(which) and (path := home.worker_logs / f"{which}.log").exists():
        return path
    if client := invocation.daemon_if_running():
        name = which if ":" in which else f"{which}:latest"
        for entry in client.get("/admin/models")["models"]:
            if entry["model"] in (which, name):
                return home.worker_logs / f"{entry['id']}.log"
    raise NotFound(f"no log of {which[:80]}", hint="mlxctl ps shows the ids of workers")
