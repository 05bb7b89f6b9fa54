"""``mlxctl run``: one question to a model, pulled and loaded when needed; without a question, a chat."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

import click

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.interface.cli import answering
from homelab_llm.interface.cli.completion import models_and_aliases
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import resolve_or_none
from homelab_llm.interface.cli.slots import slots_of

_MAX_INPUT_BYTES = 24 * 10**6  # below server.max_body_bytes, escapes counted in


@verb("run")
@click.argument("model", shell_complete=models_and_aliases)
@click.argument("prompt", required=False)
@answering.sampling_options
def run(
    invocation: Invocation, model: str, prompt: str | None, system: str | None, engine: str, **options: Any
) -> None:
    """Ask MODEL and print its answer as it is made.

    Without PROMPT, standard input is the prompt; on a terminal a chat begins. With both, the input follows the
    prompt. A model of the catalogue that is missing is pulled first. -v adds counts and speed.
    """
    text = _whole_prompt(prompt)
    request = answering.request_options(**options)
    if text is None:
        from homelab_llm.interface.cli.chat import hold_chat

        hold_chat(invocation, model, system=system, engine=engine, request=request)
        return
    target = open_model(invocation, model, engine, options["keep_alive"])
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    answer = answering.Answer()
    output = invocation.output
    try:
        answering.stream_answer(target, answering.request_body(target, messages, request), output, answer)
    finally:
        if answer.text and not output.json and not answer.text.endswith("\n"):
            output.answer("\n")
    report(invocation, target.model, answer)


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
    from homelab_llm.interface.cli.pull import pull_if_missing

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


def _whole_prompt(prompt: str | None) -> str | None:
    """The argument and what is piped in; None when there is neither and a person sits at the terminal.

    With a prompt given, only a pipe or a file is read: a service's standard input may stay open for ever.

    Raises:
        InvalidInput: nothing was asked, or more than a request may hold.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    kind = os.fstat(sys.stdin.fileno()).st_mode
    if prompt is not None and not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return prompt
    piped = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    if len(piped) > _MAX_INPUT_BYTES:
        raise InvalidInput(f"standard input is longer than {_MAX_INPUT_BYTES} bytes", field="prompt")
    text = "\n\n".join(filter(None, (prompt, piped.decode("utf-8", "replace").strip())))
    if not text:
        raise InvalidInput("no prompt: give one as argument or on standard input", hint='mlxctl run MODEL "…"')
    return text
