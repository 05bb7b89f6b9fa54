"""Which files of a repository make the model: pure rules over names and sizes.

Safetensors win over GGUF, GGUF must be one model, pickles and code are never taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from homelab_llm.core.errors import InvalidInput, SourceNotFound, UnsafeModel
from homelab_llm.core.units import format_bytes
from homelab_llm.store.inspect.model import CODE, PICKLES

# What engines read beside the weights; model cards and pictures stay where they are.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.jsonl", "*.model", "*.tiktoken", "LICENSE*", "LICENCE*", "NOTICE*")
_MODULE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors)")  # parts of a sentence-transformers model
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_SHOWN_CHOICES = 30


def choose_files(sizes: Mapping[str, int | None], wanted: str, reference: str) -> list[str]:
    """The paths to fetch out of a repository that holds ``sizes``.

    Args:
        wanted: the GGUF file the reference asks for, or empty. One part of a split file means all parts.
        reference: how to name the repository in hints, for example ``hf:org/name``.

    Raises:
        InvalidInput: several GGUF models and none asked for; facts: ``choices``.
        UnsafeModel: there are only pickled weights.
        SourceNotFound: no such file, or no weights at all.
    """
    groups = gguf_models(list(sizes))
    if wanted:
        return _wanted(groups, wanted, reference)
    weights = _safetensors(list(sizes))
    if weights:
        return sorted({*weights, *filter(_is_companion, sizes)})
    if len(groups) == 1:
        return next(iter(groups.values()))
    if groups:
        raise _choice_needed(groups, sizes, reference)
    if any(path.lower().endswith(PICKLES) for path in sizes):
        raise UnsafeModel(
            f"{reference} has only pickled weights, which run code when loaded",
            hint="look for a copy of the model in safetensors or GGUF format",
        )
    raise SourceNotFound(f"{reference} has no weights in safetensors or GGUF format")


def gguf_models(paths: Sequence[str]) -> dict[str, list[str]]:
    """The GGUF models among the paths: name of the first file → all parts, in order. Projectors are left out."""
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = path.rpartition("/")[2].lower()
        if not name.endswith(".gguf") or "mmproj" in name or "imatrix" in name:
            continue
        part = _PART.fullmatch(path)
        groups.setdefault(f"{part['stem']}-of-{part['count']}" if part else path, []).append(path)
    return {parts[0]: parts for parts in groups.values()}


def stored_name(path: str) -> str:
    """The name of a chosen file inside the model: GGUF files lose their own name, as on import."""
    if not path.lower().endswith(".gguf"):
        return path
    part = _PART.fullmatch(path)
    return f"model-{part['number']}-of-{part['count']}.gguf" if part else "model.gguf"


def _wanted(groups: Mapping[str, list[str]], wanted: str, reference: str) -> list[str]:
    for parts in groups.values():
        if wanted in parts or wanted.lower() in {part.lower() for part in parts}:
            return parts
    if not groups:
        raise SourceNotFound(f"{reference} holds no GGUF file; leave out #{wanted[:80]}")
    raise SourceNotFound(
        f"{reference} holds no GGUF file {wanted[:80]!r}",
        hint=f"choose one of: {', '.join(list(groups)[:_SHOWN_CHOICES])}",
        choices=list(groups)[:_SHOWN_CHOICES],
    )


def _safetensors(paths: Sequence[str]) -> list[str]:
    top = [path for path in paths if "/" not in path and path.endswith(".safetensors")]
    named = [path for path in top if fnmatchcase(path, "model*.safetensors")]
    # "consolidated" is the same model once more, in its maker's own layout
    return named or [path for path in top if not path.startswith(("consolidated", "adapter_"))]


def _is_companion(path: str) -> bool:
    if path.lower().endswith((*PICKLES, *CODE)):
        return False
    if "/" in path:
        return bool(_MODULE.fullmatch(path))
    return any(fnmatchcase(path, pattern) for pattern in _COMPANIONS)


def _choice_needed(groups: Mapping[str, list[str]], sizes: Mapping[str, int | None], reference: str) -> InvalidInput:
    lines = [f"{first} ({format_bytes(sum(sizes[part] or 0 for part in parts))})" for first, parts in groups.items()]
    usual = next((first for first in groups if "q4_k_m" in first.lower()), next(iter(groups)))
    return InvalidInput(
        f"{reference} holds {len(groups)} GGUF models: {', '.join(lines[:_SHOWN_CHOICES])}",
        hint=f"mlxctl pull '{reference}#{usual}'",
        choices=list(groups)[:_SHOWN_CHOICES],
    )
