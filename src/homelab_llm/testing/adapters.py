"""LoRA adapters for tests: random, small, and fitting a given GGUF model. Needs the extra ``gguf``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_gguf_adapter(
    path: Path,
    model: Path,
    *,
    tensors: Sequence[str] = ("attn_q.weight", "attn_v.weight"),
    rank: int = 4,
    size: float = 0.3,
    architecture: str = "",
    kind: str = "adapter",
    seed: int = 1,
) -> Path:
    """Write a random adapter for the tensors of ``model`` whose names end as given; returns ``path``.

    Args:
        size: standard deviation of the numbers; 0.3 changes every answer.
        architecture: another one than the model's, for tests that want a misfit.
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(model)
    own = str(reader.fields["general.architecture"].contents())
    writer: Any = gguf.GGUFWriter(path, architecture or own)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    random = numpy.random.default_rng(seed)
    for tensor in reader.tensors:
        if tensor.name.endswith(tuple(tensors)):
            width, height = (int(n) for n in tensor.shape[:2])
            for side, shape in (("a", (rank, width)), ("b", (height, rank))):
                numbers = (random.normal(size=shape) * size).astype(numpy.float32)
                writer.add_tensor(f"{tensor.name}.lora_{side}", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
