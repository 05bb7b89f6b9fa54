"""Asking the daemon for an answer and showing it while it arrives; ``run`` and ``chat`` share this."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import EngineReplyInvalid, InvalidInput, UnsupportedRequest, error_of
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import parse_duration
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.output import Output

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient


@dataclass(slots=True)
class Answer:
    """What came back. ``reasoning`` is what a thinking model said before it answered."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    first_token_s: float = 0.0
    total_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decode speed, the wait for the first token left out; 0 when it cannot be told."""
        tokens = int(self.usage.get("completion_tokens") or 0)
        decode_s = self.total_s - self.first_token_s
        return (tokens - 1) / decode_s if tokens > 1 and decode_s > 0 else 0.0


def server_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON of each ``data:`` line up to ``[DONE]``; comments and other fields are passed over.

    Raises:
        HomelabError: the error an event carries.
        EngineReplyInvalid: a data line that is not JSON.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        content = line[5:].strip()
        if content == "[DONE]":
            return
        try:
            event = json.loads(content)
        except ValueError as error:
            raise EngineReplyInvalid(
                "the answer's stream is not what it should be", hint="mlxctl logs daemon"
            ) from error
        if isinstance(event.get("error"), dict):
            raise error_of(event["error"])
        yield event


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded model behind a daemon: the model's full name, and the endpoint that answers for it."""

    client: DaemonClient
    model: str
    path: str


def stream_answer(target: Target, body: Mapping[str, Any], output: Output, answer: Answer) -> None:
    """Send ``body`` and show each piece as it arrives; ``answer`` is filled on the way, also when interrupted."""
    began = time.monotonic()
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with target.client.stream(target.path, request) as reply:
        for event in server_events(reply.lines()):
            answer.usage = event.get("usage") or answer.usage
            for choice in event.get("choices") or ():
                _take(choice, answer, output)
            answer.total_s = time.monotonic() - began
            if not answer.first_token_s and (answer.text or answer.reasoning):
                answer.first_token_s = answer.total_s


def _take(choice: Mapping[str, Any], answer: Answer, output: Output) -> None:
    delta = choice.get("delta") or {}
    if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
        answer.reasoning += reasoning
        output.thinking(reasoning)
    if text := delta.get("content") or choice.get("text"):
        answer.text += text
        if not output.json:
            output.answer(text)
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def endpoint_for(model: StoredModel) -> str:
    """The path that answers for this kind of model.

    Raises:
        UnsupportedRequest: it only embeds.
    """
    kinds = model.facts.capabilities
    if "chat" in kinds:
        return "/v1/chat/completions"
    if "completion" in kinds or not kinds:
        return "/v1/completions"
    raise UnsupportedRequest(
        f"{model.name} makes embeddings, not text", hint="send its texts to POST /v1/embeddings of the daemon"
    )


def request_body(target: Target, messages: list[dict[str, str]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The request; a completion model gets the texts of the messages, one paragraph each."""
    body: dict[str, Any] = {"model": target.model, **options}
    if target.path == "/v1/chat/completions":
        body["messages"] = messages
    else:
        body["prompt"] = "\n\n".join(message["content"] for message in messages)
    return body


def load(invocation: Invocation, client: DaemonClient, model: str, keep_alive_s: float | None) -> None:
    """Have the model loaded, with progress, and say what is worse than it could be (B-11).

    Raises:
        HomelabError: as the daemon says: no memory, no engine, load failed.
    """
    body: dict[str, Any] = {"model": model}
    if keep_alive_s is not None:
        body["keep_alive"] = keep_alive_s
    with invocation.output.loading(model) as progress, client.stream("/admin/models/load", body) as reply:
        for line in filter(None, reply.lines()):
            step = json.loads(line)
            if isinstance(step.get("error"), dict):
                raise error_of(step["error"])
            progress.update(str(step.get("stage", "")), float(step.get("done") or 0), 1)
    for entry in client.get("/admin/models")["models"]:
        if entry["model"] == model:
            tell_warning(invocation, entry)


def tell_warning(invocation: Invocation, entry: Mapping[str, Any]) -> None:
    """Say the warning of a loaded model, if it has one: a text, or a text and the command that mends it."""
    warning = entry.get("warning")
    if isinstance(warning, Mapping):
        invocation.output.warning(str(warning.get("text", "")), str(warning.get("hint", "")))
    elif warning:
        invocation.output.warning(str(warning), str(entry.get("hint") or ""))


def usage_line(answer: Answer) -> str:
    """Counts and speed of an answer."""
    usage = answer.usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return (
        f"{usage.get('prompt_tokens', 0)} prompt tokens ({cached} cached),"
        f" {usage.get('completion_tokens', 0)} answer tokens, first after {answer.first_token_s:.2f} s,"
        f" {answer.tokens_per_s:.1f} tokens/s, {answer.total_s:.2f} s in all"
    )


def response_format(value: str) -> dict[str, Any]:
    """``json`` or the name of a file with a JSON Schema, as a request field.

    Raises:
        InvalidInput: no such file, or no JSON object in it.
    """
    if value == "json":
        return {"type": "json_object"}
    path = Path(value)
    try:
        schema = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInput(f"--format is json or a JSON Schema file; cannot read {value}", field="format") from error
    except ValueError as error:
        raise InvalidInput(f"{value} is not JSON: {error}", field="format") from error
    if not isinstance(schema, dict):
        raise InvalidInput(f"{value} is not a JSON Schema: it must be an object", field="format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


class Duration(click.ParamType[float]):
    """``300``, ``5m``, ``1h30m``, ``-1`` for ever → seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except InvalidInput as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``run`` and ``chat`` that go into a request as they are."""
    for option in reversed(
        (
            click.option("--system", metavar="TEXT", help="Instructions before the conversation."),
            click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token."),
            click.option(
                "--repeat-penalty",
                type=click.FloatRange(0.01, 10),
                help="Above 1 keeps small models from repeating themselves; 1 = off.",
            ),
            click.option("--max-tokens", type=click.IntRange(1), help="End the answer after this many tokens."),
            click.option("--seed", type=int, help="Make sampling repeatable."),
            click.option("--keep-alive", type=Duration(), help="How long the model stays loaded: 5m, 1h, -1 for ever."),
            click.option(
                "--format", "form", metavar="json|FILE", help="Answer in JSON, or by the JSON Schema in FILE."
            ),
            click.option(
                "--engine",
                type=click.Choice(["auto", "llama.cpp", "mlx"]),
                default="auto",
                help="Engine of the daemon; restarts an idle daemon that prefers another one.",
            ),
        )
    ):
        function = option(function)
    return function


def request_options(
    *,
    temperature: float | None,
    repeat_penalty: float | None,
    max_tokens: int | None,
    seed: int | None,
    keep_alive: float | None,
    form: str | None,
) -> dict[str, Any]:
    """Those options as request fields; what was not given is not sent."""
    given: dict[str, Any] = {
        "temperature": temperature,
        "repeat_penalty": repeat_penalty,
        "max_tokens": max_tokens,
        "seed": seed,
        "keep_alive": keep_alive,
        "response_format": response_format(form) if form else None,
    }
    return {name: value for name, value in given.items() if value is not None}
