"""``mlxctl registry``: the registry as a document. The verbs work in this process; a running daemon reads it again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from homelab_llm.core.registry.document import Document
    from homelab_llm.core.registry.state import RegistryState
    from homelab_llm.data.registry import Registry

_CLI = "homelab_llm.interface.cli"
_HERE = f"{_CLI}.registry"


@click.group(
    "registry",
    cls=LazyGroup,
    verbs={
        "export": f"{_HERE}:export",
        "import": f"{_HERE}:import_",
        "validate": f"{_HERE}:validate",
        "set": f"{_HERE}:set_",
        "edit": f"{_CLI}.registry_edit:edit",
    },
)
def registry() -> None:
    """Export, import, check and edit the registry: which models are known, and which slot serves which."""


def take(
    invocation: Invocation,
    kept: Registry,
    move: Callable[[RegistryState], RegistryState],
    *,
    content: bytes = b"",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run a move, say what it changed, and have a running daemon read the registry again.

    Args:
        content: the document that the move takes in.
    """
    from homelab_llm.core.registry.document import Document
    from homelab_llm.core.registry.merge import differences

    seen: list[RegistryState] = []

    def watched(state: RegistryState) -> RegistryState:
        seen[:] = [state]
        return move(state)

    after = watched(kept.read()) if dry_run else kept.change(watched, taken=content)
    was, now = Document.of(seen[0]), Document.of(after)
    moved = any(was.ports.get(slug) != now.ports.get(slug) for slug in {*was.ports, *now.ports})
    if not dry_run and after.revision != seen[0].revision and invocation.registry_changed() and moved:
        invocation.output.note("the slots follow with: mlxctl reconcile --apply")
    return {"changes": differences(was, now), "revision": after.revision, "dry_run": dry_run}


def say_changes(invocation: Invocation, data: dict[str, Any]) -> None:
    """What was changed, or would be."""
    lines = data["changes"] or ["nothing changes" if data["dry_run"] else "nothing changed"]
    invocation.output.result(data, lambda: lines)


def read_file(file: str) -> bytes:
    """The bytes of a file, or of standard input for ``-``; cut just behind what a registry may have."""
    from homelab_llm.core.registry.json_text import MAX_BYTES

    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(file).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _count(models: int) -> str:
    return f"{models} model" if models == 1 else f"{models} models"


def _counts(document: Document) -> dict[str, int]:
    intents = sum(entry.is_intent for entry in document.entries.values())
    return {
        "models": len(document.entries),
        "ports": sum(port is not None for port in document.ports.values()),
        "intents": intents,
    }


@verb("export")
@click.argument("path", default="")
def export(invocation: Invocation, path: str) -> None:
    """Write the registry as JSON to PATH, or to standard output with `-`.

    Without PATH it goes to its own place (setting `data.registry_file`), where it is also written after every change.
    """
    from homelab_llm.core.atomic import write_atomic
    from homelab_llm.core.registry.document import Document, write_document

    with invocation.registry() as kept:
        document = Document.of(kept.read())
        if not path:
            kept.export()
    if path == "-":
        invocation.output.raw(write_document(document).decode())
        return
    if path:
        write_atomic(Path(path).absolute(), write_document(document))
    where = str(Path(path).absolute() if path else kept.path)
    text = f"wrote {_count(len(document.entries))} to {where}"
    invocation.output.result({"path": where, **_counts(document)}, text)


@verb("import")
@click.argument("file", metavar="FILE|-")
@click.option("--replace/--merge", default=False, help="Forget what FILE does not say; else that stays (the default).")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def import_(invocation: Invocation, file: str, replace: bool, dry_run: bool) -> None:
    """Take the registry in FILE, of this product or of its origin.

    It is taken whole or not at all. Ports say what slots shall serve; a running daemon follows with `mlxctl
    reconcile --apply`. FILE may also be a boot script or a launchd job that starts model servers: it is read,
    never run, and from then on the registry alone decides what is started.
    """
    from homelab_llm.core.registry.merge import merge, replace_all

    content = read_file(file)
    document = read_any(invocation, content)
    take_in = replace_all if replace else merge

    def move(state: RegistryState) -> RegistryState:
        return take_in(state, document, time.time())

    with invocation.registry() as kept:
        say_changes(invocation, take(invocation, kept, move, content=content, dry_run=dry_run))
    if not dry_run and is_script(content):
        invocation.output.warning(
            f"{file} still starts its servers by itself: two authorities",
            "disable it (launchctl bootout, or its service); the registry starts the models from now on",
        )


