"""Outlines: what an artifact consists of, before its weights are fetched; and how small contents complete it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, ModelFacts, Provenance
from homelab_llm.store.foreign.documents import Descriptor

Role = Literal["template", "jinja", "system", "params", "messages", "licence"]
Compression = Literal["", "gzip"]


@dataclass(frozen=True, slots=True)
class Part:
    """One file: a layer as it is, and its path inside the artifact."""

    path: str
    layer: Descriptor


@dataclass(frozen=True, slots=True)
class Archive:
    """A layer that is a tar of files; ``folder`` is where they belong inside the artifact, empty = at the top."""

    layer: Descriptor
    compression: Compression = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Outline:
    """What an artifact consists of.

    ``texts`` are small layers that become defaults. ``whole``: the files are the model, exactly these and by these
    names; else the rules of ``store/choice.py`` pick among them. ``facts`` and ``origin`` are told by a manifest of
    ours. ``notes`` say what is left out, for people.
    """

    kind: str
    parts: tuple[Part, ...]
    archives: tuple[Archive, ...] = ()
    texts: tuple[tuple[Role, Descriptor], ...] = ()
    whole: bool = False
    licence: str = ""
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE
    facts: ModelFacts | None = None
    origin: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Gathering:
    """An outline while the layers are walked through."""

    kind: str
    parts: list[Part] = field(default_factory=list)
    archives: list[Archive] = field(default_factory=list)
    texts: list[tuple[Role, Descriptor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def keep_licences(self) -> None:
        """Keep licence texts as files of the model, too."""
        texts = dict.fromkeys(layer for role, layer in self.texts if role == "licence")
        names = ["LICENSE", *(f"LICENSE-{number}" for number in range(2, len(texts) + 1))]
        self.parts += [Part(name, layer) for name, layer in zip(names, texts, strict=False)]

    def outline(self, **more: Any) -> Outline:
        """What was gathered; notes once each."""
        return Outline(
            self.kind,
            tuple(self.parts),
            tuple(self.archives),
            tuple(self.texts),
            notes=tuple(dict.fromkeys(self.notes)),
            **more,
        )


Contents = Mapping[Role, tuple[bytes, ...]]
"""The contents of the small layers, by what they are."""
