"""``mlxctl suggest``: models of the catalogue that fit this machine's memory."""

from __future__ import annotations

import click

from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.invocation import Invocation, verb


@verb("suggest")
@click.option("--brief", is_flag=True, help="One line for each, on standard error.")
def suggest(invocation: Invocation, brief: bool) -> None:
    """Name up to three models that fit this machine's memory, the largest last, with the command that fetches them."""
    from homelab_llm.inference.fleet.budget import measure_budget
    from homelab_llm.store.catalogue import suggest as choose
    from homelab_llm.store.settings import this_is_apple

    apple = this_is_apple()
    fleet = invocation.settings.fleet
    budget_bytes = fleet.memory_budget_bytes or measure_budget(fleet.memory_fraction)
    chosen = choose(budget_bytes, apple)
    data = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "licence": entry.licence,
            "size_bytes": entry.size_for(apple),
            "memory_bytes": entry.memory_bytes(apple),
            "command": f"mlxctl pull {entry.name}",
        }
        for entry in chosen
    ]
    if brief and not invocation.output.json:
        if chosen:
            invocation.output.note(f"\nlarger models that fit this machine ({format_bytes(budget_bytes)} for models):")
        for entry in chosen:
            size = format_bytes(entry.size_for(apple))
            invocation.output.note(f"  mlxctl pull {entry.name:18} {size:>8}  {entry.summary}")
        return
    rows = (
        (
            f"mlxctl pull {entry.name}",
            format_bytes(entry.size_for(apple)),
            format_bytes(entry.memory_bytes(apple)),
            entry.licence,
            entry.summary,
        )
        for entry in chosen
    )
    headers = ("COMMAND", "DOWNLOAD", "MEMORY", "LICENCE", "WHAT")
    invocation.output.table(headers, rows, {"budget_bytes": budget_bytes, "models": data})
