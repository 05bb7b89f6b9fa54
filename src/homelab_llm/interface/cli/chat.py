"""``mlxctl chat``: a conversation. On a terminal with history and commands; else one message per line of input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from homelab_llm.interface.cli import answering
from homelab_llm.interface.cli.completion import models_and_aliases
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.opening import open_model, report

HELP = """\
/system TEXT   change the instructions (without TEXT: remove them)
/clear         forget the conversation
/bye           leave (Ctrl-D too)
\"\"\"            begin and end a message of several lines
Ctrl-C         break off the answer, keep the conversation"""
_HISTORY_LINES = 1000


@verb("chat")
@click.argument("model", shell_complete=models_and_aliases)
@answering.sampling_options
def chat(invocation: Invocation, model: str, system: str | None, engine: str, **options: Any) -> None:
    """Talk with MODEL.

    On a terminal: /help tells the commands, Ctrl-C breaks off an answer. Without one, every line of standard input
    is a message.
    """
    request = answering.request_options(**options)
    hold_chat(invocation, model, system=system, engine=engine, request=request)


@dataclass(slots=True)
class Conversation:
    """What was said; completion models get it as one text."""

    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]


def hold_chat(invocation: Invocation, model: str, *, system: str | None, engine: str, request: dict[str, Any]) -> None:
    """Load the model and answer message after message until the input ends."""
    target = open_model(invocation, model, engine, request.get("keep_alive"))
    conversation = Conversation(system)
    interactive = invocation.output.can_ask()
    if interactive:
        invocation.output.note(f"{target.model}: /help tells the commands")
    note = invocation.output.note
    session = _Session(invocation, target, request, interactive)
    for message in _typed(invocation.home.root / "chat_history", note) if interactive else _piped():
        if interactive and message.strip() in ("/bye", "/exit"):
            return
        if message.strip() and not (interactive and command(message, conversation, note)):
            _answer(session, conversation, message)


def command(message: str, conversation: Conversation, note: Callable[[str], None]) -> bool:
    """Carry out a ``/`` command; False when ``message`` is none and goes to the model."""
    word, _, rest = message.strip().partition(" ")
    if word == "/clear":
        conversation.turns.clear()
        note("forgotten")
    elif word == "/system":
        conversation.system = rest.strip() or None
        note("instructions changed" if conversation.system else "instructions removed")
    elif word in ("/help", "/?"):
        note(HELP)
    elif word.startswith("/"):
        note(f"no such command: {word}; /help tells them")
    return word.startswith("/")


@dataclass(frozen=True, slots=True)
class _Session:
    invocation: Invocation
    target: answering.Target
    request: dict[str, Any]
    interactive: bool


def _answer(session: _Session, conversation: Conversation, message: str) -> None:
    """One turn. Broken off by Ctrl-C on a terminal, what was said so far stays part of the conversation."""
    output = session.invocation.output
    conversation.turns.append({"role": "user", "content": message})
    body = answering.request_body(session.target, conversation.messages(), session.request)
    answer = answering.Answer()
    try:
        answering.stream_answer(session.target, body, output, answer)
    except KeyboardInterrupt:
        if not session.interactive:
            raise
        answer.finish_reason = "interrupted"
    if not output.json:
        output.answer(
            "\n" if answer.text.endswith("\n") or not answer.text else "\n\n" if session.interactive else "\n"
        )
    if answer.text:
        conversation.turns.append({"role": "assistant", "content": answer.text})
    else:
        conversation.turns.pop()
    report(session.invocation, session.target.model, answer)


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


def _typed(history: Path, note: Callable[[str], None]) -> Iterator[str]:
    """Messages typed at the terminal, with line editing and a history of their own (0600)."""
    import readline

    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES)
    try:
        while True:
            try:
                message = input(">>> ")
                if message.startswith('"""'):
                    message = _until_quotes(message[3:])
            except KeyboardInterrupt:
                note("\n(Ctrl-D or /bye leaves)")
                continue
            except EOFError:
                note("")
                return
            yield message
    finally:
        with contextlib.suppress(OSError):
            history.touch(mode=0o600)
            readline.write_history_file(history)


def _until_quotes(first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith('"""'):
        lines.append(input("... "))
    return "\n".join(lines).rstrip().removesuffix('"""').strip("\n")
