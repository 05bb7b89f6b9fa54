"""OpenAI's dialect: the fields of its requests, checked and rebuilt for a worker. Pure.

Reference: https://platform.openai.com/docs/api-reference. Extensions (``top_k``, ``min_p``, ``repeat_penalty``,
``keep_alive`` …) have the names that llama.cpp and Ollama gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.routing import Opening
from homelab_llm.gateway.dialects.messages import NAME, Messages, is_list, is_text
from homelab_llm.gateway.fields import (
    Bias,
    Check,
    Duration,
    Either,
    Field,
    Flag,
    ListOf,
    NoEffect,
    Number,
    OneOf,
    Only,
    Opaque,
    Record,
    Seed,
    Text,
    Tokens,
    Whole,
    wrong,
)

MAX_CHOICES = 16
MAX_INPUTS = 2048
MAX_TOKENS = 2**20


def _is_tokens(value: Any) -> bool:
    return type(value) is list and bool(value) and type(value[0]) is int


def _is_object(value: Any) -> bool:
    return type(value) is dict


TOOL = Record(
    {
        "type": Field(OneOf(("function",)), required=True),
        "function": Field(
            Record(
                {
                    "name": Field(Text(pattern=NAME), required=True),
                    "description": Field(Text(20_000)),
                    "parameters": Field(Opaque(), "JSON Schema"),
                    "strict": Field(Flag()),
                }
            ),
            required=True,
        ),
    }
)


class Tools:
    """Functions the model may call; names are unique."""

    def __call__(self, value: Any, path: str) -> list[dict[str, Any]]:
        tools: list[dict[str, Any]] = ListOf(TOOL, 128)(value, path)
        names = [tool["function"]["name"] for tool in tools]
        if len(set(names)) < len(names):
            raise wrong(path, "a list of functions with different names")
        return tools

    def schema(self) -> dict[str, Any]:
        return ListOf(TOOL, 128).schema()


TOOL_CHOICE = Either(
    "none, auto, required or a function",
    (
        (is_text, OneOf(("none", "auto", "required"))),
        (
            _is_object,
            Record(
                {
                    "type": Field(OneOf(("function",)), required=True),
                    "function": Field(
                        Record({"name": Field(Text(pattern=NAME), required=True)}),
                        required=True,
                    ),
                }
            ),
        ),
    ),
)

RESPONSE_FORMAT = Record(
    {
        "type": Field(OneOf(("text", "json_object", "json_schema")), required=True),
        "json_schema": Field(
            Record(
                {
                    "name": Field(Text(pattern=NAME)),
                    "description": Field(Text(20_000)),
                    "schema": Field(Opaque(), required=True),
                    "strict": Field(Flag()),
                }
            )
        ),
    }
)

STOP = Either(
    "a string or a list of at most 16 strings",
    ((is_text, Text(512, empty=False)), (is_list, ListOf(Text(512, empty=False), 16))),
)

_NO_EFFECT: dict[str, Field] = {
    name: Field(NoEffect(), says)
    for name, says in {
        "user": "no effect: names an end user for OpenAI's abuse checks",
        "safety_identifier": "no effect: as user",
        "metadata": "no effect: tags for OpenAI's dashboard",
        "store": "no effect: nothing is stored",
        "prompt_cache_key": "no effect: prompts are cached by their content",
        "prompt_cache_retention": "no effect: as prompt_cache_key",
    }.items()
}

_TIER = Field(OneOf(("auto", "default", "flex", "priority", "scale")), "flex = batch: interactive requests come first")

_SAMPLING: dict[str, Field] = {
    "max_tokens": Field(Whole(1, 2**31 - 1), "longest answer"),
    "temperature": Field(Number(0, 2), "0 = always the likeliest token"),
    "top_p": Field(Number(0, 1)),
    "top_k": Field(Whole(0, 2**31 - 1), "extension; 0 = off"),
    "min_p": Field(Number(0, 1), "extension"),
    "typical_p": Field(Number(0, 1), "extension"),
    "repeat_penalty": Field(Number(0.01, 10), "extension; 1 = off"),
    "repeat_last_n": Field(Whole(-1, 2**31 - 1), "extension; tokens looked back on, -1 = the whole context"),
    "presence_penalty": Field(Number(-2, 2)),
    "frequency_penalty": Field(Number(-2, 2)),
    "seed": Field(Seed(), "same seed, same answer"),
    "stop": Field(STOP, "the answer ends before these"),
    "logit_bias": Field(Bias()),
    "ignore_eos": Field(Flag(), "extension, for benchmarks: go on to max_tokens"),
}

_TEMPLATE: dict[str, Field] = {
    "chat_template_kwargs": Field(Opaque(64), "extension; variables for the model's chat template"),
    "reasoning_effort": Field(
        OneOf(("none", "minimal", "low", "medium", "high", "xhigh")),
        "given to the chat template as a variable of this name",
    ),
}

_COMMON: dict[str, Field] = {
    "model": Field(Text(300, empty=False), "a name from /v1/models", required=True),
    "stream": Field(Flag(), "send the answer as server-sent events while it is made"),
    "stream_options": Field(
        Record(
            {
                "include_usage": Field(Flag(), "send token counts in a last event"),
                "include_obfuscation": Field(NoEffect(), "no effect"),
            }
        )
    ),
    **_SAMPLING,
    "n": Field(Whole(1, MAX_CHOICES), "answers; made one after the other"),
    "service_tier": _TIER,
    "keep_alive": Field(Duration(), "extension; how long the model stays loaded afterwards, negative = for ever"),
    **_NO_EFFECT,
}

CHAT = Record(
    {
        **_COMMON,
        "messages": Field(Messages(), required=True),
        "max_completion_tokens": Field(Whole(1, 2**31 - 1), "longest answer; wins over max_tokens"),
        "logprobs": Field(Flag()),
        "top_logprobs": Field(Whole(0, 20)),
        "tools": Field(Tools()),
        "tool_choice": Field(TOOL_CHOICE),
        "parallel_tool_calls": Field(Flag()),
        "response_format": Field(RESPONSE_FORMAT),
        **_TEMPLATE,
        "modalities": Field(Only((["text"],), "models here answer with text")),
        "audio": Field(Only((), "models here answer with text")),
        "web_search_options": Field(Only((), "the gateway searches nothing", "give the model a search tool")),
        "prediction": Field(NoEffect(), "no effect: a guess of the answer, to speed it up"),
        "verbosity": Field(NoEffect(), "no effect: ask for it in the prompt"),
        "functions": Field(Only((), "the old form", "use tools")),
        "function_call": Field(Only((), "the old form", "use tool_choice")),
    }
)

PROMPT = Either(
    "a string, a list of strings or token ids",
    (
        (is_text, Text()),
        (_is_tokens, Tokens(MAX_TOKENS)),
        (
            is_list,
            ListOf(Either("a string or token ids", ((is_text, Text()), (_is_tokens, Tokens(MAX_TOKENS)))), 16, low=1),
        ),
    ),
)

COMPLETION = Record(
    {
        **_COMMON,
        "prompt": Field(PROMPT, required=True),
        "logprobs": Field(Whole(0, 20)),
        "echo": Field(Only((False,), "the prompt is not sent back")),
        "best_of": Field(Only((1,), "one answer is made for each that is returned", "use n")),
        "suffix": Field(Only(("",), "text after the gap is not supported")),
    }
)

_INPUT_ITEM: Check = Either("a string or token ids", ((is_text, Text(empty=False)), (_is_tokens, Tokens(MAX_TOKENS))))

EMBEDDING = Record(
    {
        "model": _COMMON["model"],
        "input": Field(
            Either(
                "a string, a list of strings, or token ids",
                (
                    (is_text, Text(empty=False)),
                    (_is_tokens, Tokens(MAX_TOKENS)),
                    (is_list, ListOf(_INPUT_ITEM, MAX_INPUTS, low=1)),
                ),
            ),
            required=True,
        ),
        "encoding_format": Field(OneOf(("float", "base64"))),
        "dimensions": Field(Whole(1, 65_536), "must be the model's own width"),
        "service_tier": _TIER,
        "keep_alive": _COMMON["keep_alive"],
        **_NO_EFFECT,
    }
)

PRESET = Record({**_SAMPLING, **_TEMPLATE})
"""What the registry may say for requests that do not."""


@dataclass(slots=True)
class Ask:
    """A checked request: what the gateway needs to know, and the body for the worker (without streaming fields).

    ``prompts`` is set when more than one prompt came in one request; ``choices`` is ``n``.
    ``shaped``: tools or a response format are involved. ``keep_alive_s`` None = the setting. ``batch``: others may go
    first.
    """

    model: str
    body: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    keep_alive_s: float | None = None
    prompts: list[Any] = field(default_factory=list)
    shaped: bool = False
    embedding: bool = False
    batch: bool = False

    @property
    def parts(self) -> int:
        """How many answers are made in all."""
        return self.choices * max(1, len(self.prompts))


def _ask(body: dict[str, Any]) -> Ask:
    options = body.pop("stream_options", None)
    stream = body.pop("stream", False)
    if options and not stream:
        raise InvalidInput("'stream_options' needs 'stream': true", field="stream_options")
    return Ask(
        model=body["model"],
        body=body,
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        choices=body.pop("n", 1),
        keep_alive_s=body.pop("keep_alive", None),
        batch=body.pop("service_tier", "") == "flex",
    )


def parse_chat(given: dict[str, Any]) -> Ask:
    """Check a chat request.

    Raises:
        InvalidInput, UnknownField, UnsupportedRequest, BodyTooLarge: with ``field``.
    """
    body = CHAT(given, "")
    ask = _ask(body)
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise InvalidInput("'top_logprobs' needs 'logprobs': true", field="top_logprobs")
    if effort := body.pop("reasoning_effort", None):
        body["chat_template_kwargs"] = {"reasoning_effort": effort, **body.get("chat_template_kwargs", {})}
    if "tools" in body or "tool_choice" in body or "parallel_tool_calls" in body:
        _check_tools(body)
    if wanted := body.get("response_format"):
        _check_format(body, wanted)
    ask.shaped = (
        "tools" in body
        or "response_format" in body
        or any(message["role"] == "tool" or "tool_calls" in message for message in body["messages"])
    )
    return ask


def _check_tools(body: dict[str, Any]) -> None:
    names = {tool["function"]["name"] for tool in body.get("tools", ())}
    choice = body.get("tool_choice")
    if not names:
        body.pop("tools", None)
        body.pop("parallel_tool_calls", None)
        if choice not in (None, "none", "auto"):
            raise InvalidInput("'tool_choice' needs 'tools'", field="tool_choice")
        body.pop("tool_choice", None)
    elif isinstance(choice, dict) and choice["function"]["name"] not in names:
        raise InvalidInput("'tool_choice' names a function that is not in 'tools'", field="tool_choice.function.name")


def _check_format(body: dict[str, Any], wanted: dict[str, Any]) -> None:
    if wanted["type"] == "text":
        del body["response_format"]
    elif wanted["type"] == "json_schema" and "json_schema" not in wanted:
        raise InvalidInput("'response_format.json_schema' is required", field="response_format.json_schema")


def parse_completion(given: dict[str, Any]) -> Ask:
    """Check a text completion request.

    Raises:
        InvalidInput, UnknownField, UnsupportedRequest, BodyTooLarge: with ``field``.
    """
    body = COMPLETION(given, "")
    ask = _ask(body)
    prompt = body["prompt"]
    if type(prompt) is list and type(prompt[0]) is not int:
        if len(prompt) == 1:
            body["prompt"] = prompt[0]
        else:
            ask.prompts = prompt
    if ask.parts > MAX_CHOICES:
        raise InvalidInput(f"prompts × n is more than {MAX_CHOICES}", field="n", limit=MAX_CHOICES)
    return ask


def parse_embedding(given: dict[str, Any]) -> Ask:
    """Check an embedding request.

    Raises:
        InvalidInput, UnknownField, UnsupportedRequest, BodyTooLarge: with ``field``.
    """
    body = EMBEDDING(given, "")
    ask = _ask(body)
    ask.embedding = True
    return ask


def preset(body: dict[str, Any], given: Mapping[str, Any], max_output_tokens: int, *, chat: bool) -> None:
    """Put into a checked body what the registry says where the request says nothing, and bound the answer.

    Args:
        given: fields of ``PRESET``.
        max_output_tokens: 0 = no bound.

    Raises:
        InvalidInput, UnknownField: in what the registry says.
    """
    said = PRESET(dict(given), "")
    template = said.pop("chat_template_kwargs", {})
    if effort := said.pop("reasoning_effort", None):
        template = {"reasoning_effort": effort, **template}
    if chat and template:
        body["chat_template_kwargs"] = {**template, **body.get("chat_template_kwargs", {})}
    for name, value in said.items():
        body.setdefault(name, value)
    if max_output_tokens:
        body["max_tokens"] = min(body.get("max_tokens", max_output_tokens), max_output_tokens)


def open_with(body: dict[str, Any], opening: Opening, *, chat: bool) -> None:
    """Put what the model brings before a checked conversation, and add its stop words to the request's.

    The model's system message is used when the request has none; its example messages come before the conversation
    either way. The given list of messages stays as it is.
    """
    if opening.stop:
        given = body.get("stop") or []
        body["stop"] = list(dict.fromkeys([*([given] if isinstance(given, str) else given), *opening.stop]))
    if not chat:
        return
    messages = body["messages"]
    told = next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages))
    head = messages[:told]
    if opening.system and not any(message["role"] == "system" for message in messages):
        head = [{"role": "system", "content": opening.system}]
    if opening.messages or len(head) != told:
        body["messages"] = [*head, *({**message} for message in opening.messages), *messages[told:]]
