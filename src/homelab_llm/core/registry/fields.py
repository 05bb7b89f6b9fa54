"""Fields of an entry in a registry document: what each may hold, read and written. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from homelab_llm.core.errors import HomelabError, InvalidInput
from homelab_llm.core.names import ModelRef
from homelab_llm.core.registry.entry import FORMATS, Entry
from homelab_llm.core.units import parse_duration

MAX_TEXT_CHARACTERS = 4096
MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_TOKENS = 2**31 - 1
MAX_FLAGS = 256


class WrongField(Exception):
    """A field holds what it may not; ``words`` continue a sentence that begins with the field's name."""

    def __init__(self, name: str, words: str, hint: str = "") -> None:
        super().__init__(f"{name} {words}")
        self.name, self.words, self.hint = name, words, hint


def _text(value: Any, limit: int = MAX_TEXT_CHARACTERS) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"must be text, not {_kind(value)}")
    if len(value) > limit:
        raise InvalidInput(f"has {len(value):,} characters, more than {limit:,}")
    return value


def _template(value: Any) -> str:
    return _text(value, MAX_TEMPLATE_CHARACTERS)


def _format(value: Any) -> str:
    if value not in FORMATS or not isinstance(value, str):
        raise InvalidInput(f"must be one of {', '.join(FORMATS)}")
    return value


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"must be a whole number, not {_kind(value)}")
    if not 0 <= value <= MAX_TOKENS:
        raise InvalidInput(f"must be 0 to {MAX_TOKENS}")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"must be true or false, not {_kind(value)}")
    return value


def _parameters(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"must be an object, not {_kind(value)}")
    return value


def _flags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_FLAGS:
        raise InvalidInput(f"must be a list of at most {MAX_FLAGS} texts")
    return tuple(_text(item) for item in value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidInput(f"must be seconds or a duration such as 5m, not {_kind(value)}")
    try:
        seconds = parse_duration(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidInput("must be a number of seconds; negative means for ever")
    return seconds


READERS: Mapping[str, Callable[[Any], Any]] = {
    "repo_id": _text,
    "cache_path": _text,
    "format": _format,
    "source_path": _text,
    "chat_template": _template,
    "tool_call_parser": _text,
    "reasoning_parser": _text,
    "context_length": _tokens,
    "max_output_tokens": _tokens,
    "request_params": _parameters,
    "draft_model": _text,
    "engine": _text,
    "flags": _flags,
    "pinned": _truth,
    "keep_alive": _seconds,
}
_ATTRIBUTES = {"keep_alive": "keep_alive_s"}
_BASIC = ("repo_id", "model_id", "cache_path", "format")
FIELDS = frozenset((*READERS, "model_id", "port"))
TEXTS = frozenset({"model_id", *(name for name, read in READERS.items() if read in (_text, _template, _format))})


def read_entry(slug: str, value: Any) -> Entry:
    """The entry that the object ``value`` of a document describes; ``port`` is left to the caller.

    Raises:
        WrongField: names the field.
    """
    if not isinstance(value, dict):
        raise WrongField("", f"must be an object, not {_kind(value)}")
    given: dict[str, Any] = {"extra": {key: held for key, held in value.items() if key not in FIELDS}}
    for name, read in READERS.items():
        if value.get(name) is not None:
            given[_ATTRIBUTES.get(name, name)] = _read(name, read, value[name])
    if "format" not in given:
        raise WrongField("format", "is missing", f"one of {', '.join(FORMATS)}")
    return Entry(slug=slug, model_id=_model_id(value, given), **given)


def write_entry(entry: Entry, port: Mapping[str, int | None]) -> dict[str, Any]:
    """The object of a document for an entry: the basic fields, those that are set, and the unknown ones.

    Args:
        port: ``{"port": …}``, or empty where nothing is said of it.
    """
    basic = {
        "repo_id": entry.repo_id,
        "model_id": entry.model_id,
        "cache_path": entry.cache_path,
        "format": entry.format,
        **port,
    }
    further: dict[str, Any] = {}
    for name in READERS:
        held = getattr(entry, _ATTRIBUTES.get(name, name))
        if name not in _BASIC and held is not None and (name == "keep_alive" or held):
            further[name] = _written(held)
    return basic | further | {key: held for key, held in entry.extra.items() if key not in FIELDS}


def _written(held: Any) -> Any:
    if isinstance(held, tuple):
        return list(held)
    if isinstance(held, Mapping):
        return dict(held)
    return int(held) if isinstance(held, float) and held.is_integer() else held


def _model_id(value: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The name in the store, in its full form; an entry that gives none is called as its source is."""
    named = value.get("model_id")
    if named in (None, ""):
        named = given.get("repo_id")
    if not named:
        raise WrongField("model_id", "is missing", "give a name in the store, or repo_id")
    return str(_read("model_id", lambda text: ModelRef.parse(_text(text)), named))


def _read(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except HomelabError as error:
        words = error.message if error.message.startswith(("must", "has")) else f"cannot be used: {error.message}"
        raise WrongField(name, words, error.hint) from error


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
