"""The program that writes a GGUF file again with weights of another type.

    python -m homelab_llm.inference.conversion.quantize_gguf --file model.gguf=PATH --type q8_0 --target FILE

Metadata stays as it is. Which tensors change: ``gguf_output.tensor_type``. Weights that are quantized already are not
quantized once more, and never to more bits than they have, unless ``--force``: what was lost does not come back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.gguf_output import (
    TYPES,
    Planned,
    appearing,
    ggml_type,
    tensor_type,
    write_gguf,
)
from homelab_llm.inference.conversion.tensors import pieces, row_blocks

_FULL = frozenset({"F32", "F16", "BF16", "F64"})
_OURS = frozenset({"general.architecture", "general.file_type", "general.quantization_version", "general.alignment"})


def quantize(source: GgufFiles, target: Path, wanted: str, *, force: bool) -> None:
    """Write ``target``; does nothing when it is there.

    Raises:
        UnsupportedRequest: it would cost quality for nothing, and ``force`` was not given.
        BadModelFile: the source contradicts itself.
    """
    architecture = source.value("general.architecture")
    if not isinstance(architecture, str) or not source.tensors:
        raise BadModelFile("the file names no architecture, or has no tensors")
    planned = list(_plan(source, wanted))
    if not force:
        _refuse_loss(source, planned, wanted)
    with appearing(target, lambda: program.progress("quantizing", 0)) as path:
        if path is not None:
            write_gguf(
                path,
                architecture,
                wanted,
                describe=lambda writer: describe_as_before(writer, source),
                tensors=planned,
                progress=lambda done: program.progress("quantizing", done),
            )


def _plan(source: GgufFiles, wanted: str) -> Iterator[Planned]:
    output = "output.weight" if "output.weight" in source.tensors else "token_embd.weight"
    for name, stored in source.tensors.items():
        kind = tensor_type(name, stored.shape, wanted, output=output)
        same = kind == "f32" or ggml_type(kind) == stored.kind
        yield kept(source, name) if same else _changed(source, name, kind)


def kept(source: GgufFiles, name: str) -> Planned:
    """A tensor byte for byte."""
    from gguf import GGMLQuantizationType

    stored = source.stored(name)

    def blocks() -> Iterator[Any]:
        for begin, end in row_blocks(stored.shape[0], width=stored.row_bytes // 4):
            yield source.raw_rows(name, begin, end)

    return Planned(name, stored.shape, GGMLQuantizationType(stored.kind).name.lower(), blocks, raw=True)


def _changed(source: GgufFiles, name: str, kind: str) -> Planned:
    return Planned(name, source.shape(name), kind, lambda: pieces(source, name))


def _refuse_loss(source: GgufFiles, planned: Sequence[Planned], wanted: str) -> None:
    from gguf import GGMLQuantizationType

    changed = [tensor for tensor in planned if not tensor.raw]
    if not changed:
        raise UnsupportedRequest(f"the model's weights are {wanted} already", hint="mlxctl cp MODEL NEWNAME")
    found = {GGMLQuantizationType(source.stored(tensor.name).kind).name for tensor in changed} - _FULL
    if found - {"Q8_0"} or ("Q8_0" in found and wanted in ("f32", "f16", "bf16")):
        kinds = ", ".join(sorted(found))
        raise UnsupportedRequest(
            f"the model is quantized already ({kinds}): as {wanted} it would be worse than what {wanted} can be",
            hint="start from the f16 model, or use --force",
            quantization=kinds,
        )


def describe_as_before(writer: Any, source: GgufFiles) -> None:
    """All metadata of a file but for what the writer says itself."""
    from gguf import GGUFValueType

    for key, pair in source.pairs.items():
        if key not in _OURS:
            item = None if pair.item_type is None else GGUFValueType(pair.item_type)
            if pair.value != []:  # the writer cannot type an empty list; a missing one means the same
                writer.add_key_value(key, pair.value, GGUFValueType(pair.value_type), item)


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize as the command line says."""
    parser = program.parser("quantize_gguf", "Write a GGUF file with weights of another type.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--force", action="store_true", help="also what is quantized already")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)
    return program.run(given, lambda: quantize(GgufFiles.of(files), given.target, given.type, force=given.force))


if __name__ == "__main__":
    sys.exit(main())
