"""A GGUF file in the making: metadata first, then tensors, streamed block by block; it appears in one step."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import publish
from homelab_llm.core.errors import BadModelFile
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.inference.conversion.gguf_file import size_bytes
from homelab_llm.inference.conversion.safetensors import as_stored

FAILPOINTS = ("conversion.gguf.header", "conversion.gguf.tensor", "conversion.before_publish")

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What can be written; the ``gguf`` package can read more kinds than it can make."""
_SMALL = ("q5_1", "q5_0", "q4_1", "q4_0")
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
# What llama.cpp's own quantizer leaves alone: routers, positions, convolutions and states are small and sensitive.
_KEPT = ("ffn_gate_inp", "position_embd", "token_types", "ssm_", "shortconv", "time_mix", "attn_rel_b", "rope_")


def tensor_type(name: str, shape: Sequence[int], wanted: str, *, output: str) -> str:
    """The type of one tensor in a file of the type ``wanted``.

    Vectors, norms and what llama.cpp leaves alone stay f32, so does what is not a multiple of 32 wide when
    quantized. ``output``, the matrix that makes the logits (the embeddings where they are tied), has 8 bits under any
    smaller type: it is what small models lose most by.
    """
    small = len(shape) == 1 or not name.endswith(".weight") or "_norm" in name or any(part in name for part in _KEPT)
    if small:
        return "f32"
    if wanted in ("f32", "f16", "bf16"):
        return wanted
    if shape[-1] % 32:
        return "f16"
    return "q8_0" if name == output and wanted in _SMALL else wanted


def ggml_type(name: str) -> Any:
    """The ``gguf`` package's type of a name such as ``q8_0``."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name.upper()]


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor to write: its type by name, and its blocks of rows, each an array of float32 (``raw``: bytes)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    blocks: Callable[[], Iterable[Any]]
    raw: bool = False


def write_gguf(
    path: Path,
    architecture: str,
    file_type: str,
    *,
    describe: Callable[[Any], None],
    tensors: Sequence[Planned],
    progress: Callable[[float], None],
) -> None:
    """Write a whole file at ``path`` and make it durable. One block is in memory at a time.

    Args:
        describe: adds the metadata to a ``gguf.GGUFWriter``.

    Raises:
        BadModelFile: a tensor's blocks are not what its shape says.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(_FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe(writer)
    sizes = [size_bytes(tensor.shape, ggml_type(tensor.kind), tensor.name) for tensor in tensors]
    for tensor, size in zip(tensors, sizes, strict=True):
        import numpy

        writer.add_tensor_info(tensor.name, tensor.shape, numpy.dtype("<f4"), size, ggml_type(tensor.kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    failpoint("conversion.gguf.header")
    assert writer.fout is not None  # noqa: S101 — the header was written
    (stream,) = writer.fout
    writer.write_padding(stream, stream.tell())
    total, done = sum(sizes) or 1, 0
    for tensor, size in zip(tensors, sizes, strict=True):
        begin = stream.tell()
        for block in tensor.blocks():
            stream.write(block.tobytes() if tensor.raw else _packed(block, tensor.kind))
            progress((done + stream.tell() - begin) / total)
        if stream.tell() - begin != size:
            raise BadModelFile(f"the tensor {tensor.name} does not have the size its shape asks for")
        writer.write_padding(stream, size)
        done += size
        failpoint("conversion.gguf.tensor")
    writer.flush()
    os.fsync(stream.fileno())
    writer.close()


def _packed(block: Any, kind: str) -> bytes:
    import gguf
    import numpy

    if kind in ("f16", "bf16"):
        return bytes(as_stored(block, kind.upper()).tobytes())
    if not numpy.isfinite(block).all():
        raise BadModelFile("a tensor holds values that are not finite")
    return bytes(gguf.quants.quantize(numpy.ascontiguousarray(block, "<f4"), ggml_type(kind)).tobytes())


@contextmanager
def appearing(target: Path, waiting: Callable[[], None]) -> Iterator[Path | None]:
    """A path beside ``target`` to write a file to; it becomes ``target`` when the block ends well.

    None when ``target`` is there already. Others who want the same target wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f".{target.name}.lock", wait_s=3600, waiting=waiting):
        if target.exists():
            yield None
            return
        for stale in target.parent.glob(f".{target.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            yield temporary
            failpoint("conversion.before_publish")
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
