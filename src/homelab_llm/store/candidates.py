"""Candidates: which files below a path make up one model, by the rules of `choice.py`. Reads none of them.

Links are refused, except those of a Hugging Face cache (``models--*/snapshots/<revision>/x`` into
``models--*/blobs``), which stand for what they point to.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.errors import BadModelFile, InvalidInput, NotRegularFile, UnsafeModel
from homelab_llm.store.choice import folder_model, gguf_models, parts_of, stored_name
from homelab_llm.store.inspect.model import PICKLES

_MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]+")  # sentence-transformers: 1_Pooling, 2_Dense
_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file to import. ``path`` is a plain file; ``cached`` says that it lies in a Hugging Face cache."""

    name: str
    path: Path
    size_bytes: int
    cached: bool


def choose_files(path: Path) -> list[Candidate]:
    """The files of the model at ``path``: one GGUF file with its other shards, or a folder.

    Raises:
        NotRegularFile: a link, FIFO or device among them.
        BadModelFile: no model there, or shards are missing.
        UnsafeModel: the weights are pickle files.
        InvalidInput: the folder holds several models.
    """
    path = path.expanduser().absolute()
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise BadModelFile(f"nothing can be read at {path}", hint="give a .gguf file or a model's folder") from error
    if stat.S_ISDIR(mode):
        return _from_folder(path)
    if path.suffix.lower() in PICKLES:
        raise _pickle(path.name)
    if path.suffix.lower() != ".gguf":
        _examine(path, path.name)
        raise BadModelFile(
            f"{path.name} is not a model file", hint="give a .gguf file, or the folder that holds config.json"
        )
    return _from_gguf(path)


def _from_gguf(path: Path) -> list[Candidate]:
    names = parts_of(path.name)
    found = []
    for name in names:
        sibling = path.with_name(name)
        if not sibling.is_symlink() and not sibling.exists():
            raise BadModelFile(
                f"{sibling.name} is missing: the model has {len(names)} parts",
                hint="put all parts into one folder",
                missing=sibling.name,
            )
        found.append(_examine(sibling, stored_name(name)))
    return found


def _from_folder(folder: Path) -> list[Candidate]:
    entries = {candidate.name: candidate for candidate in _plain_files(folder)}
    if whole := folder_model(entries):
        if "config.json" not in entries:
            raise BadModelFile(f"{folder.name} has weights but no config.json", hint="fetch the whole model")
        return [entries[name] for name in whole]
    ggufs = gguf_models([name for name in entries if "/" not in name])
    if len(ggufs) == 1:
        return _from_gguf(folder / next(iter(ggufs)))
    if ggufs:
        raise InvalidInput(
            f"{folder.name} holds {len(ggufs)} GGUF models: name one of them",
            hint=f"mlxctl import {folder / next(iter(ggufs))}",
            files=list(ggufs)[:20],
        )
    if pickles := [name for name in entries if name.lower().endswith(PICKLES)]:
        raise _pickle(pickles[0])
    raise BadModelFile(
        f"{folder.name} holds no model", hint="a model's folder has config.json and .safetensors files, or one .gguf"
    )


def _plain_files(folder: Path) -> Iterator[Candidate]:
    """Files of the folder and of its module folders; hidden ones are passed over, links and FIFOs refused."""
    count = 0
    for path in sorted(folder.iterdir()):
        inside = sorted(path.iterdir()) if _is_module_folder(path) else [path]
        for entry in inside:
            count += 1
            if count > _MAX_ENTRIES:
                raise BadModelFile(f"{folder.name} holds more than {_MAX_ENTRIES} files: not a model")
            if entry.name.startswith(".") or stat.S_ISDIR(entry.lstat().st_mode):
                continue
            yield _examine(entry, entry.relative_to(folder).as_posix())


def _is_module_folder(path: Path) -> bool:
    return bool(_MODULE_FOLDER.fullmatch(path.name)) and stat.S_ISDIR(path.lstat().st_mode)


def _examine(path: Path, name: str) -> Candidate:
    """What lies at ``path``, if it is a plain file or a link within a Hugging Face cache."""
    found = path.lstat()
    cached = False
    if stat.S_ISLNK(found.st_mode):
        path, cached = _cache_blob(path), True
        found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise NotRegularFile(f"{name} is not a plain file", hint="a model consists of plain files", file=name)
    return Candidate(name, path, found.st_size, cached)


def _cache_blob(link: Path) -> Path:
    """The blob that a link of a Hugging Face cache stands for."""
    cache = next((parent for parent in link.parents if parent.name.startswith("models--")), None)
    if cache is not None and link.is_relative_to(cache / "snapshots"):
        target = Path(link.resolve())
        if target.parent == (cache / "blobs").resolve() and target.exists():
            return target
    raise NotRegularFile(
        f"{link.name} is a symbolic link, and links are only followed inside a Hugging Face cache",
        hint="give the file it points to",
        file=link.name,
    )


def _pickle(name: str) -> UnsafeModel:
    return UnsafeModel(
        f"{name[:80]} is a pickle file: loading it would run code that is inside it",
        hint="use the model's safetensors or GGUF version",
        file=name[:80],
    )
