"""Which programs make a wanted format out of a model. Pure: a model's facts in, steps out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.store.progress import Stage

Target = Literal["gguf", "mlx", "safetensors"]

GGUF_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
MLX_BITS = {
    "f16": 16,
    "8bit": 8.5,
    "6bit": 6.5,
    "5bit": 5.5,
    "4bit": 4.5,
    "3bit": 3.5,
    "mixed_4_6": 5.2,
    "mixed_3_6": 4.4,
    "mixed_3_4": 3.8,
    "mixed_2_6": 3.5,
}
SAFETENSORS_BITS = {"f32": 32, "f16": 16, "bf16": 16}
TYPES: Mapping[Target, Mapping[str, float]] = {"gguf": GGUF_BITS, "mlx": MLX_BITS, "safetensors": SAFETENSORS_BITS}
"""What each format can be written as, with the bits a weight then takes."""

USUAL: Mapping[Target, str] = {"gguf": "f16", "mlx": "4bit", "safetensors": "f16"}
_SOURCE = "INPUT"  # stands for the files of the step before
PIECES_BYTES = 400 << 20  # what any program takes beside the model: Python, numpy, blocks of rows


@dataclass(frozen=True, slots=True)
class Step:
    """One program: its module, what it is told, and what it makes (a file or folder name)."""

    module: str
    arguments: tuple[str, ...]
    makes: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Needs:
    """What a conversion takes at most, in bytes."""

    disk_bytes: int
    memory_bytes: int


def target_of(kind: str) -> Target:
    """The format a type belongs to, for ``mlxctl quantize``; GGUF where both have it.

    Raises:
        InvalidInput: no such type.
    """
    kind = kind.lower()
    if kind in GGUF_BITS:
        return "gguf"
    if kind in MLX_BITS:
        return "mlx"
    raise InvalidInput(f"there is no type {kind[:40]!r}", hint=f"one of {', '.join(GGUF_BITS | MLX_BITS)}")


def plan(model: StoredModel, to: Target, kind: str, *, force: bool) -> list[Step]:
    """The steps from a model to a format and type; ``kind`` empty means the usual one.

    Raises:
        InvalidInput: the format has no such type.
        UnsupportedRequest: no program makes that of this model.
    """
    facts = model.facts
    keeps_packed = not kind and facts.format == "gguf" and to == "mlx"
    kind = (kind or USUAL[to]).lower()
    if kind not in TYPES[to]:
        raise InvalidInput(f"{to} has no type {kind[:40]!r}", hint=f"one of {', '.join(TYPES[to])}", field="type")
    if model.defaults.adapters:
        raise UnsupportedRequest(
            "the model has adapters attached, which are not converted", hint="mlxctl fuse MODEL ADAPTER NEWNAME first"
        )
    forced = ("--force",) if force else ()
    match facts.format, to:
        case "gguf", "gguf":
            return [Step("quantize_gguf", ("--type", kind, *forced), "model.gguf", "quantizing")]
        case "gguf", "mlx" if keeps_packed:
            return [Step("gguf_to_mlx", (), "model", "converting")]
        case _, "gguf":
            module = "bert_to_gguf" if facts.architecture == "bert" else "hf_to_gguf"
            named = ("--type", kind, "--name", model.name, "--licence", facts.licence)
            extra = forced if module == "hf_to_gguf" else ()
            return [Step(module, (*named, *extra), "model.gguf", "converting")]
        case "gguf", "safetensors":
            return [Step("gguf_to_hf", ("--type", kind, "--licence", facts.licence, *forced), "model", "converting")]
        case "gguf", "mlx":
            dense = Step("gguf_to_hf", ("--type", "f16", "--licence", facts.licence, *forced), "dense", "converting")
            return [dense, Step("hf_to_mlx", ("--type", kind), "model", "quantizing")]
        case "safetensors", "mlx":
            return [Step("hf_to_mlx", ("--type", kind), "model", "quantizing")]
    raise UnsupportedRequest(
        f"a model in {facts.format} format is not converted to {to}", hint=f"start from {_better(to)}"
    )


def _better(to: Target) -> str:
    return "the model in safetensors format" if to == "mlx" else "the model in GGUF or safetensors format"


def needs_of(facts: ModelFacts, to: Target, kind: str, *, measure: bool) -> Needs:
    """An upper bound of disk and memory, from facts alone.

    Disk: the result, and for GGUF → MLX the floats between. Memory: blocks of rows, one layer in 32 bits where it is
    measured, a shard of the result (5 GB) where MLX writes it.
    """
    weights = facts.parameters or facts.size_bytes // 2
    result = int(weights * TYPES[to][(kind or USUAL[to]).lower()] / 8 * 1.02) + (48 << 20)
    between = weights * 2 if (facts.format, to) == ("gguf", "mlx") else 0
    layer = 4 * weights // max(1, facts.layers or 1) if facts.layers else 0
    memory = PIECES_BYTES + (layer * 3 // 2 if measure else 0)
    if to == "mlx":
        memory = max(memory, PIECES_BYTES + min(result + between, 8 << 30))
    return Needs(result + between, memory)


def needs_of_fusing(facts: ModelFacts, *, measure: bool) -> Needs:
    """As ``needs_of``: the result is as large as the model."""
    layer = 4 * (facts.parameters or facts.size_bytes // 2) // max(1, facts.layers or 1)
    return Needs(facts.size_bytes + (48 << 20), PIECES_BYTES + (layer * 3 // 2 if measure else 0))


def file_arguments(files: Mapping[str, Path]) -> list[str]:
    """A model's files as a program takes them."""
    return [part for name, path in sorted(files.items()) for part in ("--file", f"{name}={path}")]
