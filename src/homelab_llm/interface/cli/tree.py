"""The tree of verbs: names and where they live; nothing is imported until a verb is invoked."""

from __future__ import annotations

from pathlib import Path

import click

from homelab_llm.interface.cli.elsewhere import EXPECT_VERSION, place_verb
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.lazy import LazyGroup

_CLI = "homelab_llm.interface.cli"
_WHOLE = "homelab_llm.argv"

VERBS = {
    "run": f"{_CLI}.run:run",
    "chat": f"{_CLI}.chat:chat",
    "pull": f"{_CLI}.pull:pull",
    "import": f"{_CLI}.models:import_",
    "init": f"{_CLI}.init:init",
    "list": f"{_CLI}.listing:list_",
    "convert": f"{_CLI}.conversion:convert",
    "quantize": f"{_CLI}.conversion:quantize",
    "fuse": f"{_CLI}.conversion:fuse",
    "perplexity": f"{_CLI}.conversion:perplexity",
    "show": f"{_CLI}.show:show",
    "create": f"{_CLI}.create:create",
    "cp": f"{_CLI}.copying:cp",
    "exchange": f"{_CLI}.copying:exchange",
    "export": f"{_CLI}.exporting:export",
    "rm": f"{_CLI}.models:rm",
    "prune": f"{_CLI}.trust:prune",
    "gc": f"{_CLI}.trust:gc",
    "du": f"{_CLI}.trust:du",
    "repair": f"{_CLI}.trust:repair",
    "push": f"{_CLI}.registries:push",
    "pack": f"{_CLI}.registries:pack",
    "login": f"{_CLI}.registries:login",
    "logout": f"{_CLI}.registries:logout",
    "template": f"{_CLI}.templates:template",
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
    "jobs": f"{_CLI}.jobs:jobs",
    "registry": f"{_CLI}.registry:registry",
    "handles": f"{_CLI}.handles:handles",
    "ps": f"{_CLI}.residency:ps",
    "stop": f"{_CLI}.residency:stop",
    "status": f"{_CLI}.status:status",
    "logs": f"{_CLI}.logs:logs",
    "key": f"{_CLI}.keys:key",
    "db": f"{_CLI}.db:db",
    "daemon": f"{_CLI}.daemon:daemon",
    "serve": "homelab_llm.ops.serve:serve",
    "service": f"{_CLI}.service:service",
    "doctor": f"{_CLI}.doctor:doctor",
    "version": f"{_CLI}.version:version",
    "completion": f"{_CLI}.completion:completion",
}


class Root(LazyGroup):
    """``mlxctl`` itself: before a verb is even imported it is decided on which machine it runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WHOLE] = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, unless the verb runs elsewhere: then the process ends with its exit code."""
        invocation = ctx.ensure_object(Invocation)
        invocation.home_root = ctx.params["root"]
        if not ctx.resilient_parsing:
            whole: list[str] = ctx.meta[_WHOLE]
            options = {**ctx.params, "json": "--json" in whole[: len(whole) - len(args)]}
            code = place_verb(invocation, options, args)
            if code is not None:
                ctx.exit(code)
        return super().resolve_command(ctx, args)


def _expect(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    context.ensure_object(Invocation).expected_version = value


@click.group(
    "mlxctl",
    cls=Root,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--home",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of models, settings and logs; else HOMELAB_HOME, else the platform's data folder.",
)
@click.option("--host", metavar="NAME", help="Run the verb on this machine, over ssh; else remote.inference_host.")
@click.option("--local", is_flag=True, help="Run it here, whatever remote.inference_host says.")
@click.option("--url", help="Speak to the daemon at this address, with the key in HOMELAB_KEY or --key-file.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the API key for --url; admin verbs need a key made with --admin.",
)
@click.option(EXPECT_VERSION, is_eager=True, expose_value=False, hidden=True, callback=_expect)
def mlxctl(**_options: object) -> None:
    """Run language models on this machine, or on another one.

    The daemon is started when a verb needs it. Every verb takes --json.
    """
