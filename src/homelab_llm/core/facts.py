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
    reads ``tools``.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["capabilities"] = list(self.capabilities)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFacts:
        """The inverse of ``as_dict``; unknown keys are ignored, so a newer store can be read."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        known["capabilities"] = tuple(known.get("capabilities", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that lies complete in the store.

    ``files`` maps the file's path inside the model (``model.gguf``, ``config.json``) to its blob on disk;
    read-only, valid until the model is removed and pruned.
    """

    name: str
    digest: Digest
    facts: ModelFacts
    files: Mapping[str, Path] = field(default_factory=dict)
    size_bytes: int = 0
    created_unix_s: float = 0.0
    source: str = ""
