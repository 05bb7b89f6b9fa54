"""Atomic files: a reader sees the old content or the new one, also after a power cut.

Order: write a temporary file in the same folder, fsync it, rename it, fsync the folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from homelab_llm.core.failpoints import failpoint


def sync_folder(folder: Path) -> None:
    """Make renames and unlinks inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` with ``content`` in one step; parents must exist.

    Raises:
        OSError: as the system says (``ENOSPC`` leaves the old file untouched).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint("atomic.before_rename")
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def publish(temporary: Path, path: Path) -> None:
    """Move a finished, already fsynced file or folder to its final name and make that durable."""
    temporary.rename(path)
    sync_folder(path.parent)
