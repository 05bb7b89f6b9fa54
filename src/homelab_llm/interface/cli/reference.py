"""The reference page of the command line, from the tree of verbs itself; a test fails when the page drifts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from homelab_llm.interface.cli.contents import CHAPTERS
from homelab_llm.interface.cli.exit_codes import EXIT_CODES
from homelab_llm.interface.cli.invocation import shared_options
from homelab_llm.interface.cli.tree import mlxctl
from homelab_llm.ops.serve import serve


def render() -> str:
    """The page in Markdown: every verb with its arguments and options, and the exit codes."""
    lines = ["# Command line", "", _text(mlxctl), "", "Options of `mlxctl` itself, the last three of every verb:", ""]
    lines += [*_options(mlxctl, shared=True), "", *_contents(), ""]
    for path, command in _listed():
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


def _listed() -> Iterator[tuple[str, click.Command]]:
    """The verbs for people: those of hidden groups are between programs."""
    unlisted = {name for chapter in CHAPTERS for name, entry in chapter.verbs.items() if not entry.summary}
    return ((path, command) for path, command in verbs() if path.split()[1] not in unlisted)


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


def _contents() -> Iterator[str]:
    """The verbs by what they are for, as ``--help`` groups them; each with a link to its section."""
    sections = [path for path, _ in _listed()]
    yield from ("| for | verbs |", "|---|---|")
    for chapter in CHAPTERS:
        links = []
        for name in chapter.verbs:
            first = next((path for path in sections if f"{path} ".startswith(f"mlxctl {name} ")), None)
            links += [f"[{name}](#{first.replace(' ', '-')})"] if first else []
        yield f"| {chapter.title.lower()} | {', '.join(links)} |"


def _text(command: click.Command) -> str:
    """What a verb says of itself; paragraphs that click leaves as they are become blocks of code."""
    paragraphs = inspect.cleandoc(command.help or "").strip().split("\n\n")
    return "\n\n".join(f"```\n{p[2:]}\n```" if p.startswith("\b\n") else p for p in paragraphs)


def _options(command: click.Command, *, shared: bool = False) -> list[str]:
    """The options of a verb; those that every verb takes only with ``shared``."""
    context = click.Context(command, info_name=command.name, **command.context_settings)
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
