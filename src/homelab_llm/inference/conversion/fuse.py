"""The program that adds a LoRA adapter to the weights it was trained for.

    python -m homelab_llm.inference.conversion.fuse --file NAME=PATH … --adapter NAME=PATH … --target FOLDER_OR_FILE

A folder in Hugging Face's format takes an adapter of PEFT or of mlx-lm; a GGUF file of floats takes a GGUF adapter.
Each weight becomes W + scale * B A, in 32 bits, and is kept in the type it had. Every matrix of the adapter must find
its weight.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.documents import read_object, real, whole
from homelab_llm.inference.conversion.folder_output import appearing_folder, write_tensors
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.gguf_output import Planned, appearing, write_gguf
from homelab_llm.inference.conversion.opened import is_gguf
from homelab_llm.inference.conversion.quantize_gguf import describe_as_before, kept
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles
from homelab_llm.inference.conversion.tensors import Tensors, row_blocks, whole_tensor

_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_MLX = re.compile(r"(.+)\.lora_([ab])")
_GGUF = re.compile(r"(.+\.weight)\.lora_([ab])")
_FLOATS = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to one weight: ``scale * up @ down``; (out, rank) and (rank, in)."""

    up: Any
    down: Any
    scale: float


class Adapter(Protocol):
    """An adapter's changes, by the name of the weight."""

    def weights(self) -> frozenset[str]: ...

    def delta(self, name: str) -> Delta: ...


class PeftAdapter:
    """PEFT's format: adapter_config.json and adapter_model.safetensors.

    Raises:
        UnsupportedRequest: anything but plain LoRA on linear layers.
        BadModelFile: matrices without their partner.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        config = read_object(files, "adapter_config.json")
        _refuse(config, "peft_type", "LORA")
        for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
            if config.get(key):
                raise UnsupportedRequest(f"an adapter with {key} cannot be fused")
        _refuse(config, "bias", "none")
        rank, alpha = whole(config, "r", most=1 << 16), real(config, "lora_alpha")
        self._scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._tensors = SafetensorsFiles(files)
        self._pairs = _pairs(self._tensors, _PEFT)

    def weights(self) -> frozenset[str]:
        return frozenset(f"{stem}.weight" for stem in self._pairs)

    def delta(self, name: str) -> Delta:
        pair = self._pairs[name.removesuffix(".weight")]
        return Delta(whole_tensor(self._tensors, pair["B"]), whole_tensor(self._tensors, pair["A"]), self._scale)


class MlxAdapter:
    """mlx-lm's format: adapter_config.json and adapters.safetensors, matrices the other way round.

    Raises:
        UnsupportedRequest: anything but plain LoRA.
        BadModelFile: matrices without their partner.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        config = read_object(files, "adapter_config.json")
        _refuse(config, "fine_tune_type", "lora")
        parameters = config.get("lora_parameters")
        self._scale = real(parameters if isinstance(parameters, dict) else config, "scale")
        self._tensors = SafetensorsFiles({name: path for name, path in files.items() if name == "adapters.safetensors"})
        self._pairs = _pairs(self._tensors, _MLX)

    def weights(self) -> frozenset[str]:
        return frozenset(f"{stem}.weight" for stem in self._pairs)

    def delta(self, name: str) -> Delta:
        pair = self._pairs[name.removesuffix(".weight")]
        up, down = (whole_tensor(self._tensors, pair[part]).T for part in "ba")
        return Delta(up, down, self._scale)


