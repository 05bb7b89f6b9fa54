"""Facts about a model, as values that the store writes and the engines read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from homelab_llm.core.digests import Digest

Format = Literal["gguf", "safetensors", "mlx"]
Capability = Literal["chat", "completion", "embedding", "tools", "vision", "thinking"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the headers of a model say. ``None`` or 0 means the files do not tell.

    ``kv_bytes_per_token`` is the 16-bit KV cache of one token over all layers; ``quantization`` is a
    name such as ``Q4_1``, ``F16`` or ``4bit``; ``template_knows_tools`` says whether the chat template
    reads ``tools``. Of a model that generates and whose files have no chat template, ``chat_tokens`` are the tokens
    of its vocabulary that chat templates use, ``end_tokens`` those among them that end an answer; else both are empty.
    """

    format: Format
    architecture: str
    size_bytes: int
    parameters: int = 0
    quantization: str = ""
    context_tokens: int = 0
    embedding_width: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocabulary_tokens: int = 0
    kv_bytes_per_token: int = 0
    licence: str = ""
    chat_template: str = ""
    template_knows_tools: bool = False
    capabilities: tuple[Capability, ...] = ()
    chat_tokens: tuple[str, ...] = ()
    end_tokens: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field; of the tokens only what there is."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {name: list(out.pop(name)) for name in ("capabilities", "chat_tokens", "end_tokens")}
        return out | {name: value for name, value in lists.items() if value or name == "capabilities"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFacts:
        """The inverse of ``as_dict``; unknown keys are ignored, so a newer store can be read."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        for name in ("capabilities", "chat_tokens", "end_tokens"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What a model brings besides its weights, from its ModelSpec or Modelfile; empty = the files' own, or nothing.

    ``parameters`` are request parameters by their OpenAI or Ollama names (``temperature``, ``stop``, …), used where a
    request says nothing, and the load parameter ``num_ctx`` (context tokens). ``system`` is used when a request has no
    system message, ``messages`` (``{"role", "content"}``) come before a conversation. ``template`` is a Jinja chat
    template that replaces the files' own; ``go_template`` is what it was translated from, when it came in Ollama's
    language. ``adapters`` are paths inside the model: a GGUF adapter, or a folder in PEFT's format.
    ``tool_call_parser``, ``reasoning_parser`` name formats as a registry entry does. ``metadata`` are short texts for
    people; ``requires`` is the least version of a program that serves it (``homelab-llm>=0.1``).
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    adapters: tuple[str, ...] = ()
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    go_template: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, only what is set."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelDefaults:
        """The inverse of ``as_dict``; unknown keys are ignored."""
        known = {name: value for name, value in data.items() if name in cls.__dataclass_fields__}
        for name in ("messages", "adapters"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a model was made here; empty for one that was pulled or imported as it is.

    ``base`` and ``base_digest`` name the model it was made from, ``action`` is create, convert, quantize or fuse,
    ``tool`` the program with its version, ``measured`` holds figures such as ``perplexity_before``.
    """

    base: str = ""
    base_digest: str = ""
    action: str = ""
    tool: str = ""
    created_unix_s: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, only what is set."""
        return {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of ``as_dict``; unknown keys are ignored."""
        return cls(**{name: value for name, value in data.items() if name in cls.__dataclass_fields__})


ADAPTERS = "adapters/"
"""Where the adapters of a model lie among its files; nothing there is part of the model itself."""

NO_DEFAULTS = ModelDefaults()
NO_PROVENANCE = Provenance()


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that lies complete in the store.

    ``files`` maps the file's path inside the model (``model.gguf``, ``config.json``) to its blob on disk;
    read-only, valid until the model is removed and pruned. ``source`` is where it came from first, as part of the
    model; ``pulled_from`` where this store got it, which is what repairs it (empty: imported or made here).
    """

    name: str
    digest: Digest
    facts: ModelFacts
    files: Mapping[str, Path] = field(default_factory=dict)
    size_bytes: int = 0
    created_unix_s: float = 0.0
    source: str = ""
    pulled_from: str = ""
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE

    @property
    def template_from(self) -> Literal["", "model", "files", "catalogue"]:
        """Where ``facts.chat_template`` comes from: its defaults, its files, or our catalogue where those have none."""
        if not self.facts.chat_template:
            return ""
        if self.defaults.template:
            return "model"
        return "catalogue" if self.facts.chat_tokens else "files"

    def adapter_files(self, adapter: str) -> dict[str, Path]:
        """The files of one of ``defaults.adapters`` by their own names; empty when the model lacks them."""
        if (path := self.files.get(adapter)) is not None:
            return {adapter.rpartition("/")[2]: path}
        prefix = f"{adapter}/"
        return {name.removeprefix(prefix): path for name, path in self.files.items() if name.startswith(prefix)}

    @property
    def own_files(self) -> dict[str, Path]:
        """The files without adapters."""
        return {name: path for name, path in self.files.items() if not name.startswith(ADAPTERS)}
