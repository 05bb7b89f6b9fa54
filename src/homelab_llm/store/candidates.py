"""Candidates: which files below a path make up one model. Looks at names and kinds of files, reads none.

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
from homelab_llm.store.file_names import is_document

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_CONFIGS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
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
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return [_examine(path, "model.gguf")]
    count = int(shard["count"])
    found = []
    for number in range(1, count + 1):
        part = f"-{number:05d}-of-{count:05d}"
        sibling = path.with_name(f"{shard['stem']}{part}{path.suffix}")
        if not sibling.is_symlink() and not sibling.exists():
            raise BadModelFile(
                f"{sibling.name} is missing: the model has {count} parts",
                hint="put all parts into one folder",
                missing=sibling.name,
            )
        found.append(_examine(sibling, f"model{part}.gguf"))
    return found


def _from_folder(folder: Path) -> list[Candidate]:
    entries = {candidate.name: candidate for candidate in _plain_files(folder)}
    weights = [name for name in entries if name.endswith(".safetensors")]
    if any("/" not in name for name in weights):
        if "config.json" not in entries:
            raise BadModelFile(f"{folder.name} has weights but no config.json", hint="fetch the whole model")
        return _whole_folder(entries)
    ggufs = [entry for name, entry in entries.items() if name.lower().endswith(".gguf") and "/" not in name]
    if ggufs:
        return _only_gguf(folder, ggufs)
    if pickles := [name for name in entries if name.lower().endswith(PICKLES)]:
        raise _pickle(pickles[0])
    raise BadModelFile(
        f"{folder.name} holds no model", hint="a model's folder has config.json and .safetensors files, or one .gguf"
    )


def _whole_folder(entries: dict[str, Candidate]) -> list[Candidate]:
    """Everything a loader may read; not other frameworks' weights, not code, not a second set of weights."""
    named_model = any(re.fullmatch(r"model[^/]*\.safetensors", name) for name in entries)
    chosen = []
    for name, entry in sorted(entries.items()):
        base = name.rpartition("/")[2].lower()
        if base.endswith(PICKLES):
            _refuse_needed_pickle(name, entries)
        elif base.endswith(".safetensors"):
            if not (named_model and base.startswith("consolidated")):
                chosen.append(entry)
        elif base.endswith(_CONFIGS) or is_document(name):
            chosen.append(entry)
    return chosen


def _refuse_needed_pickle(name: str, entries: dict[str, Candidate]) -> None:
    """A pickle file beside safetensors is left out; a module whose only weights are pickles cannot be."""
    folder = name.rpartition("/")[0]
    if folder and not any(other.endswith(".safetensors") and other.rpartition("/")[0] == folder for other in entries):
        raise _pickle(name)


def _only_gguf(folder: Path, ggufs: list[Candidate]) -> list[Candidate]:
    models = [entry for entry in ggufs if "mmproj" not in entry.name.lower()]
    sets = {_shard_set(entry.name) for entry in models}
    if len(sets) != 1:
        names = sorted(entry.name for entry in models)
        raise InvalidInput(
            f"{folder.name} holds {len(sets)} GGUF models: name one of them",
            hint=f"mlxctl import {folder / names[0] if names else folder}",
            files=names[:20],
        )
    return _from_gguf(folder / models[0].name)


def _shard_set(name: str) -> str:
    shard = _SHARD.fullmatch(name)
    return f"{shard['stem']} of {shard['count']}" if shard else name


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
