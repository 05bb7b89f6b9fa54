"""LoRA adapters: what a file or folder holds, and whether it belongs to a base. Looks at headers; loads no tensor.

Two formats: one GGUF file as llama.cpp's converter writes it, and PEFT's folder (``adapter_config.json`` and
``adapter_model.safetensors``). An adapter belongs to a base when it is of its architecture and every pair of its
matrices fits a tensor of the base: ``a`` has in × rank numbers, ``b`` has rank × out, the tensor in × out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from homelab_llm.core.errors import BadModelFile, UnsafeModel
from homelab_llm.core.facts import ModelFacts
from homelab_llm.store.inspect.model import PICKLES

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
GGUF_NAME = "adapter.gguf"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_RANK = 4096
_MAX_ALPHA = 1 << 20
_GGUF_PART = re.compile(r"(?P<tensor>.+)\.lora_(?P<side>[ab])")
_PEFT_PART = re.compile(r"(?:base_model\.model\.)?(?P<tensor>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on disk: its files by the names they get inside the model."""

    kind: Literal["gguf", "peft"]
    files: Mapping[str, Path]


def find_adapter(path: Path) -> AdapterFiles:
    """The adapter at ``path``: a GGUF file, or a folder with one or with PEFT's two files.

    Raises:
        UnsafeModel: its weights are pickles.
        BadModelFile: there is no adapter.
    """
    if path.suffix.lower() in PICKLES:
        raise _pickle(path)
    if not path.is_dir():
        if path.suffix.lower() == ".gguf" and path.exists():
            return AdapterFiles("gguf", {GGUF_NAME: path})
        raise BadModelFile(f"there is no adapter at {path}", hint="give a .gguf file or a folder in PEFT's format")
    if (path / PEFT_CONFIG).exists() and (path / PEFT_WEIGHTS).exists():
        return AdapterFiles("peft", {PEFT_CONFIG: path / PEFT_CONFIG, PEFT_WEIGHTS: path / PEFT_WEIGHTS})
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return AdapterFiles("gguf", {GGUF_NAME: ggufs[0]})
    if pickles := [found for found in sorted(path.iterdir()) if found.suffix.lower() in PICKLES]:
        raise _pickle(pickles[0])
    raise BadModelFile(
        f"{path.name} holds no adapter", hint=f"a folder in PEFT's format has {PEFT_CONFIG} and {PEFT_WEIGHTS}"
    )


def check_adapter(adapter: AdapterFiles, facts: ModelFacts, base: Mapping[str, Path]) -> None:
    """See that an adapter belongs to a base.

    Args:
        base: the base's own files.

    Raises:
        BadModelFile: it is of another format or architecture, damaged, or does not fit; says what.
        UnsafeModel: its configuration asks for code.
    """
    if adapter.kind == "gguf":
        _check_gguf(adapter.files, facts, base)
    else:
        _check_peft(adapter.files, facts, base)


def _check_gguf(files: Mapping[str, Path], facts: ModelFacts, base: Mapping[str, Path]) -> None:
    from homelab_llm.store.inspect.gguf import read_gguf

    if facts.format != "gguf":
        raise _other_format("GGUF", facts, "use the adapter in PEFT's format, or a base in GGUF")
    (path,) = files.values()
    header = read_gguf(path)
    if header.text("general.type") != "adapter":
        raise BadModelFile(f"{path.name} is a GGUF file, but not an adapter", hint="FROM takes models")
    architecture = header.text("general.architecture")
    if architecture != facts.architecture:
        raise BadModelFile(f"the adapter is for {architecture[:40]!r}, the base is {facts.architecture!r}")
    ggufs = [read_gguf(file) for name, file in base.items() if name.endswith(".gguf") or len(base) == 1]
    sizes = {tensor.name: tensor.elements for part in ggufs for tensor in part.tensors}
    _check_pairs(_GGUF_PART, ((tensor.name, tensor.elements) for tensor in header.tensors), sizes)


