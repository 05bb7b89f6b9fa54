"""Parameters: what a model may say about requests and about its loading, by OpenAI's and by Ollama's names. Pure.

One table for whoever builds a model (the store) and whoever serves one (planner, router). Options of other runtimes
that have no meaning here are known by name, so that they can be refused with a reason instead of being lost.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from homelab_llm.core.errors import InvalidInput

MAX_STOP_WORDS = 16
MAX_STOP_CHARACTERS = 512
CONTEXT = "num_ctx"
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; ``low`` and ``high`` bound numbers, both included."""

    kind: Literal["whole", "number", "texts", "word"]
    text: str
    low: float = 0
    high: float = 0
    words: tuple[str, ...] = ()


PARAMETERS: dict[str, Parameter] = {
    CONTEXT: Parameter("whole", "context of one request in tokens, at most what the model was trained for", 16, 2**24),
    "max_tokens": Parameter("whole", "longest answer in tokens", 1, _MOST),
    "temperature": Parameter("number", "0 = always the likeliest token", 0, 2),
    "top_p": Parameter("number", "sample from the likeliest tokens that sum up to this", 0, 1),
    "top_k": Parameter("whole", "sample from this many tokens; 0 = off", 0, _MOST),
    "min_p": Parameter("number", "drop tokens below this share of the likeliest", 0, 1),
    "typical_p": Parameter("number", "locally typical sampling; 1 = off", 0, 1),
    "repeat_penalty": Parameter("number", "above 1 discourages repetition; 1 = off", 0.01, 10),
    "repeat_last_n": Parameter("whole", "tokens looked back on; -1 = the whole context", -1, _MOST),
    "presence_penalty": Parameter("number", "", -2, 2),
    "frequency_penalty": Parameter("number", "", -2, 2),
    "seed": Parameter("whole", "same seed, same answer; -1 = random", -(2**63), 2**63 - 1),
    "stop": Parameter("texts", "an answer ends before any of these"),
    "reasoning_effort": Parameter(
        "word",
        "given to the chat template as a variable",
        words=("none", "minimal", "low", "medium", "high", "xhigh"),
    ),
}

SYNONYMS = {"num_predict": "max_tokens", "max_completion_tokens": "max_tokens"}

_ENGINE = "the engine chooses it on each machine"
_GONE = "Ollama itself takes it no longer"
ELSEWHERE: dict[str, str] = {
    "num_gpu": "how many layers lie on the GPU is the engine's choice on each machine",
    "main_gpu": "which GPU is used is the operator's choice (flags of a registry entry)",
    "num_thread": "it is a setting of the machine: engine.threads",
    "num_batch": _ENGINE,
    "use_mmap": _ENGINE,
    "numa": _ENGINE,
    "num_keep": "a context that overflows is an error here, nothing is cut silently",
    "draft_num_predict": "no engine here runs a draft model",
    "tfs_z": _GONE,
    **dict.fromkeys(("mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline"), _GONE),
    **dict.fromkeys(("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only"), _GONE),
    **dict.fromkeys(("rope_frequency_base", "rope_frequency_scale"), _GONE),
}
"""Options of other runtimes, and why a model does not set them here."""


def check_parameter(name: str, value: Any) -> tuple[str, Any]:
    """The name used here and the value; None as value means "as if it were not given" (``num_predict -1``).

    Raises:
        InvalidInput: an unknown name (with the closest), one that has no meaning here (with the reason), or a value
            of another type or range; ``field`` is the name.
    """
    if name in ELSEWHERE:
        raise InvalidInput(
            f"the parameter {name} has no effect here: {ELSEWHERE[name]}", hint=f"leave {name} out", field=name
        )
    known = SYNONYMS.get(name, name)
    parameter = PARAMETERS.get(known)
    if parameter is None:
        raise _unknown(name)
    if known == "max_tokens" and type(value) is int and value in (-1, -2):
        return known, None
    if parameter.kind == "texts":
        return known, _texts(name, value)
    if parameter.kind == "word":
        if value not in parameter.words:
            raise InvalidInput(f"{name} must be one of {', '.join(parameter.words)}", field=name)
        return known, value
    return known, _number(name, parameter, value)


def parse_parameter(name: str, text: str) -> tuple[str, Any]:
    """As ``check_parameter``, for a value written as text (``PARAMETER temperature 0.7``); one stop word per call."""
    parameter = PARAMETERS.get(SYNONYMS.get(name, name))
    if parameter is None or parameter.kind == "word":
        return check_parameter(name, text)
    if parameter.kind == "texts":
        return check_parameter(name, [text])
    try:
        value: Any = int(text) if parameter.kind == "whole" else float(text)
    except ValueError:
        value = text
    return check_parameter(name, value)


def request_parameters(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's parameters say about requests, without stop words; what has no meaning here is passed over."""
    known = _known(stored)
    return {name: value for name, value in known.items() if name not in (CONTEXT, "stop")}


def stop_words(stored: Mapping[str, Any]) -> tuple[str, ...]:
    """The words that end every answer of a model."""
    return tuple(_known(stored).get("stop", ()))


def context_tokens(stored: Mapping[str, Any]) -> int:
    """The context a model asks for, 0 = none in particular."""
    return int(_known(stored).get(CONTEXT, 0))


def without_effect(stored: Mapping[str, Any]) -> list[str]:
    """Names among a model's parameters that are passed over here: it was made for another runtime."""
    return sorted(name for name, value in stored.items() if not _known({name: value}) and not _unset(name, value))


def _unset(name: str, value: Any) -> bool:
    return SYNONYMS.get(name, name) == "max_tokens" and value in (-1, -2)


def _known(stored: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in stored.items():
        try:
            known, checked = check_parameter(name, value)
        except InvalidInput:
            continue
        if checked is not None:
            found[known] = checked
    return found


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) > MAX_STOP_WORDS:
        raise InvalidInput(f"{name} must be a text or a list of at most {MAX_STOP_WORDS} texts", field=name)
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise InvalidInput(f"{name} must be texts of 1 to {MAX_STOP_CHARACTERS} characters", field=name)
    return list(dict.fromkeys(texts))


def _number(name: str, parameter: Parameter, value: Any) -> int | float:
    whole = parameter.kind == "whole"
    fits = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
    if not fits or not parameter.low <= value <= parameter.high:
        kind = "a whole number" if whole else "a number"
        raise InvalidInput(f"{name} must be {kind} from {parameter.low:g} to {parameter.high:g}", field=name)
    return value if whole else float(value)


def _unknown(name: str) -> InvalidInput:
    shown = name[:40].encode("unicode_escape").decode("ascii")
    close = difflib.get_close_matches(name[:40], [*PARAMETERS, *SYNONYMS], 1)
    closest = f"; did you mean {close[0]}?" if close else ""
    return InvalidInput(
        f"there is no parameter {shown!r}{closest}", hint="known are " + ", ".join(PARAMETERS), field="parameters"
    )
