"""What is remembered of uploads: how far an unfinished one is, and in which repository a blob was put before.

STORE/tmp/uploads/<hex of registry, repository and digest>.json .lock    one unfinished upload
STORE/tmp/uploads/placed.json                                            blob → repository, for mounting

All of it may be lost: then bytes are sent again. It may also be out of date: the registry is asked before.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import Cancelled, StoreDamaged
from homelab_llm.core.locks import locked
from homelab_llm.store.layout import Layout, digest_path, read_small
from homelab_llm.store.pins import try_lock_existing

_MAX_BYTES = 4 << 20
_MAX_PLACES = 20_000
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class UploadState:
    """Where an unfinished upload goes on, and how many bytes the registry had when it said so."""

    location: str
    offset: int


class UploadRecord:
    """The record of one upload, for who holds its lock."""

    def __init__(self, layout: Layout, host: str, repository: str, digest: Digest) -> None:
        folder = layout.tmp / "uploads"
        key = Digest.of(f"{host}\n{repository}\n{digest}".encode())
        self._path, self._lock = digest_path(folder, key, ".json"), digest_path(folder, key, ".lock")
        self._handle: int | None = None

    def hold(self, waiting: Callable[[], None], stopping: Callable[[], bool]) -> None:
        """Wait until no other process sends this blob there; ``waiting`` is called once if that is needed.

        Raises:
            Cancelled: ``stopping`` said so.
        """
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._handle = try_lock_existing(self._lock)
        if self._handle is None:
            waiting()
        while self._handle is None:
            if stopping():
                raise Cancelled("the upload was called off")
            time.sleep(_POLL_S)
            self._handle = try_lock_existing(self._lock)

    def let_go(self) -> None:
        """End the right to it; the lock's file goes too when nothing is remembered."""
        if self._handle is not None:
            if not self._path.exists():
                self._lock.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def read(self) -> UploadState | None:
        """What is remembered; damaged is as good as nothing."""
        try:
            found = json.loads(read_small(self._path, _MAX_BYTES))
            state = UploadState(**found)
        except (FileNotFoundError, StoreDamaged, ValueError, TypeError, RecursionError):
            return None
        return state if isinstance(state.location, str) and type(state.offset) is int else None

    def write(self, state: UploadState) -> None:
        """Remember it, readable for this user only: the location may hold a signature."""
        write_atomic(self._path, json.dumps(asdict(state)).encode(), mode=0o600)

    def forget(self) -> None:
        """There is nothing to go on with."""
        self._path.unlink(missing_ok=True)


def places(layout: Layout, host: str) -> Mapping[str, str]:
    """In which repository of ``host`` a blob, by its hex, was put last."""
    return _placed(layout).get(host, {})


def remember_places(layout: Layout, host: str, repository: str, digests: list[Digest]) -> None:
    """Note that these blobs are in the repository."""
    path = _placed_path(layout)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        found = _placed(layout)
        own = {name: place for name, place in found.get(host, {}).items() if name not in {d.hex for d in digests}}
        own |= {digest.hex: repository for digest in digests}
        found[host] = dict(list(own.items())[-_MAX_PLACES:])
        write_atomic(path, json.dumps(found).encode(), mode=0o600)


def sweep_uploads(layout: Layout, keep_s: float, now_unix_s: float) -> None:
    """Remove records of uploads that nobody goes on with and that are older than ``keep_s``."""
    folder = layout.tmp / "uploads"
    for lock in folder.glob("*.lock") if folder.is_dir() else ():
        record = lock.with_suffix(".json")
        if record.name == _placed_path(layout).name:
            continue
        with contextlib.suppress(FileNotFoundError):
            if record.exists() and record.lstat().st_mtime > now_unix_s - keep_s:
                continue
        handle = try_lock_existing(lock)
        if handle is not None:
            record.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            os.close(handle)
    for left in folder.glob(".*.tmp") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if left.lstat().st_mtime < now_unix_s - keep_s:
                left.unlink()


def _placed_path(layout: Layout) -> Path:
    return layout.tmp / "uploads" / "placed.json"


def _placed(layout: Layout) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(read_small(_placed_path(layout), _MAX_BYTES))
    except (FileNotFoundError, StoreDamaged, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(host): {str(name): str(place) for name, place in own.items()}
        for host, own in found.items()
        if isinstance(own, dict)
    }
