"""The reference page of the command line, from the tree of verbs itself; a test fails when the page drifts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from homelab_llm.interface.cli.exit_codes import EXIT_CODES
from homelab_llm.interface.cli.invocation import shared_options
from homelab_llm.interface.cli.tree import mlxctl
from homelab_llm.ops.serve import serve


def render() -> str:
    """The page in Markdown: every verb with its arguments and options, and the exit codes."""
    lines = ["# Command line", "", _text(mlxctl), "", "Options of `mlxctl` itself, the last three of every verb:", ""]
    lines += [*_options(mlxctl, shared=True), ""]
    for path, command in verbs():
        lines += [
            f"## {path}",
            "",
            f"```\n{_usage(path, command)}\n```",
            "",
            _text(command),
            "",
            *_options(command),
            "",
        ]
    lines += ["## mlxserve", "", f"```\n{_usage('mlxserve', serve)}\n```", "", "The same as `mlxctl serve`.", ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code.number} | {code.meaning} |" for code in EXIT_CODES]
    lines += [
        "",
        'With `--json` an error is `{"error": {"code", "message", "hint", "retryable", "facts", "exit_code"}}`.',
        "",
    ]
    return "\n".join(lines)


def verbs() -> Iterator[tuple[str, click.Command]]:
    """Every verb that can be typed, with its full path, in the order of ``--help``."""
    yield from _below("mlxctl", mlxctl)


def _below(path: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _below(f"{path} {name}", command)
        elif command is not None and not command.hidden:
            yield f"{path} {name}", command


def _usage(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    return " ".join((path, *command.collect_usage_pieces(context)))


def _text(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").strip()


def _options(command: click.Command, *, shared: bool = False) -> list[str]:
    """The options of a verb; those that every verb takes only with ``shared``."""
    context = click.Context(command, info_name=command.name)
    known = {option.name for option in shared_options()}
    chosen = [
        parameter
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        and (shared or (parameter.name not in known and "--help" not in parameter.opts))
    ]
    rows = [found for option in chosen if (found := option.get_help_record(context))]
    if not rows:
        return []
    return ["| option | meaning |", "|---|---|", *(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
