"""The tree of verbs: names and where they live; nothing is imported until a verb is invoked."""

from __future__ import annotations

from pathlib import Path

import click

from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.lazy import LazyGroup

_CLI = "homelab_llm.interface.cli"

VERBS = {
    "run": f"{_CLI}.run:run",
    "chat": f"{_CLI}.chat:chat",
    "pull": f"{_CLI}.pull:pull",
    "import": f"{_CLI}.models:import_",
    "list": f"{_CLI}.models:list_",
    "show": f"{_CLI}.models:show",
    "cp": f"{_CLI}.models:cp",
    "rm": f"{_CLI}.models:rm",
    "prune": f"{_CLI}.models:prune",
    "suggest": f"{_CLI}.suggest:suggest",
    "load": f"{_CLI}.slots:load",
    "swap": f"{_CLI}.slots:swap",
    "unload": f"{_CLI}.slots:unload",
    "unload-all": f"{_CLI}.slots:unload_all",
    "adopt": f"{_CLI}.slots:adopt",
    "reconcile": f"{_CLI}.upkeep:reconcile",
    "verify": f"{_CLI}.upkeep:verify",
    "pin": f"{_CLI}.upkeep:pin",
    "unpin": f"{_CLI}.upkeep:unpin",
    "unquarantine": f"{_CLI}.upkeep:unquarantine",
    "fit": f"{_CLI}.foresight:fit",
    "explain": f"{_CLI}.foresight:explain",
    "events": f"{_CLI}.events:events",
    "ps": f"{_CLI}.residency:ps",
    "stop": f"{_CLI}.residency:stop",
    "status": f"{_CLI}.status:status",
    "logs": f"{_CLI}.logs:logs",
    "key": f"{_CLI}.keys:key",
    "daemon": f"{_CLI}.daemon:daemon",
    "serve": "homelab_llm.ops.serve:serve",
    "service": f"{_CLI}.service:service",
    "doctor": f"{_CLI}.doctor:doctor",
    "version": f"{_CLI}.version:version",
    "completion": f"{_CLI}.completion:completion",
}


@click.group(
    "mlxctl",
    cls=LazyGroup,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--home",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of models, settings and logs; else HOMELAB_HOME, else the platform's data folder.",
)
@click.pass_obj
def mlxctl(invocation: Invocation, root: Path | None) -> None:
    """Run language models on this machine.

    The daemon is started when a verb needs it. Every verb takes --json.
    """
    invocation.home_root = root
