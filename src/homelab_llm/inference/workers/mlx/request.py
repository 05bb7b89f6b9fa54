"""Requests: a JSON body as a checked ``Ask``. Pure; what this worker cannot do is refused with the reason.

The gateway has checked fields before; these checks hold for whoever speaks to the socket. Unknown fields are
ignored here, fields that are known and cannot be served are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.inference.workers.mlx.sampling import Sampling

MAX_STOPS = 32  # 16 of a request and 16 of the model
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 1024
MAX_LIKELIEST = 20

# field -> the values that ask for nothing; anything else would be without effect here
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "json_schema": (),
    "grammar": ("",),
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "typical_p": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
}
_REASONS = {
    "tools": "the MLX worker does not enforce tool calls",
    "response_format": "the MLX worker does not enforce a format",
    "n": "the MLX worker makes one answer per request",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request. ``messages`` for chat, else ``text`` or ``ids``. ``max_tokens`` 0 = as the context allows.

    ``logprobs``: None, or how many of the likeliest tokens to show beside the chosen one.
    """

    kind: Literal["chat", "completion"]
    sampling: Sampling
    messages: tuple[dict[str, Any], ...] = ()
    template_values: tuple[tuple[str, Any], ...] = ()
    text: str = ""
    ids: tuple[int, ...] = ()
    max_tokens: int = 0
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_end: bool = False
    stream: bool = False
    include_usage: bool = False
    progress: bool = False


def parse_chat(body: Any) -> Ask:
    """Check the body of a chat request.

    Raises:
        InvalidInput, UnsupportedRequest: with ``field``.
    """
    fields = _Fields(body)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list with at least one message")
    values = fields.mapping("chat_template_kwargs")
    wanted = fields.flag("logprobs")
    likeliest = fields.whole("top_logprobs", 0, 0, MAX_LIKELIEST)
    return Ask(
        kind="chat",
        messages=tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        template_values=tuple(values.items()),
        logprobs=likeliest if wanted else None,
        **_common(fields),
    )


def parse_completion(body: Any) -> Ask:
    """Check the body of a text completion.

    Raises:
        InvalidInput, UnsupportedRequest: with ``field``.
    """
    fields = _Fields(body)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    ids: tuple[int, ...] = ()
    if isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < 1 << 31 for i in prompt):
        ids = tuple(prompt)
    elif not isinstance(prompt, str):
        raise _wrong("prompt", "a string or a list of token ids; one prompt per request")
    likeliest = fields.whole("logprobs", -1, 0, MAX_LIKELIEST)
    return Ask(
        kind="completion",
        text="" if ids else prompt,
        ids=ids,
        logprobs=None if likeliest < 0 else likeliest,
        **_common(fields),
    )


def _common(fields: _Fields) -> dict[str, Any]:
    fields.refuse_unserved()
    options = fields.mapping("stream_options")
    longest = [n for name in ("max_tokens", "max_completion_tokens", "n_predict") if (n := fields.limit(name))]
    return {
        "sampling": _sampling(fields),
        "max_tokens": min(longest, default=0),
        "stops": _stops(fields.get("stop")),
        "ignore_end": fields.flag("ignore_eos"),
        "stream": fields.flag("stream"),
        "include_usage": options.get("include_usage") is True,
        "progress": fields.flag("return_progress"),
    }


def _sampling(fields: _Fields) -> Sampling:
    usual = Sampling()
    seed = fields.whole("seed", -1, -(1 << 63), (1 << 64) - 1)
    return Sampling(
        temperature=fields.number("temperature", usual.temperature, 0, 100),
        top_k=max(0, fields.whole("top_k", usual.top_k, -1, 1 << 31)),
        top_p=fields.number("top_p", usual.top_p, 0, 1),
        min_p=fields.number("min_p", usual.min_p, 0, 1),
        repeat_penalty=fields.number("repeat_penalty", usual.repeat_penalty, 0.01, 10),
        repeat_last_n=fields.whole("repeat_last_n", usual.repeat_last_n, -1, 1 << 31),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        seed=None if seed == -1 else seed % (1 << 64),
        logit_bias=_bias(fields.get("logit_bias")),
    )


class _Fields:
    """A body's fields by type; ``null`` means not given."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        self._body = body

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._body.get(name)
        if value is not None and not isinstance(value, dict):
            raise _wrong(name, "an object")
        return value or {}

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is not None and type(value) is not bool:
            raise _wrong(name, "true or false")
        return bool(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise _wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self._body.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise _wrong(name, f"a whole number from {low} to {high}")
        return value

    def limit(self, name: str) -> int:
        """A number of tokens; 0 when there is no limit (not given, or -1)."""
        value = self.whole(name, -1, -1, 1 << 31)
        if value == 0:
            raise _wrong(name, "at least 1")
        return max(0, value)

    def refuse_unserved(self) -> None:
        for name, harmless in _UNSERVED.items():
            value = self._body.get(name)
            if value is not None and value not in harmless:
                reason = _REASONS.get(name, "the MLX worker does not do this")
                raise UnsupportedRequest(
                    f"{name!r} is not supported for this model: {reason}",
                    hint="leave it out, or serve the model with llama.cpp",
                    field=name,
                )


def _wrong(field: str, wanted: str) -> InvalidInput:
    return InvalidInput(f"{field!r} must be {wanted}", field=field)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _wrong("stop", f"a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise _wrong("stop", f"of strings with 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(dict.fromkeys(stops))


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise _wrong("logit_bias", f"an object with at most {MAX_BIASES} token ids")
    pairs: list[tuple[int, float]] = []
    for token, bias in value.items():
        number = type(bias) in (int, float) and math.isfinite(bias) and -100 <= bias <= 100
        if not (token.isascii() and token.isdigit() and len(token) < 10) or not number:
            raise _wrong("logit_bias", "an object of token ids and numbers from -100 to 100")
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


def _message(message: Any, path: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
        raise _wrong(path, "an object with a role")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_text_part(part, f"{path}.content[{i}]") for i, part in enumerate(content))
    elif content is None:
        content = ""
    elif not isinstance(content, str):
        raise _wrong(f"{path}.content", "a string or a list of text parts")
    return {**message, "content": content}


def _text_part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in (None, "text"):
        raise UnsupportedRequest(f"{path!r}: the MLX worker reads text only", field=path)
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise _wrong(path, "a text part")
    return text
