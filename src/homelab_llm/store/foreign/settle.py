"""Small layers become defaults: parameters, system, messages, template; licence texts tell the licence. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from homelab_llm.core.errors import BadManifest, InvalidTemplate
from homelab_llm.core.facts import ModelDefaults
from homelab_llm.store.foreign.documents import read_object
from homelab_llm.store.foreign.outline import Contents, Outline

_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MAX_PARAMETERS, _MAX_STOPS, _MAX_MESSAGES = 100, 100, 1_000
_ROLES = ("system", "user", "assistant", "tool")
# What a licence text begins with, in its first thousand characters.
_LICENCES = (
    (re.compile(r"apache license\s+version 2\.0", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"\bMIT License\b|permission is hereby granted, free of charge", re.IGNORECASE), "mit"),
    (re.compile(r"llama (?P<version>\d(?:\.\d)?) (?:version release date|community licen[cs]e)", re.IGNORECASE), ""),
    (re.compile(r"gemma terms of use", re.IGNORECASE), "gemma"),
    (re.compile(r"tongyi qianwen", re.IGNORECASE), "tongyi-qianwen"),
    (re.compile(r"creative commons attribution-noncommercial 4\.0", re.IGNORECASE), "cc-by-nc-4.0"),
    (re.compile(r"creative commons attribution 4\.0", re.IGNORECASE), "cc-by-4.0"),
)


@dataclass(frozen=True, slots=True)
class Settled:
    """What the texts of an artifact came to."""

    defaults: ModelDefaults
    licence: str
    notes: tuple[str, ...]


def settle(outline: Outline, contents: Contents, translate: Callable[[str], str]) -> Settled:
    """The defaults and the licence of an artifact.

    Args:
        contents: of every one of ``outline.texts``.
        translate: Go template → Jinja; raises ``InvalidTemplate`` where that cannot be done.

    Raises:
        BadManifest: a text is not UTF-8, or parameters or messages are not what they must be.
    """
    defaults, notes = outline.defaults, list(outline.notes)
    texts = {role: [_text(content, role) for content in found] for role, found in contents.items()}
    changes: dict[str, Any] = {}
    if "params" in contents:
        changes["parameters"] = {**defaults.parameters, **_parameters(contents["params"][-1])}
    if "messages" in contents:
        changes["messages"] = _messages(contents["messages"][-1])
    if texts.get("system"):
        changes["system"] = texts["system"][-1]
    if texts.get("jinja"):
        changes["template"] = texts["jinja"][-1]
    if texts.get("template"):
        try:
            changes |= {"template": translate(texts["template"][-1]), "go_template": texts["template"][-1]}
        except InvalidTemplate as error:
            notes.append(f"its template cannot be said in Jinja, so the weights' own is used: {error.message[:200]}")
    licence = outline.licence or next(filter(None, map(licence_of, texts.get("licence", []))), "")
    return Settled(replace(defaults, **changes), licence, tuple(dict.fromkeys(notes)))


def licence_of(text: str) -> str:
    """The short name of a licence whose text is known, or empty."""
    head = " ".join(text[:2000].split())[:1000]
    for pattern, name in _LICENCES:
        if match := pattern.search(head):
            return name or f"llama{match['version']}"
    return ""


def _text(content: bytes, role: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadManifest(f"the {role} of the model is not text") from error


def _parameters(content: bytes) -> dict[str, Any]:
    found = read_object(content, "the parameters of the model")
    _check_characters(found, "parameters")
    if len(found) > _MAX_PARAMETERS:
        raise BadManifest(f"the model has more than {_MAX_PARAMETERS} parameters")
    for name, value in found.items():
        plain = isinstance(value, bool | int | float | str) and len(str(value)) <= 1000
        if not _PARAMETER.fullmatch(name) or not (plain or (name == "stop" and _is_stops(value))):
            raise BadManifest(f"the parameter {name[:40]!r} of the model has a value that cannot be")
    return {name: [value] if name == "stop" and isinstance(value, str) else value for name, value in found.items()}


def _check_characters(found: Any, what: str) -> None:
    """JSON also has halves of characters, which no engine can be sent."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadManifest(f"the {what} of the model hold something that is not text") from error


def _is_stops(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_STOPS and all(isinstance(s, str) for s in value)


def _messages(content: bytes) -> tuple[dict[str, str], ...]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadManifest("the messages of the model are not JSON") from error
    if not isinstance(found, list) or len(found) > _MAX_MESSAGES:
        raise BadManifest("the messages of the model are not a list")
    _check_characters(found, "messages")
    out = []
    for message in found:
        role = message.get("role") if isinstance(message, dict) else None
        text = message.get("content", "") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(text, str):
            raise BadManifest("a message of the model is not role and content")
        out.append({"role": str(role), "content": text})
    return tuple(out)
