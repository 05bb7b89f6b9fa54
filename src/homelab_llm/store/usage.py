"""Usage: what lies in a store and how much of the disk it takes, by model and by kind. Reads no content."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homelab_llm.core.errors import StoreDamaged
from homelab_llm.store.census import take_census
from homelab_llm.store.gc import all_blobs, mark
from homelab_llm.store.index import read_index

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

_OURS = re.compile(r"oci-layout|index\.json|gist\.json|verified|store\.lock|blobs|tmp|views|\..*\.tmp")


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """One name. ``own_bytes`` are what its removal would free, ``shared_bytes`` what other names need too."""

    name: str
    own_bytes: int
    shared_bytes: int
    files: int
    damaged: bool = False

    @property
    def size_bytes(self) -> int:
        return self.own_bytes + self.shared_bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store. ``models_bytes`` counts every blob once; ``unknown`` are files that are not ours, left alone.

    ``linked_bytes`` of the models lie in other places too, by hard link (a Hugging Face cache): they cost nothing here.
    """

    models: tuple[ModelUsage, ...]
    models_bytes: int
    unreferenced_bytes: int
    partials_bytes: int
    linked_bytes: int
    unknown: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        return self.models_bytes + self.unreferenced_bytes + self.partials_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [{**asdict(model), "size_bytes": model.size_bytes} for model in self.models]
        return {**asdict(self), "models": rows, "unknown": list(self.unknown), "total_bytes": self.total_bytes}


def usage(store: ModelStore) -> Usage:
    """Count what lies in the store.

    Raises:
        StoreDamaged: the index is unreadable.
    """
    layout = store.layout
    layout.check()
    index = read_index(layout)
    census = take_census(layout, index.entries)
    needed = mark(layout, index).needed
    sizes, linked = _blob_sizes(layout.blobs)
    blobs_of = {name: set[str]() for name in census.models}
    files: Counter[str] = Counter()
    for digest, pieces in census.pieces.items():
        for piece in pieces:
            if piece.model:
                blobs_of[piece.model].add(digest.hex)
                files[piece.model] += not piece.file.startswith("(")
    for entry in index.entries:
        if entry.ref is not None and entry.digest is not None:
            blobs_of.setdefault(str(entry.ref), set()).add(entry.digest.hex)
    times = Counter(hex_ for blobs in blobs_of.values() for hex_ in blobs)
    damaged = {damage.model for damage in census.damages} | {problem.name for problem in store.problems()}
    models = [
        ModelUsage(
            name,
            sum(sizes.get(hex_, 0) for hex_ in blobs if times[hex_] == 1),
            sum(sizes.get(hex_, 0) for hex_ in blobs if times[hex_] > 1),
            files[name],
            name in damaged,
        )
        for name, blobs in sorted(blobs_of.items())
    ]
    ours = {digest.hex for digest in all_blobs(layout)} if layout.blobs.is_dir() else set()
    loose = ours - needed
    return Usage(
        tuple(models),
        models_bytes=sum(size for hex_, size in sizes.items() if hex_ in needed),
        unreferenced_bytes=sum(size for hex_, size in sizes.items() if hex_ in loose),
        partials_bytes=_folder_bytes(layout.tmp),
        linked_bytes=sum(size for hex_, size in linked.items() if hex_ in needed),
        unknown=(*sorted(f"blobs/sha256/{name}" for name in sizes.keys() - ours), *_strangers(layout.root)),
    )


def _blob_sizes(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The size of every file in the folder, and of those with further links."""
    sizes: dict[str, int] = {}
    linked: dict[str, int] = {}
    for entry in _scan(folder):
        found = entry.stat(follow_symlinks=False)
        sizes[entry.name] = found.st_size
        if found.st_nlink > 1 and entry.is_file(follow_symlinks=False):
            linked[entry.name] = found.st_size
    return sizes, linked


def _folder_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk: an unfinished download is mostly holes."""
    total = 0
    for entry in _scan(folder):
        if entry.is_dir(follow_symlinks=False):
            total += _folder_bytes(Path(entry.path))
        else:
            found = entry.stat(follow_symlinks=False)
            total += min(found.st_size, found.st_blocks * 512)
    return total


def _strangers(root: Path) -> Iterator[str]:
    for entry in sorted(_scan(root), key=lambda entry: entry.name):
        if not _OURS.fullmatch(entry.name):
            yield entry.name


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise StoreDamaged(
            f"{folder.name} of the store is not a folder", hint="move it away", file=folder.name
        ) from error
