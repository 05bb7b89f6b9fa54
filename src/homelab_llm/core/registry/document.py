"""The registry as a document, ``registry.json``: read strictly and within bounds, written always the same way. Pure.

``{"version": 1, "models": {slug: {"repo_id", "model_id", "cache_path", "format", "port", …}}}``. ``port`` is the slot
that shall serve the model, or null; a document that leaves it out says nothing about ports. A model without
``cache_path`` is an intent. Fields this version does not know are kept with their entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidName, RegistryTooNew
from homelab_llm.core.registry.entry import Entry, parse_entry_slug
from homelab_llm.core.registry.fields import WrongField, read_entry, write_entry
from homelab_llm.core.registry.json_text import check, decode, dotted, invalid
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import RegistryState

VERSION = 1


@dataclass(frozen=True, slots=True)
class Document:
    """What a document says: entries by slug, and for each slug that names a port, the port or None for none."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    ports: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, state: RegistryState) -> Document:
        """What an export of the state says."""
        ports = {a.desired: port for port, a in state.assignments.items() if a.desired}
        return cls(state.entries, {slug: ports.get(slug) for slug in state.entries})


def write_document(document: Document) -> bytes:
    """The document as bytes; equal documents give equal bytes."""
    ports = {slug: {"port": port} for slug, port in document.ports.items()}
    models = {slug: write_entry(entry, ports.get(slug, {})) for slug, entry in sorted(document.entries.items())}
    text = json.dumps({"version": VERSION, "models": models}, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def read_document(content: bytes, slots: SlotTable | None = None) -> Document:
    """The document in these bytes.

    Args:
        slots: a port that is none of these is refused; None takes every port.

    Raises:
        RegistryInvalid: it cannot be used; facts ``field`` and ``line`` where they are known.
        RegistryTooNew: it was written by a newer version.
    """
    text, value = decode(content)
    return _document(text, _models(text, value), slots)


def document_of(models: Mapping[str, Any], slots: SlotTable | None = None) -> Document:
    """The document with these objects, by slug; as strict as ``read_document``, without lines to name.

    Raises:
        RegistryInvalid: they cannot be used.
    """
    check({"models": dict(models)})
    return _document("", models, slots)


def _document(text: str, models: Mapping[str, Any], slots: SlotTable | None) -> Document:
    entries: dict[str, Entry] = {}
    ports: dict[str, int | None] = {}
    names: dict[str, str] = {}
    holders: dict[int, str] = {}
    for slug, held in models.items():
        entry = _entry(text, slug, held)
        if (other := names.setdefault(entry.model_id, slug)) != slug:
            raise invalid(text, ("models", slug, "model_id"), f"is {entry.model_id}, which {other} is already")
        entries[slug] = entry
        if "port" in held:
            ports[slug] = _port(text, slug, held["port"], slots, holders)
    return Document(entries, ports)


def _models(text: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(text, (), "must be an object with version and models")
    version = value.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise invalid(text, ("version",), f"must be {VERSION}", hint=f'begin with "version": {VERSION}')
    if version > VERSION:
        raise RegistryTooNew(
            f"the document has version {version}; this program reads version {VERSION}",
            hint="update this program, or export the registry with the version that wrote it",
            field="version",
            version=version if version < 2**31 else None,
        )
    for key in value:
        if key not in ("version", "models"):
            raise invalid(text, (key,), "is not known here", hint="fields of your own belong to an entry")
    models = value.get("models")
    if not isinstance(models, dict):
        raise invalid(text, ("models",), "must be an object of entries")
    return models


def _entry(text: str, slug: str, held: Any) -> Entry:
    try:
        parse_entry_slug(slug)
    except InvalidName as error:
        raise invalid(text, ("models", slug), "is not a name of an entry", hint=error.hint) from error
    try:
        return read_entry(slug, held)
    except WrongField as error:
        path = ("models", slug, error.name) if error.name else ("models", slug)
        raise invalid(text, path, error.words, hint=error.hint) from error


def _port(text: str, slug: str, port: Any, slots: SlotTable | None, holders: dict[int, str]) -> int | None:
    path = ("models", slug, "port")
    if port is None:
        return None
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise invalid(text, path, "must be a port or null")
    if slots is not None and port not in slots.ports:
        known = ", ".join(map(str, slots.ports)) or "none"
        raise invalid(text, path, f"is {port}, which is no slot of this node", hint=f"the slots are {known}")
    if (other := holders.setdefault(port, slug)) != slug:
        raise invalid(text, path, f"is {port}, which {dotted((other,))} has already", hint="one port serves one model")
    return port
