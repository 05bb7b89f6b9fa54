"""``mlxctl registry edit``: the registry, or one entry, in the editor. Nothing wrong is written and no text is lost."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import Cancelled, Conflict, HomelabError, NotFound
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.registry import say_changes, take

if TYPE_CHECKING:
    from homelab_llm.core.registry.document import Document
    from homelab_llm.core.registry.state import RegistryState
    from homelab_llm.data.registry import Registry


@verb("edit")
@click.argument("model", default="")
def edit(invocation: Invocation, model: str) -> None:
    """Open the registry, or the entry of MODEL, in `$VISUAL` or `$EDITOR`.

    What is saved is checked before it is taken; on a terminal a mistake opens the editor again.
    """
    from homelab_llm.core.registry.document import write_document

    with invocation.registry() as kept:
        state = kept.read()
        slug = state.find(model).slug if model else ""
        shown = part_of(state, slug)
        handle, name = tempfile.mkstemp(prefix="registry-", suffix=".json", dir=invocation.home.run)
        path = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(write_document(shown))
        data = _edited(invocation, path, lambda content: _take(invocation, kept, shown, slug, content))
    path.unlink()
    say_changes(invocation, data)


def part_of(state: RegistryState, slug: str) -> Document:
    """The registry as a document, or that of one entry."""
    from homelab_llm.core.registry.document import Document

    whole = Document.of(state)
    if not slug or slug not in whole.entries:
        return whole if not slug else Document()
    return Document({slug: whole.entries[slug]}, {slug: whole.ports[slug]})


def _take(invocation: Invocation, kept: Registry, shown: Document, slug: str, content: bytes) -> dict[str, Any]:
    """Take the saved text in, unless somebody changed the same meanwhile."""
    from homelab_llm.core.registry.document import read_document
    from homelab_llm.core.registry.merge import merge, replace_all

    document = read_document(content, invocation.settings.slots.table())

    def move(state: RegistryState) -> RegistryState:
        if part_of(state, slug) != shown:
            raise Conflict("the registry was changed while you edited", hint="edit it again")
        return (merge if slug else replace_all)(state, document, time.time())

    return take(invocation, kept, move)


def _edited(invocation: Invocation, path: Path, use: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """Edit the file until ``use`` takes it.

    Raises:
        HomelabError: it was not taken, and nobody wants to mend it; the text stays in the file, which the hint names.
    """
    while True:
        _run_editor(invocation, path)
        try:
            return use(path.read_bytes())
        except HomelabError as error:
            invocation.output.note(f"your text is in {path}")
            if isinstance(error, Conflict) or not invocation.output.can_ask():
                raise
            invocation.output.warning(error.message, error.hint)
            if not invocation.output.confirm("edit it again?"):
                raise Cancelled("nothing was changed", hint=f"mlxctl registry import {path}") from error


def _run_editor(invocation: Invocation, path: Path) -> None:
    editor = invocation.environ.get("VISUAL") or invocation.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
    except (OSError, ValueError) as error:
        path.unlink()
        raise NotFound(
            f"the editor {editor!r} cannot be started", hint="set EDITOR to one that is installed"
        ) from error
    if code:
        path.unlink()
        raise Cancelled(f"the editor ended with {code}; nothing was changed")
