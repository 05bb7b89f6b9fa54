"""What a question begins and ends with: a daemon that answers for the model, and what is said after the answer."""

from __future__ import annotations

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.interface.cli import answering
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.models import resolve_or_none
from homelab_llm.interface.cli.slots import slots_of


def report(invocation: Invocation, model: str, answer: answering.Answer) -> None:
    """What follows an answer: the object of ``--json``, the counts of ``-v``, a word on an answer that was cut."""
    if invocation.output.json:
        data = {
            "model": model,
            "answer": answer.text,
            "reasoning": answer.reasoning,
            "finish_reason": answer.finish_reason,
            "usage": answer.usage,
            "first_token_s": round(answer.first_token_s, 4),
            "total_s": round(answer.total_s, 4),
            "tokens_per_s": round(answer.tokens_per_s, 2),
        }
        invocation.output.result(data, "")
        return
    if invocation.verbosity:
        invocation.output.note(answering.usage_line(answer))
    if answer.finish_reason == "length":
        invocation.output.note("(the answer ended at its token limit)")


def open_model(invocation: Invocation, model: str, engine: str, keep_alive_s: float | None) -> answering.Target:
    """A daemon that answers for the model, which may be a slot's alias.

    Pulls a missing model of the catalogue first. A daemon behind ``--url`` is asked as it is: it loads what it has.

    Raises:
        UnsupportedRequest: an engine for a daemon on another machine.
    """
    from homelab_llm.interface.cli.engine_choice import daemon_with_engine
    from homelab_llm.interface.cli.fetching import pull_if_missing

    if invocation.elsewhere is not None:
        if engine != "auto":
            raise UnsupportedRequest(
                "the engine of another machine is its own choice", hint="set engine.prefer there", field="engine"
            )
        return answering.Target(invocation.elsewhere, model, "/v1/chat/completions")
    alias, name = _behind_alias(invocation, model)
    found = pull_if_missing(invocation, name)
    path = answering.endpoint_for(found)
    target = answering.Target(daemon_with_engine(invocation, engine), alias or found.name, path)
    answering.load(invocation, target.client, found.name, keep_alive_s)
    return target


def _behind_alias(invocation: Invocation, name: str) -> tuple[str, str]:
    """The alias and the model that its slot serves; an empty alias and the name itself when it is none."""
    if resolve_or_none(invocation, name) is None and (client := invocation.daemon_if_running()):
        for row in slots_of(client):
            if name == row["alias"] and row.get("model"):
                return name, str(row["model"])
    return "", name