def read_any(invocation: Invocation, content: bytes) -> Document:
    """The document in these bytes, or what a boot script starts.

    Raises:
        RegistryInvalid: neither.
    """
    from homelab_llm.core.registry.boot_script import read_boot_script
    from homelab_llm.core.registry.document import read_document

    read = read_boot_script if is_script(content) else read_document
    return read(content, invocation.settings.slots.table())


def is_script(content: bytes) -> bool:
    """Whether it is a boot script rather than a registry."""
    from homelab_llm.core.registry.boot_script import is_boot_script

    return is_boot_script(content)


@verb("validate")
@click.argument("file", metavar="FILE|-")
def validate(invocation: Invocation, file: str) -> None:
    """Check the registry (or boot script) in FILE and change nothing; errors name the field and its line."""
    document = read_any(invocation, read_file(file))
    counts = _counts(document)
    text = f"valid: {_count(counts['models'])}, {counts['ports']} on ports, {counts['intents']} not in the store yet"
    invocation.output.result({"valid": True, **counts}, text)


@verb("set")
@click.argument("model", shell_complete=model_names)
@click.argument("fields", metavar="FIELD=VALUE...", nargs=-1, required=True)
def set_(invocation: Invocation, model: str, fields: tuple[str, ...]) -> None:
    """Set fields of the entry of MODEL; `FIELD=` takes a field back. A stored model without an entry gets one.

    VALUE is text, or JSON where a field holds no text: `context_length=8192`, `flags=["--mlock"]`, `port=8101`.
    """
    from homelab_llm.core.registry.document import document_of
    from homelab_llm.core.registry.fields import write_entry
    from homelab_llm.core.registry.merge import merge

    slots = invocation.settings.slots.table()

    def move(state: RegistryState) -> RegistryState:
        state = _with_stored(invocation, state, model)
        entry = state.find(model)
        held = write_entry(entry, {"port": state.port_of(entry.slug)})
        document = document_of({entry.slug: _with(held, fields)}, slots)
        return merge(state, document, time.time())

    with invocation.registry() as kept:
        say_changes(invocation, take(invocation, kept, move))


def _with_stored(invocation: Invocation, state: RegistryState, model: str) -> RegistryState:
    """With an entry for a model that is stored and has none; else as it is."""
    from homelab_llm.core.errors import ModelNotRegistered
    from homelab_llm.inference.controller.entries import registered
    from homelab_llm.interface.cli.models import resolve_or_none

    try:
        state.find(model)
    except ModelNotRegistered:
        stored = resolve_or_none(invocation, model)
        return registered(state, stored) if stored else state
    return state


def _with(held: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """The object of an entry with fields as ``set`` takes them.

    Raises:
        InvalidInput: a word without ``=``.
        UnknownField: no field of that name.
    """
    from homelab_llm.core.errors import InvalidInput, UnknownField
    from homelab_llm.core.registry.fields import FIELDS, TEXTS

    held = dict(held)
    for word in fields:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidInput(f"not FIELD=VALUE: {word[:60]!r}", hint="mlxctl registry set --help")
        if name not in FIELDS and name not in held:
            known = sorted(FIELDS | held.keys())
            raise UnknownField(f"an entry has no field {name[:60]!r}", hint=f"there are {', '.join(known)}", field=name)
        if value:
            held[name] = value if name in TEXTS else _parsed(value)
        elif name == "port":
            held[name] = None
        else:
            held.pop(name, None)
    return held


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
