"""A model folder in the making: documents and safetensors shards, streamed; it appears in one step."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import publish, sync_folder
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.inference.conversion.safetensors import SafetensorsWriter

FAILPOINTS = ("conversion.folder.tensor", "conversion.before_publish")
SHARD_BYTES = 5_000_000_000
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


@contextmanager
def appearing_folder(target: Path, waiting: Callable[[], None]) -> Iterator[Path | None]:
    """A folder beside ``target`` to fill; it is made durable and becomes ``target`` when the block ends well.

    None when ``target`` is there already. Others who want the same target wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.lock"), wait_s=3600, waiting=waiting):
        if target.is_dir():
            yield None
            return
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
            for path in temporary.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_folder(temporary)
            failpoint("conversion.before_publish")
            publish(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def write_tensors(
    folder: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    blocks: Callable[[str], Iterable[Any]],
    progress: Callable[[float], None],
) -> None:
    """Write the weights as shards of at most 5 GB, with an index when there are several.

    Args:
        tensors: name → (dtype, shape).
        blocks: the rows of a tensor as float32, block by block.
    """
    sizes = {name: size_bytes(tensor) for name, tensor in tensors.items()}
    shards = shards_of(sizes)
    total = sum(sizes.values()) or 1
    done = 0
    index: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        with (folder / file).open("wb") as stream:
            writer = SafetensorsWriter(stream, {name: tensors[name] for name in names})
            for name in names:
                writer.write(blocks(name), tensors[name][0])
                index[name] = file
                done += sizes[name]
                progress(done / total)
                failpoint("conversion.folder.tensor")
            writer.finish()
    if len(shards) > 1:
        write_document(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )


def size_bytes(tensor: tuple[str, tuple[int, ...]]) -> int:
    """Bytes of a tensor of a type and shape."""
    return math.prod(tensor[1]) * _WIDTH[tensor[0]]


def shards_of(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in their order, parted so that each part has at most 5 GB, but one tensor at least."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
