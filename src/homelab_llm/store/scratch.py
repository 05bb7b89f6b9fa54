"""Scratch: a folder in ``STORE/tmp`` for files in the making, on the same file system as the blobs.

Who works in one holds its lock; the kernel drops that with the process, so what a killed one left can be told and is
removed by the next one, and by ``prune``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from homelab_llm.core.locks import try_lock
from homelab_llm.store.layout import Layout, remove_folder

_SUFFIX = ".scratch"


@contextlib.contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A folder of one's own below the store at ``root``, gone when the block ends. What is moved out of it stays."""
    layout = Layout(root)
    layout.ensure()
    lock = layout.tmp / f"{secrets.token_hex(8)}{_SUFFIX}.lock"
    folder = lock.with_suffix("")
    with layout.locked():  # nobody sweeps between the lock's making and its taking
        free_scratch(layout)
        handle = try_lock(lock)
        assert handle is not None  # noqa: S101 — the name is new
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder, lock)
        os.close(handle)


def free_scratch(layout: Layout, *, dry: bool = False) -> int:
    """Remove what dead processes left (``dry``: only count it); the number of bytes that were in it."""
    freed = 0
    for lock in layout.tmp.glob(f"*{_SUFFIX}.lock"):
        with contextlib.suppress(FileNotFoundError):
            handle = try_lock(lock)
            if handle is not None:
                folder = lock.with_suffix("")
                freed += sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
                if not dry:
                    _remove(folder, lock)
                os.close(handle)
    return freed


def _remove(folder: Path, lock: Path) -> None:
    remove_folder(folder)
    lock.unlink(missing_ok=True)
