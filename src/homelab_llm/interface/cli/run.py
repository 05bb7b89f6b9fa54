"""``mlxctl run``: one question to a model, pulled and loaded when needed; without a question, a chat."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

import click

from homelab_llm.core.errors import InvalidInput
from homelab_llm.interface.cli import answering
from homelab_llm.interface.cli.completion import models_and_aliases
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.opening import open_model, report

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