class GgufAdapter:
    """llama.cpp's format: a GGUF file of the type adapter.

    Raises:
        UnsupportedRequest: not LoRA. BadModelFile: matrices without their partner.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._tensors = GgufFiles.of(files)
        if self._tensors.value("general.type") != "adapter" or self._tensors.value("adapter.type") != "lora":
            raise UnsupportedRequest("the GGUF file is no LoRA adapter")
        self._alpha = real({"alpha": self._tensors.value("adapter.lora.alpha")}, "alpha")
        self._pairs = _pairs(self._tensors, _GGUF)

    def weights(self) -> frozenset[str]:
        return frozenset(self._pairs)

    def delta(self, name: str) -> Delta:
        pair = self._pairs[name]
        down = whole_tensor(self._tensors, pair["a"])
        return Delta(whole_tensor(self._tensors, pair["b"]), down, self._alpha / len(down))


def _refuse(config: Mapping[str, Any], key: str, wanted: str) -> None:
    if (found := config.get(key, wanted)) != wanted:
        raise UnsupportedRequest(f"an adapter with {key} = {str(found)[:40]} cannot be fused")


def _pairs(tensors: Tensors, pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    pairs: dict[str, dict[str, str]] = {}
    for name in sorted(tensors.names()):
        match = pattern.fullmatch(name)
        if match is None:
            raise UnsupportedRequest(f"the adapter's tensor {name[:80]!r} cannot be fused")
        pairs.setdefault(match[1], {})[match[2]] = name
    if alone := [stem for stem, pair in pairs.items() if len(pair) != 2]:
        raise BadModelFile(f"the adapter has only one matrix for {alone[0][:80]}")
    if not pairs:
        raise BadModelFile("the adapter is empty")
    return pairs


def open_adapter(files: Mapping[str, Path]) -> Adapter:
    """The adapter in these files, of any of the three formats.

    Raises:
        BadModelFile, UnsupportedRequest: it is none of them.
    """
    if is_gguf(files):
        return GgufAdapter(files)
    if "adapters.safetensors" in files:
        return MlxAdapter(files)
    return PeftAdapter(files)


def fused_rows(base: Tensors, name: str, delta: Delta | None) -> Iterator[Any]:
    """A weight in blocks of rows, with what the adapter adds."""
    rows, width = base.shape(name)[0], math.prod(base.shape(name)[1:])
    for begin, end in row_blocks(rows, width=width):
        block = base.rows(name, begin, end)
        yield block if delta is None else block + delta.scale * (delta.up[begin:end] @ delta.down)


def _check(base: Tensors, adapter: Adapter, hint: str) -> None:
    """Every matrix finds a weight of its shape."""
    for name in sorted(adapter.weights()):
        if name not in base.names():
            raise BadModelFile(f"the adapter is for another model: there is no {name[:80]}", hint=hint)
        delta = adapter.delta(name)
        if (delta.up.shape[0], delta.down.shape[1]) != base.shape(name) or delta.up.shape[1] != delta.down.shape[0]:
            raise BadModelFile(f"the adapter is for another model: {name[:80]} has another shape", hint=hint)


def fuse(files: Mapping[str, Path], adapter_files: Mapping[str, Path], target: Path) -> None:
    """Write ``target``, a folder or a GGUF file as the base is; does nothing when it is there.

    Raises:
        UnsupportedRequest: quantized weights, an adapter of another format than the base takes, not plain LoRA.
        BadModelFile: an adapter for another model.
    """
    adapter = open_adapter(adapter_files)
    if is_gguf(files):
        if not isinstance(adapter, GgufAdapter):
            raise UnsupportedRequest("a GGUF model takes a GGUF adapter", hint="fuse with the safetensors model")
        _fuse_gguf(GgufFiles.of(files), adapter, target)
        return
    if isinstance(adapter, GgufAdapter):
        raise UnsupportedRequest("a GGUF adapter goes with a GGUF model", hint="convert the model to GGUF first")
    _fuse_folder(files, adapter, target)


def _fuse_folder(files: Mapping[str, Path], adapter: Adapter, target: Path) -> None:
    base = SafetensorsFiles(files)
    _check(base, adapter, "name the model it was trained on")
    types = {name: base.placed(name).dtype for name in sorted(base.names())}
    if other := [name for name, dtype in types.items() if dtype not in _FLOATS]:
        raise UnsupportedRequest(f"{other[0][:80]} is quantized; an adapter is fused with floats")
    with appearing_folder(target, lambda: program.progress("converting", 0)) as folder:
        if folder is None:
            return
        for name, path in files.items():
            if not name.endswith((".safetensors", ".safetensors.index.json")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
        write_tensors(
            folder,
            {name: (dtype, base.shape(name)) for name, dtype in types.items()},
            lambda name: fused_rows(base, name, adapter.delta(name) if name in adapter.weights() else None),
            lambda done: program.progress("converting", done),
        )


def _fuse_gguf(base: GgufFiles, adapter: GgufAdapter, target: Path) -> None:
    from gguf import GGMLQuantizationType, LlamaFileType

    _check(base, adapter, "name the model it was trained on")
    kinds = {name: GGMLQuantizationType(stored.kind).name for name, stored in base.tensors.items()}
    if other := [name for name in adapter.weights() if kinds[name] not in _FLOATS]:
        raise UnsupportedRequest(
            f"{other[0][:80]} is quantized ({kinds[other[0]]}); an adapter is fused with floats",
            hint="fuse with the f16 model, then mlxctl quantize",
        )

    def planned(name: str) -> Planned:
        if name not in adapter.weights():
            return kept(base, name)
        return Planned(name, base.shape(name), kinds[name].lower(), lambda: fused_rows(base, name, adapter.delta(name)))

    types = {LlamaFileType.ALL_F32: "f32", LlamaFileType.MOSTLY_F16: "f16", LlamaFileType.MOSTLY_BF16: "bf16"}
    with appearing(target, lambda: program.progress("converting", 0)) as path:
        if path is not None:
            write_gguf(
                path,
                str(base.value("general.architecture")),
                types.get(base.value("general.file_type"), "f16"),
                describe=lambda writer: describe_as_before(writer, base),
                tensors=[planned(name) for name in base.tensors],
                progress=lambda done: program.progress("converting", done),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Fuse as the command line says."""
    parser = program.parser("fuse", "Add a LoRA adapter to the weights it was trained for.")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="a file of the adapter")
    parser.add_argument("--target", type=Path, required=True)
    given = parser.parse_args(argv)
    files, adapter = program.files_of(given.file), program.files_of(given.adapter)
    return program.run(given, lambda: fuse(files, adapter, given.target))


if __name__ == "__main__":
    sys.exit(main())
