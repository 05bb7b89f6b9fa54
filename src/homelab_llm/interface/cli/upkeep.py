"""Verbs that keep slots and models as they shall be: ``reconcile verify pin unpin unquarantine``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.steps import follow_steps


@verb("reconcile")
@click.option("--apply", is_flag=True, help="Carry it out; without, it is only told.")
def reconcile(invocation: Invocation, apply: bool) -> None:
    """Say what would bring the slots in line with the registry; with --apply do it.

    The registry decides. The daemon does this at every start.
    """
    actions: list[dict[str, Any]] = []
    shown = {"stage", "done", "place"}

    def keep(step: Mapping[str, Any]) -> None:
        action = {name: value for name, value in step.items() if name not in shown}
        if action.get("text") and action not in actions:
            actions.append(action)

    done = follow_steps(
        invocation,
        invocation.daemon(),
        "/admin/reconcile",
        {"apply": apply},
        title="reconciling",
        called_off="what was done stays done; mlxctl reconcile tells the rest",
        each=keep,
    )
    result = {name: value for name, value in done.items() if name not in shown}
    listed = result.get("actions") if isinstance(result.get("actions"), list) else actions
    invocation.output.result({"applied": apply, **result, "actions": listed}, lambda: _told(listed or [], apply=apply))


def _told(actions: list[Any], *, apply: bool) -> list[str]:
    if not actions:
        return ["nothing to do: the slots serve what the registry says"]
    lines = [str(action.get("text") if isinstance(action, dict) else action) for action in actions]
    return lines if apply else [*lines, "nothing was changed; carry it out with: mlxctl reconcile --apply"]


@verb("verify")
@click.argument("models", nargs=-1, shell_complete=model_names)
@click.option("--store", "whole_store", is_flag=True, help="Hash every stored file again (not in this version).")
def verify(invocation: Invocation, models: tuple[str, ...], whole_store: bool) -> int:
    """Say whether every slot serves what the registry says; exit code 1 when one does not. Changes nothing."""
    if models or whole_store:
        raise UnsupportedRequest(
            "hashing stored models again is not part of this version: verify without names checks the slots",
            hint="mlxctl verify; mlxctl doctor finds damaged models",
            field="models",
        )
    found = invocation.daemon().post("/admin/verify", {})
    problems = found.get("problems") or []
    lines = [f"{problem.get('port') or 'fleet'}: {problem.get('text', '')}" for problem in problems]
    invocation.output.result(found, lambda: lines or ["every slot serves what the registry says"])
    if problems and not invocation.output.json:
        for hint in dict.fromkeys(problem.get("hint") for problem in problems if problem.get("hint")):
            invocation.output.note(f"try: {hint}")
    return exit_codes.OK if found.get("ok", not problems) else exit_codes.FAILED


@verb("pin")
@click.argument("model", shell_complete=model_names)
def pin(invocation: Invocation, model: str) -> None:
    """Keep MODEL in memory once it is loaded: never evicted for another, never unloaded for being idle."""
    done = invocation.daemon().post("/admin/models/pin", {"model": model, "pinned": True})
    invocation.output.result(done, f"{model} is pinned")


@verb("unpin")
@click.argument("model", shell_complete=model_names)
def unpin(invocation: Invocation, model: str) -> None:
    """Let MODEL be evicted and unloaded again."""
    done = invocation.daemon().post("/admin/models/pin", {"model": model, "pinned": False})
    invocation.output.result(done, f"{model} is no longer pinned")


@verb("unquarantine")
@click.argument("model", shell_complete=model_names)
def unquarantine(invocation: Invocation, model: str) -> None:
    """Let a model that failed several times in a row be tried again."""
    done = invocation.daemon().post("/admin/models/unquarantine", {"model": model})
    was = done.get("unquarantined", done.get("released", True))
    invocation.output.result(done, f"{model} may be loaded again" if was else f"{model} was not in quarantine")
