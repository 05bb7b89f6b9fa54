"""A verb that does not exist, and the one that was probably meant. Imported only when there was a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import click


class UnknownVerb(click.UsageError):
    """No verb of a group has this name; ``hint`` is the next command."""

    def __init__(self, word: str, known: Sequence[str], context: click.Context) -> None:
        super().__init__(f"there is no verb {word[:40]!r} in {context.command_path}", context)
        near = get_close_matches(word, known, n=1)
        self.hint = f"{context.command_path} {near[0] if near else '--help'}"
