"""Verbs that keep slots and models as they shall be: ``reconcile verify pin unpin unquarantine``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.steps import follow_steps

_OUTCOMES = ("would", "applied", "failed")


@verb("reconcile")
@click.option("--apply", is_flag=True, help="Carry it out; without, it is only told.")
def reconcile(invocation: Invocation, apply: bool) -> int:
    """Say what would bring the slots in line with the registry; with --apply do it. Exit code 1 when a part failed.

    The registry decides. The daemon does this at every start.
    """
    actions: list[dict[str, Any]] = []

    def keep(step: Mapping[str, Any]) -> None:
        if step.get("stage") in _OUTCOMES:
            actions.append({name: value for name, value in step.items() if name not in ("done", "place")})

    done = follow_steps(
        invocation,
        invocation.daemon(),
        "/admin/reconcile",
        {"apply": apply},
        title="reconciling",
        called_off="what was done stays done; mlxctl reconcile tells the rest",
        each=keep,
    )
    failed = done.get("failed") or []
    data = {"applied": apply, "actions": actions, "failed": failed, "left": done.get("left", 0)}
    lines = [str(action["text"]) for action in actions] + [str(done.get("text") or "done")]
    invocation.output.result(data, lambda: lines)
    return exit_codes.FAILED if failed else exit_codes.OK


@verb("verify")
@click.argument("models", nargs=-1, shell_complete=model_names)
@click.option("--store", "whole_store", is_flag=True, help="Hash every stored model again.")
def verify(invocation: Invocation, models: tuple[str, ...], whole_store: bool) -> int:
    """Say whether what is here is what it should be; exit code 1 when something is not. Changes nothing.

    With MODELS, or --store for all: hash their files again and name those that are damaged. Without: whether every slot
    serves what the registry says.
    """
    if models and whole_store:
        raise InvalidInput("name models, or --store", hint="mlxctl verify --store", field="models")
    if models or whole_store:
        if invocation.elsewhere is not None:
            raise UnsupportedRequest(
                "mlxctl verify hashes files of one machine, not over --url",
                hint=f"mlxctl --host NAME verify {' '.join(models) or '--store'}",
            )
        from homelab_llm.interface.cli.trust import verify_models

        return verify_models(invocation, models)
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
    text = f"{model} may be loaded again" if done.get("released") else f"{model} was not in quarantine"
    invocation.output.result(done, text)
