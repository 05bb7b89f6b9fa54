"""``mlxctl`` itself: its options, its help and its verbs; nothing is imported until a verb is invoked."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from homelab_llm.interface.cli.contents import CHAPTERS
from homelab_llm.interface.cli.elsewhere import EXPECT_VERSION, place_verb
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.lazy import LazyGroup

_WHOLE = "homelab_llm.argv"

VERBS = {name: verb.place for chapter in CHAPTERS for name, verb in chapter.verbs.items()}


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
        if not ctx.resilient_parsing and args[0] in VERBS:
            whole: list[str] = ctx.meta[_WHOLE]
            options = {**ctx.params, "json": "--json" in whole[: len(whole) - len(args)]}
            code = place_verb(invocation, options, args)
            if code is not None:
                ctx.exit(code)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 — click asks
        """The verbs by what they are for. From the table: no verb is imported."""
        width = max(map(len, VERBS))
        for chapter in CHAPTERS:
            with formatter.section(chapter.title):
                rows = [(name.ljust(width), verb.summary) for name, verb in chapter.verbs.items() if verb.summary]
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and options that begin as typed, again without an import."""
        named = [(name, verb.summary) for chapter in CHAPTERS for name, verb in chapter.verbs.items()]
        found = [CompletionItem(name, help=text) for name, text in named if text and name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


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
