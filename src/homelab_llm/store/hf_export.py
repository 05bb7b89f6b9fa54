"""Export into a Hugging Face cache: a model of the store becomes visible to every tool that looks there, by link.

A model that came from the hub appears under its own repository and commit, so that tools which ask for it find it;
any other one under a repository id that is given, with a commit made of its digest. No byte is copied: the cache's
blobs are hard links to the store's, or symbolic links where the cache lies on another file system. What is there
already stays. The reverse direction is ``hf_cache.py``.
Source: huggingface_hub 2.4 (``file_download.py``, ``_tree_cache.py``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import Conflict, InvalidName
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.file_names import check_file_names, is_weight
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.verification import FileState, Verification

FAILPOINTS = ("hf_export.linked", "hf_export.snapshot", "hf_export.listed")
"""Killed at any of them, the same export completes what is there; ``refs/main`` comes last."""

LARGE_BYTES = 10_000_000
"""The hub keeps larger files in LFS, where a blob is named by its SHA-256; smaller ones by their git id."""

_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_PINNED = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})@(?P<commit>[0-9a-f]{{40}})(?:#(?P<file>.+))?", re.ASCII)
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a model is now in the cache. ``links`` were made, ``kept`` were there; ``symbolic``: not hard ones."""

    repo_id: str
    commit: str
    snapshot: Path
    links: int
    kept: int
    symbolic: bool


def export_to_cache(
    model: StoredModel, cache: Path, repo_id: str = "", *, verification: Verification | None = None
) -> Exported:
    """Make ``model`` visible in the cache at ``cache``; reads small files once, and copies nothing.

    Args:
        repo_id: under which repository; empty = the one on the hub it came from.
        verification: of the store; a link changes a file's time of change, and what was known to be good stays so.

    Raises:
        InvalidName: no repository is known and none was given, or it is outside the hub's grammar.
        Conflict: the cache has another file in the place of one of the model's.
    """
    origin = next((found for text in (model.pulled_from, model.source) if (found := _PINNED.fullmatch(text))), None)
    if repo_id and (not _REPO.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id):
        raise InvalidName(f"not a repository of the hub: {repo_id[:80]!r}", hint="use --as ORG/NAME", field="as")
    if not repo_id and origin is None:
        raise InvalidName(
            f"{model.name} did not come from the hub, so it has no repository id",
            hint=f"mlxctl export {model.name} --hf-cache --as ORG/NAME",
            field="as",
        )
    own = origin is not None and repo_id in ("", origin["repo"])
    repo = origin["repo"] if origin is not None and own else repo_id
    commit = origin["commit"] if origin is not None and own else _invented(model)
    names = {name: name for name in model.files}
    if origin is not None and own and origin["file"] and list(names) == ["model.gguf"]:
        names = {"model.gguf": origin["file"]}  # what tools will ask for
    check_file_names(names.values())
    place = cache / f"models--{repo.replace('/', '--')}"
    export = _Export(place, repo, commit)
    good = [Digest(blob.name) for blob in set(model.files.values())]
    good = [digest for digest in good if verification is not None and verification.verdict(digest) == "good"]
    done = export.run({names[name]: blob for name, blob in model.files.items()}, whole=not own)
    if verification is not None and done.links:
        blobs = {blob.name: blob for blob in model.files.values()}
        verification.note([(d, FileState.of(blobs[d.hex].lstat()), "good") for d in good])
    return done


@dataclass(slots=True)
class _Export:
    """One export whose place is known."""

    place: Path
    repo_id: str
    commit: str
    links: int = 0
    kept: int = 0
    symbolic: bool = False

    def run(self, files: dict[str, Path], *, whole: bool) -> Exported:
        """Blobs, then the snapshot, then what leads to it. ``whole``: these are all files of the repository."""
        snapshot = self.place / "snapshots" / self.commit
        listing = {}
        for name, blob in files.items():
            entry = _entry(name, blob)
            etag = str(entry.get("lfs_sha256", entry["blob_id"]))
            self._add_blob(blob, self.place / "blobs" / etag)
            self._add_name(snapshot / name, etag)
            listing[name] = entry
        failpoint("hf_export.snapshot")
        if whole:
            tree = self.place / "trees" / f"{self.commit}.json"
            tree.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(tree, json.dumps({"format_version": 1, "files": listing}).encode())
        failpoint("hf_export.listed")
        main = self.place / "refs" / "main"
        if whole or not main.exists():
            main.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(main, self.commit.encode())
        return Exported(self.repo_id, self.commit, snapshot, self.links, self.kept, self.symbolic)

    def _add_blob(self, blob: Path, target: Path) -> None:
        """Link one blob into its place."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if target.stat().st_size != blob.stat().st_size:
                raise Conflict(f"{target.name} of the cache is not complete", hint="remove it: hf cache prune")
            self.kept += 1
            return
        beside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.incomplete")
        try:
            os.link(blob, beside, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            beside.symlink_to(blob)
            self.symbolic = True
        beside.replace(target)
        self.links += 1
        failpoint("hf_export.linked")

    def _add_name(self, link: Path, blob: str) -> None:
        """The file's name in the snapshot, as a relative link."""
        target = os.path.relpath(self.place / "blobs" / blob, link.parent)
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or link.exists():
            if link.is_symlink() and os.fspath(link.readlink()) == target:
                return
            raise Conflict(
                f"the cache has another {link.name} in {self.repo_id}",
                hint="use --as with another name, or remove that repository from the cache",
            )
        with contextlib.suppress(FileExistsError):  # another export made it just now
            link.symlink_to(target)


def _entry(name: str, blob: Path) -> dict[str, object]:
    """The file's line in the list of files: large ones are named by their SHA-256, small ones by their git id."""
    size = blob.stat().st_size
    if size < LARGE_BYTES and not is_weight(name):
        return {"size": size, "blob_id": _git_id(blob, size)}
    return {"size": size, "blob_id": blob.name[:40], "lfs_sha256": blob.name, "lfs_size": size}


def _invented(model: StoredModel) -> str:
    return hashlib.sha1(f"homelab-llm {model.digest}".encode(), usedforsecurity=False).hexdigest()


def _git_id(blob: Path, size_bytes: int) -> str:
    found = hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    with open_regular(blob) as file:
        while block := file.read(CHUNK_BYTES):
            found.update(block)
    return found.hexdigest()
