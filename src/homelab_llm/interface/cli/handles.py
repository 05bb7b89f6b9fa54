"""``mlxctl handles``: the slots as ``handles.jsonl``, for other programs of the house."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup
from homelab_llm.interface.cli.registry import read_file, say_changes, take

_HERE = "homelab_llm.interface.cli.handles"


@click.group(
    "handles",
    cls=LazyGroup,
    verbs={"export": f"{_HERE}:export", "validate": f"{_HERE}:validate", "import": f"{_HERE}:import_"},
)
def handles() -> None:
    """Export, check and take in handles: the names under which other programs find the models of the slots."""


@verb("export")
@click.argument("path", default="")
def export(invocation: Invocation, path: str) -> None:
    """Write a handle for each slot that has a model to PATH, or to standard output with `-`.

    Without PATH the file lies beside the exported registry, where the daemon keeps it up to date.
    """
    from homelab_llm.core.atomic import write_atomic
    from homelab_llm.core.registry.handles import handles_of, write_handles
    from homelab_llm.data.handles_file import handles_path
    from homelab_llm.ops.service.choose import manager_name

    embedders = {m.name for m in invocation.store.models() if "embedding" in m.facts.capabilities}
    with invocation.registry() as kept:
        state, place = kept.read(), handles_path(kept.path, invocation.home)
    managed_by = manager_name(sys.platform, invocation.environ)
    found = handles_of(state, invocation.settings.slots.table(), embedders, managed_by)
    content = write_handles(found)
    if path == "-":
        invocation.output.raw(content.decode())
        return
    target = Path(path).absolute() if path else place
    write_atomic(target, content)
    count = "1 handle" if len(found) == 1 else f"{len(found)} handles"
    invocation.output.result({"path": str(target), "handles": len(found)}, f"wrote {count} to {target}")


@verb("validate")
@click.argument("file", metavar="FILE|-")
def validate(invocation: Invocation, file: str) -> None:
    """Check the handles in FILE: every field, every word, no handle twice."""
    from homelab_llm.core.registry.handles import read_handles

    found = read_handles(read_file(file))
    invocation.output.result({"valid": True, "handles": len(found)}, f"{len(found)} handles, all valid")


@verb("import")
@click.argument("file", metavar="FILE|-")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def import_(invocation: Invocation, file: str, dry_run: bool) -> None:
    """Assign to the slots the registered models that the handles in FILE select.

    Handles of other endpoints are passed over; one that selects a model the registry does not know is an error, and
    then nothing is changed. A running daemon follows with `mlxctl reconcile --apply`.
    """
    from homelab_llm.core.registry.handles import read_handles, taken_in

    found, slots = read_handles(read_file(file)), invocation.settings.slots.table()
    now_s = time.time()
    with invocation.registry() as kept:
        data = take(invocation, kept, lambda state: taken_in(state, found, slots, now_s), dry_run=dry_run)
    say_changes(invocation, data)
