"""A Hugging Face cache on this machine: which models lie there complete, and what is wrong with the others.

``models--ORG--NAME/refs/<branch>`` holds a commit, ``snapshots/<commit>/`` links into ``blobs/``, and newer versions
keep the file list in ``trees/<commit>.json``. A snapshot may be a part only: fetched file by file, or interrupted.
Source: huggingface_hub 2.4 (``file_download.py``, ``_snapshot_download.py``, ``_tree_cache.py``). Nothing is changed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from homelab_llm.core.errors import BadModelFile, HomelabError
from homelab_llm.core.names import DEFAULT_TAG, ModelRef, repository_of, tag_of
from homelab_llm.store.candidates import choose_files
from homelab_llm.store.choice import choose_files as chosen_of_tree
from homelab_llm.store.choice import gguf_models
from homelab_llm.store.inspect.model import inspect_model

_PREFIX = "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_TREE_BYTES = 16 << 20
_MAX_REF_BYTES = 200


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A complete model. ``path`` is what to import: the snapshot's folder, or the first GGUF file in it.

    ``file`` is that file's place in the repository, empty for a folder; ``older``: why a newer revision was not taken.
    """

    ref: ModelRef
    repo_id: str
    commit: str
    path: Path
    file: str = ""
    size_bytes: int = 0
    older: str = ""

    @property
    def source(self) -> str:
        """The reference that pulls the same again."""
        return f"hf:{self.repo_id}@{self.commit}" + (f"#{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class Passed:
    """A repository, or a file of one, that was passed over, and why."""

    repo_id: str
    reason: str


@dataclass(slots=True)
class CacheContents:
    """What a cache holds, by repository."""

    models: list[CachedModel] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)


def read_cache(folder: Path) -> CacheContents:
    """The newest complete revision of each model repository: that of ``refs/main``, else the newest complete one."""
    contents = CacheContents()
    for repository in sorted(folder.glob(f"{_PREFIX}*")):
        if repository.is_dir():
            _read_repository(repository, contents)
    return contents


def _read_repository(repository: Path, contents: CacheContents) -> None:
    repo_id = repository.name.removeprefix(_PREFIX).replace("--", "/")
    reasons: list[str] = []
    for commit in _commits(repository):
        try:
            models, passed = _complete_models(repository, repo_id, commit, "; ".join(reasons))
        except HomelabError as error:
            reasons.append(f"revision {commit[:8]}: {error.message}")
            continue
        contents.models += models
        contents.passed += passed
        return
    contents.passed.append(Passed(repo_id, "; ".join(reasons) or "no revision of it was fetched"))


def _commits(repository: Path) -> list[str]:
    """The revisions that are there, in the order in which they are wanted."""
    there = [path for path in _folders(repository / "snapshots") if _COMMIT.fullmatch(path.name)]
    newest = [path.name for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)]
    main = _ref(repository / "refs" / "main")
    return [main, *(commit for commit in newest if commit != main)] if main in newest else newest


def _ref(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _complete_models(repository: Path, repo_id: str, commit: str, older: str) -> tuple[list[CachedModel], list[Passed]]:
    """The models of one revision.

    Raises:
        BadModelFile: it is incomplete.
        HomelabError: it holds no model that can be kept.
    """
    snapshot = repository / "snapshots" / commit
    files = _files(repository, snapshot)
    tree = _tree(repository, commit)
    _refuse_other_sizes(files, tree)
    names = list(files)
    if any("/" not in name and name.endswith(".safetensors") for name in names):
        _refuse_missing(repository, repo_id, files, tree)
        ref = ModelRef.parse(f"{repository_of(repo_id)}:{DEFAULT_TAG}")
        size = _checked(snapshot)[1]
        return [CachedModel(ref, repo_id, commit, snapshot, size_bytes=size, older=older)], []
    sets = gguf_models(names)
    if not sets:
        choose_files(snapshot)  # says what is wrong: pickles, or no weights
    return _gguf_models(snapshot, repo_id, commit, list(sets), older)


def _gguf_models(
    snapshot: Path, repo_id: str, commit: str, firsts: list[str], older: str
) -> tuple[list[CachedModel], list[Passed]]:
    """Each set of GGUF files by itself: one that is broken does not hide the others.

    Raises:
        BadModelFile: none is whole.
    """
    models, passed, found = [], [], {}
    for first in firsts:
        try:
            found[first] = _checked(snapshot / first)
        except HomelabError as error:
            passed.append(Passed(f"{repo_id}#{first}", error.message))
    if not found:
        raise BadModelFile("; ".join(problem.reason for problem in passed))
    tags = {first: tag_of(quantization) for first, (quantization, _) in found.items()}
    often = Counter(tags.values())
    for first, (_, size_bytes) in found.items():
        tag = tags[first] if often[tags[first]] == 1 else tag_of(Path(first).stem)
        ref = ModelRef.parse(f"{repository_of(repo_id)}:{tag}")
        models.append(CachedModel(ref, repo_id, commit, snapshot / first, first, size_bytes, older))
    return models, passed


def _checked(path: Path) -> tuple[str, int]:
    """Quantization and size of the model at ``path``, after a look at the headers of its files."""
    chosen = choose_files(path)
    facts = inspect_model({candidate.name: candidate.path for candidate in chosen})
    return facts.quantization, sum(candidate.size_bytes for candidate in chosen)


def _files(repository: Path, snapshot: Path) -> dict[str, int]:
    """The files of a snapshot and their sizes.

    Raises:
        BadModelFile: a link leads nowhere, or out of the cache.
    """
    blobs = (repository / "blobs").resolve()
    sizes: dict[str, int] = {}
    for path in _walk(snapshot):
        name = path.relative_to(snapshot).as_posix()
        try:
            target = path.resolve()
        except RuntimeError as error:
            raise BadModelFile(f"{name} is a link to itself") from error
        if path.is_symlink() and target.parent != blobs:
            raise BadModelFile(f"{name} is a link out of the cache")
        if not target.is_file():
            raise BadModelFile(f"the content of {name} is missing")
        sizes[name] = target.stat().st_size
    if not sizes:
        raise BadModelFile("it holds no file")
    return sizes


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _tree(repository: Path, commit: str) -> dict[str, int]:
    """What the repository holds by the file list that was kept with it; empty where there is none to read."""
    path = repository / "trees" / f"{commit}.json"
    try:
        if path.stat().st_size > _MAX_TREE_BYTES:
            return {}
        listed = json.loads(path.read_bytes())["files"]
        return {str(name): int(entry.get("lfs_size") or entry["size"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _refuse_other_sizes(files: Mapping[str, int], tree: Mapping[str, int]) -> None:
    for name, size in files.items():
        if tree.get(name, size) != size:
            raise BadModelFile(f"{name} has {size} of {tree[name]} bytes")


def _refuse_missing(repository: Path, repo_id: str, files: Mapping[str, int], tree: Mapping[str, int]) -> None:
    """Weights that the repository has and the snapshot lacks make it a part; without a list, a begun download does."""
    if not tree:
        if any((repository / "blobs").glob("*.incomplete")):
            raise BadModelFile("a download of it is unfinished")
        return
    needed = chosen_of_tree(tree, f"hf:{repo_id}")
    missing = [name for name in needed if name not in files and name.endswith((".safetensors", "config.json"))]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadModelFile(f"{missing[0]} was not fetched{more}")