def _check_peft(files: Mapping[str, Path], facts: ModelFacts, base: Mapping[str, Path]) -> None:
    from homelab_llm.store.inspect.config import refuse_code
    from homelab_llm.store.inspect.documents import parse_object, read_bounded
    from homelab_llm.store.inspect.safetensors import read_safetensors

    if facts.format == "gguf":
        raise _other_format("PEFT", facts, "convert the adapter to GGUF, or use a base in safetensors")
    config = parse_object(read_bounded(files[PEFT_CONFIG], _MAX_CONFIG_BYTES, PEFT_CONFIG), PEFT_CONFIG)
    refuse_code(config, PEFT_CONFIG)
    rank = _peft_rank(config)
    sizes: dict[str, int] = {}
    packed: set[str] = set()
    for name, path in base.items():
        if name.endswith(".safetensors"):
            for tensor in read_safetensors(path).tensors:
                module, _, last = tensor.name.rpartition(".")
                sizes[module] = tensor.elements if last == "weight" else sizes.get(module, 0)
                packed |= {module} if last == "scales" else set()
    header = read_safetensors(files[PEFT_WEIGHTS])
    whole = {module: size for module, size in sizes.items() if module not in packed}
    parts = [(tensor.name, tensor.elements) for tensor in header.tensors]
    _check_pairs(_PEFT_PART, parts, whole, unmeasured=packed, rank=rank)


def _peft_rank(config: Mapping[str, Any]) -> int:
    """The rank of every pair; what this product does not apply is refused."""
    if config.get("peft_type", "LORA") != "LORA":
        raise BadModelFile(f"the adapter is of type {str(config.get('peft_type'))[:40]!r}; LORA is known")
    rank, alpha = config.get("r"), config.get("lora_alpha", config.get("r"))
    if type(rank) is not int or not 0 < rank <= _MAX_RANK:
        raise BadModelFile(f"{PEFT_CONFIG} has no rank from 1 to {_MAX_RANK}")
    if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
        raise BadModelFile(f"lora_alpha in {PEFT_CONFIG} is not a number that can be")
    for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(key):
            raise BadModelFile(f"the adapter uses {key}, which is not known here")
    if config.get("bias", "none") != "none":
        raise BadModelFile("the adapter changes biases, which is not known here")
    return rank


def _check_pairs(
    pattern: re.Pattern[str],
    parts: Iterable[tuple[str, int]],
    sizes: Mapping[str, int],
    *,
    unmeasured: Iterable[str] = (),
    rank: int = 0,
) -> None:
    """See that parts come in pairs and each pair fits its tensor.

    Args:
        unmeasured: tensors that only need to be there.
        rank: of every pair; 0 = each pair's own.
    """
    pairs: dict[str, dict[str, int]] = {}
    for name, elements in parts:
        found = pattern.fullmatch(name)
        if found is None:
            raise BadModelFile(f"{name[:80]!r} is not part of a LoRA adapter", tensor=name[:80])
        pairs.setdefault(found["tensor"], {})[found["side"].lower()] = elements
    if not pairs:
        raise BadModelFile("the adapter holds no tensors")
    known = {*sizes, *unmeasured}
    for tensor, sides in pairs.items():
        if sides.keys() != {"a", "b"}:
            raise BadModelFile(f"the adapter has only half of {tensor[:80]!r}", tensor=tensor[:80])
        if tensor not in known:
            raise BadModelFile(
                f"the base has no {tensor[:80]!r}: the adapter belongs to another model", tensor=tensor[:80]
            )
        if tensor in sizes and not _fits(sides["a"], sides["b"], sizes[tensor], rank):
            raise BadModelFile(f"the adapter does not fit {tensor[:80]!r} of the base", tensor=tensor[:80])


def _fits(a: int, b: int, whole: int, rank: int) -> bool:
    """in·r × r·out is in·out times a square, and the rank divides both."""
    if not (a and b and whole) or (a * b) % whole:
        return False
    found = math.isqrt(a * b // whole)
    return found * found * whole == a * b and 0 < found <= _MAX_RANK and rank in (0, found) and a % found == 0


def _other_format(kind: str, facts: ModelFacts, hint: str) -> BadModelFile:
    return BadModelFile(f"the adapter is in the {kind} format and the base in {facts.format}", hint=hint)


def _pickle(path: Path) -> UnsafeModel:
    return UnsafeModel(
        f"{path.name} is a pickle file: loading it would run code that is inside it",
        hint="use the adapter in safetensors or GGUF",
        file=path.name,
    )
