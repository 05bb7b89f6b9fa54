"""Handles: names under which other programs of the house find a model, ``handles.jsonl``. Pure, strict both ways.

One line per slot that has a model: ``handle kind invoke managed_by endpoint_ref selector`` and perhaps ``notes``. A
handle is the name of its slot, which never moves; what runs behind it is ``selector.model``. There is no health and no
state in it, and no line for a slot without a model: those are in the system database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from homelab_llm.core.errors import RegistryInvalid
from homelab_llm.core.names import slug_of
from homelab_llm.core.registry.json_text import MAX_BYTES, decode
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import RegistryState, assign

Kind = Literal["model", "callable"]
Invoke = Literal["openai-chat", "openai-embeddings", "mcp-tool", "http-get", "http-post"]
ManagedBy = Literal["systemd", "launchd", "docker", "manual", "external"]

MAX_HANDLES = 10_000
_FIELDS = ("handle", "kind", "invoke", "managed_by", "endpoint_ref", "selector", "notes")
_NAME = re.compile(r"[a-z0-9]+(?:-+[a-z0-9]+)*")
_CHOICE = re.compile(r"[a-z0-9&|_-]+")  # an approach of OptiLLM: bon|moa, re2&cot_reflection
_ENDPOINT = re.compile(r"[a-z0-9_-]{1,128}")
_SLOT = re.compile(r"ep_mlx_slot_(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Handle:
    """One line. ``endpoint_ref`` names an endpoint without saying where it is; ``selector`` chooses at it."""

    handle: str
    kind: Kind
    invoke: Invoke
    managed_by: ManagedBy
    endpoint_ref: str
    selector: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def port(self) -> int | None:
        """The slot's port, when it is a slot of ours."""
        found = _SLOT.fullmatch(self.endpoint_ref)
        return int(found[1]) if found else None


def handles_of(
    state: RegistryState, slots: SlotTable, embedders: Collection[str] = (), managed_by: ManagedBy = "manual"
) -> list[Handle]:
    """A handle for each slot that shall serve a model which is there.

    Args:
        embedders: names in the store of the models that embed; all others chat.
        managed_by: what keeps the daemon running.
    """
    found = []
    for slot in slots.slots:
        entry = state.entries.get(state.assignment(slot.port).desired or "")
        if entry is None or entry.is_intent:
            continue
        invoke: Invoke = "openai-embeddings" if entry.model_id in embedders else "openai-chat"
        selector = {"model": slug_of(entry.slug)}
        found.append(Handle(slot.alias, "model", invoke, managed_by, f"ep_mlx_slot_{slot.port}", selector))
    return found


def write_handles(handles: Iterable[Handle]) -> bytes:
    """The lines, in order of their handles; equal handles give equal bytes."""
    lines = []
    for handle in sorted(handles, key=lambda handle: handle.handle):
        line: dict[str, Any] = {name: getattr(handle, name) for name in _FIELDS[:5]}
        line["selector"] = dict(handle.selector) or None
        if handle.notes:
            line["notes"] = handle.notes
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def read_handles(content: bytes) -> list[Handle]:
    """The handles in these bytes.

    Raises:
        RegistryInvalid: with ``line`` and ``field``; unknown fields, other words, names in another form, or a handle
            twice.
    """
    if len(content) > MAX_BYTES:
        raise RegistryInvalid(f"the file has more than {MAX_BYTES:,} bytes", limit_bytes=MAX_BYTES)
    seen: dict[str, Handle] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        handle = _handle(line, number)
        if handle.handle in seen:
            raise _wrong(number, "handle", f"{handle.handle} stands here twice")
        if len(seen) >= MAX_HANDLES:
            raise RegistryInvalid(f"the file has more than {MAX_HANDLES:,} handles")
        seen[handle.handle] = handle
    return list(seen.values())


def _handle(line: bytes, number: int) -> Handle:
    try:
        _, value = decode(line)
    except RegistryInvalid as error:
        words = error.message.removeprefix("line 1: ")  # a handle is one line, and the decoder counts from it
        raise RegistryInvalid(f"line {number}: {words}", hint=error.hint, line=number) from error
    if not isinstance(value, dict):
        raise _wrong(number, "", "not an object")
    if unknown := sorted(value.keys() - set(_FIELDS)):
        raise _wrong(number, unknown[0], "no such field")
    if missing := [name for name in _FIELDS[:5] if name not in value]:
        raise _wrong(number, missing[0], "is missing")
    return Handle(
        handle=_matching(value, "handle", _NAME, number),
        kind=_word(value, "kind", get_args(Kind), number),
        invoke=_word(value, "invoke", get_args(Invoke), number),
        managed_by=_word(value, "managed_by", get_args(ManagedBy), number),
        endpoint_ref=_matching(value, "endpoint_ref", _ENDPOINT, number),
        selector=_selector(value.get("selector"), number),
        notes=_notes(value.get("notes", ""), number),
    )


def _matching(value: Mapping[str, Any], name: str, pattern: re.Pattern[str], number: int) -> str:
    text = value[name]
    if not isinstance(text, str) or len(text) > 128 or not pattern.fullmatch(text):
        raise _wrong(number, name, "lower-case letters, digits and dashes are allowed")
    return text


def _word(value: Mapping[str, Any], name: str, words: tuple[str, ...], number: int) -> Any:
    if value[name] not in words:
        raise _wrong(number, name, f"one of {', '.join(words)}")
    return value[name]


def _selector(value: Any, number: int) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > 16:
        raise _wrong(number, "selector", "an object or null")
    for name, text in value.items():
        if not _NAME.fullmatch(name.replace("_", "-")) or not isinstance(text, str) or not _CHOICE.fullmatch(text):
            raise _wrong(number, "selector", "names in snake_case, values in kebab-case")
    return value


def _notes(value: Any, number: int) -> str:
    if not isinstance(value, str) or len(value) > 2000:
        raise _wrong(number, "notes", "a text of at most 2,000 characters")
    return value


def _wrong(number: int, name: str, words: str) -> RegistryInvalid:
    where = f"line {number}" + (f", {name[:40]}" if name else "")
    return RegistryInvalid(f"{where}: {words}", line=number, field=name[:40] or None)


def taken_in(state: RegistryState, handles: Iterable[Handle], slots: SlotTable, now_s: float) -> RegistryState:
    """The registry with the slots of ``handles`` assigned to what they select.

    Raises:
        ModelNotRegistered: a model that the registry does not know.
    """
    slugs = {slug_of(slug): slug for slug in state.entries}
    for handle in handles:
        if handle.kind != "model" or handle.port not in slots.ports or "model" not in handle.selector:
            continue
        wanted = handle.selector["model"]
        state = assign(state, handle.port, state.entry(slugs.get(wanted, wanted)).slug, now_s, force=True)
    return state
