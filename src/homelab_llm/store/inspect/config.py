"""config.json and its kin: keys that would make a program run the model's code are refused, dimensions bounded.

The list of keys comes from published advisories (``auto_map`` and ``trust_remote_code``: transformers and vLLM,
``_attn_implementation_internal``: transformers before 5.3, ``model_file``: mlx-lm, ``custom_generate`` and
implementations named by repository: transformers, module types of other packages: sentence-transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsafeModel
from homelab_llm.store.inspect.documents import read_object

CODE_KEYS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "model_file",
        "custom_pipeline",
        "custom_pipelines",
        "custom_generate",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
    }
)
_IMPLEMENTATION = "_implementation"
_KNOWN_MODULES = "sentence_transformers."
MAX_DEPTH = 32

_LIMITS = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1 << 20,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 31,
    "kv_lora_rank": 1 << 16,
    "qk_rope_head_dim": 1 << 16,
    "full_attention_interval": 10_000,
}
# Older configurations (GPT-2, DistilBERT) have other names for the same numbers.
_OTHER_NAMES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_sequence_length", "max_seq_len"),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A configuration that passed. ``text`` is the part about the language model (a nested one where there is)."""

    root: Mapping[str, Any]
    text: Mapping[str, Any]

    def number(self, key: str) -> int:
        """A dimension within its limit; 0 when missing or null.

        Raises:
            BadModelFile: not a whole number, negative, or absurd.
        """
        names = (key, *_OTHER_NAMES.get(key, ()))
        value = next((self.text[name] for name in names if self.text.get(name) is not None), 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LIMITS[key]:
            raise BadModelFile(f"config.json: {key} is not a number from 0 to {_LIMITS[key]}", key=key)
        return value

    @property
    def model_type(self) -> str:
        """The architecture in transformers' words, such as ``llama`` or ``bert``."""
        found = self.root.get("model_type")
        return found if isinstance(found, str) else ""


def read_config(path: Path) -> ModelConfig:
    """Read config.json and check every dimension it gives.

    Raises:
        UnsafeModel: it asks for remote code.
        BadModelFile: not JSON, no model_type, or dimensions out of bounds.
    """
    root = read_object(path, "config.json")
    refuse_code(root, "config.json")
    nested = root.get("text_config") or root.get("llm_config") or root.get("language_config")
    config = ModelConfig(root, nested if isinstance(nested, dict) else root)
    model_type = config.model_type
    if not model_type or len(model_type) > 80 or not model_type.isprintable():
        raise BadModelFile("config.json names no model_type", key="model_type")
    for key in _LIMITS:
        config.number(key)
    return config


def refuse_code(value: Any, what: str, depth: int = 0) -> None:
    """Look through a parsed document for keys that ask for the model's own code.

    Raises:
        UnsafeModel: one of them is there with a value that is not empty or false.
        BadModelFile: nested deeper than any configuration is.
    """
    if depth > MAX_DEPTH:
        raise BadModelFile(f"{what} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if item and (key in CODE_KEYS or _names_a_repository(key, item)):
                raise UnsafeModel(
                    f"{what} asks to run code that came with the model ({key[:80]}); that is never done here",
                    hint="look for a copy of the model without custom code, for example in GGUF format",
                    key=key[:80],
                )
            refuse_code(item, what, depth + 1)
    elif isinstance(value, list):
        for item in value:
            refuse_code(item, what, depth + 1)


def refuse_modules(value: Any, what: str) -> None:
    """Look through a ``modules.json``: its types are classes, and those of the model's own would be its own code.

    Raises:
        UnsafeModel: a module of another package. BadModelFile: not a list of modules.
    """
    if not isinstance(value, list) or not all(isinstance(module, dict) for module in value):
        raise BadModelFile(f"{what} is not a list of modules")
    for module in value:
        kind = module.get("type")
        if not isinstance(kind, str) or not kind.startswith(_KNOWN_MODULES):
            raise UnsafeModel(
                f"{what} names a module that is not part of sentence-transformers ({str(kind)[:80]})",
                hint="look for a copy of the model without custom code",
                key="type",
            )


def _names_a_repository(key: str, value: Any) -> bool:
    """``attn_implementation: org/kernels`` would load a kernel, which is code, from a hub."""
    if not key.removesuffix("_internal").endswith(_IMPLEMENTATION):
        return False
    values = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(item, str) and "/" in item for item in values)
