"""Lazy groups: a verb's module is imported when the verb is invoked, or listed by ``--help``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from homelab_llm.interface.cli.invocation import shared_options


class LazyGroup(click.Group):
    """A group whose members are named as ``module:attribute``.

    ``verbs`` keeps the order of ``--help``.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = dict(verbs or {})
        self.params.extend(shared_options())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 — click asks
        return [*self._verbs, *self.commands]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a verb that is not there is answered with the one that was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as unknown:
            if args[0].startswith("-"):
                raise
            from homelab_llm.interface.cli.mistyped import UnknownVerb

            raise UnknownVerb(args[0], self.list_commands(ctx), ctx) from unknown

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._verbs[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 — the table below the root names commands only
        return command
