"""Verbs that fill, swap and empty slots: ``load swap unload unload-all adopt``. They start the daemon when needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import Conflict, EndpointNotFound, SlotNotFound
from homelab_llm.core.names import DEFAULT_TAG
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.completion import model_names, slot_names, slots_and_models
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.steps import follow_steps

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient

_UNLOAD_S = 3700.0  # running requests end first


def place(row: Mapping[str, Any]) -> str:
    """``8100 (jerry-xl)``, for messages."""
    return f"{row.get('port')} ({row.get('alias')})" if row.get("alias") else str(row.get("port"))


@verb("load")
@click.argument("model", shell_complete=model_names)
@click.argument("slot", default="auto", shell_complete=slot_names)
@click.option("--force", is_flag=True, help="Replace what the slot serves, or move the model from another slot.")
def load(invocation: Invocation, model: str, slot: str, force: bool) -> None:
    """Serve MODEL on SLOT: a port, an alias, or `auto`, the first free one.

    A missing model is pulled and registered. The slot changes only when the right model really answers; when it does
    not, what was there is served again. Ctrl-C calls the load off.
    """
    done = follow_steps(
        invocation,
        invocation.daemon(),
        "/admin/slots/load",
        {"model": model, "slot": slot, "force": force},
        title=f"loading {model}",
        called_off="the slot serves what it served before",
    )
    _served(invocation, done, model)


@verb("swap")
@click.argument("slot", shell_complete=slot_names)
@click.argument("model", shell_complete=model_names)
def swap(invocation: Invocation, slot: str, model: str) -> None:
    """Put MODEL behind SLOT without a failed request; what was there is unloaded when its requests have ended."""
    done = follow_steps(
        invocation,
        invocation.daemon(),
        "/admin/slots/swap",
        {"slot": slot, "model": model},
        title=f"swapping {slot} to {model}",
        called_off="the slot serves what it served before",
    )
    _served(invocation, done, model)


def _served(invocation: Invocation, done: Mapping[str, Any], model: str) -> None:
    data = {name: value for name, value in done.items() if name not in ("stage", "done", "place")}
    invocation.output.result(data, f"{done.get('model') or model} answers on {place(done)}")
    if warning := done.get("warning"):
        found = warning if isinstance(warning, dict) else {"text": warning}
        invocation.output.warning(str(found.get("text", "")), str(found.get("hint") or ""))


@verb("unload")
@click.argument("targets", nargs=-1, required=True, metavar="SLOT|MODEL...", shell_complete=slots_and_models)
def unload(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """Empty slots, named by port, alias or the model they serve, and wait until the process has ended.

    Running requests end first. The slot stays empty, also after a restart. `stop` only frees the memory.
    """
    client = invocation.daemon()
    slots = chosen_slots(client.get("/admin/slots")["slots"], targets)
    told = [client.post("/admin/slots/unload", {"slot": str(row["port"])}, timeout_s=_UNLOAD_S) for row in slots]
    invocation.output.result({"unloaded": told}, lambda: (f"{place(row)} is empty" for row in slots))


def chosen_slots(rows: Sequence[Mapping[str, Any]], targets: Iterable[str]) -> list[Mapping[str, Any]]:
    """The slots that are meant, each once; pure.

    Raises:
        SlotNotFound: neither a slot nor a model that one serves.
    """
    chosen: dict[Any, Mapping[str, Any]] = {}
    for target in targets:
        names = {target, target if ":" in target else f"{target}:{DEFAULT_TAG}"}
        meant = [row for row in rows if target in (str(row["port"]), row["alias"])] or [
            row for row in rows if names & {row.get("desired"), row.get("actual"), row.get("model")} - {"", None}
        ]
        if not meant and target.isascii() and target.isdigit():
            meant = [{"port": int(target)}]  # the registry may assign a port that is no slot any more
        if not meant:
            raise SlotNotFound(
                f"{target[:80]} is neither a slot nor a model that a slot serves",
                hint=f"mlxctl status; without a slot: mlxctl stop {target[:80]}",
                field="slot",
            )
        chosen |= {row["port"]: row for row in meant}
    return list(chosen.values())


@verb("unload-all")
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal.")
def unload_all(invocation: Invocation, yes: bool) -> int:
    """Empty every slot, also where nothing runs; exit code 1 when one could not be emptied.

    Servers of another origin are let go of, their processes left alone.
    """
    if not yes and invocation.output.can_ask() and not invocation.output.confirm("empty every slot?"):
        invocation.output.note("nothing unloaded")
        return exit_codes.OK
    done = invocation.daemon().post("/admin/slots/unload-all", {}, timeout_s=_UNLOAD_S)
    failed = done.get("failed") or []
    lines = [f"{place(row)} is empty, {row.get('model') or 'nothing'} was there" for row in done.get("slots") or ()]
    lines += [f"not emptied: {error.get('message')}" for error in failed]
    invocation.output.result(done, lambda: lines or ["every slot was empty already"])
    return exit_codes.FAILED if failed else exit_codes.OK


@verb("adopt")
@click.argument("slot", shell_complete=slot_names)
def adopt(invocation: Invocation, slot: str) -> None:
    """Take the model server of another origin that holds the port of SLOT into the registry.

    Requests to the slot's name then reach it; its process is never started, stopped or signalled.
    """
    done = invocation.daemon().post("/admin/slots/adopt", {"slot": slot})
    name = done.get("model") or (done.get("foreign") or {}).get("model") or "the server"
    invocation.output.result(done, f"{name} on {place(done) if done.get('port') else slot} is adopted")


def slots_of(client: DaemonClient) -> list[dict[str, Any]]:
    """The rows of all slots; none where the daemon has none, or is of a version without."""
    return list(slot_report(client).get("slots") or ())


def slot_report(client: DaemonClient) -> dict[str, Any]:
    """``slots`` and ``drift``; empty where the daemon has none."""
    try:
        return dict(client.get("/admin/slots"))
    except (Conflict, EndpointNotFound):
        return {}
