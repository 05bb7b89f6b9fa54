"""Pins: blobs that a living process has written, or found, and not yet put into a manifest.

Between the commit of a blob and the manifest that names it nothing refers to the blob. Its writer therefore
lists it in a file of its own, ``tmp/<random>.pins``, and holds a lock on that file for as long as it lives.
Whoever frees blobs keeps what living writers list; the kernel drops the lock of a dead one, so a kill leaves
no pin behind. All functions here want the store's lock held: that is what makes "written and pinned",
"found and pinned", "added and unpinned" and "freed" happen one after the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

from homelab_llm.core.digests import Digest
from homelab_llm.core.locks import try_lock
from homelab_llm.store.layout import Layout

KEPT_S = 7 * 86400.0
"""How long an unfinished transfer is worth keeping: pins and partial blobs older than this are freed."""


class Pins:
    """The pins of one ``BlobStore``; dropped when it is garbage, at the latest with the process."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pinned: dict[str, float] = {}
        self._path = layout.tmp
        self._close: Callable[[], object] = lambda: None
        self._handle: int | None = None

    def add(self, digest: Digest) -> None:
        """Keep the blob from now on."""
        self._pinned[digest.hex] = time.time()
        try:
            self._write()
        except OSError:
            del self._pinned[digest.hex]
            raise

    def release(self, digests: Iterable[Digest]) -> None:
        """A manifest holds these now, or nobody wants them any more."""
        before = len(self._pinned)
        for digest in digests:
            self._pinned.pop(digest.hex, None)
        if len(self._pinned) != before:
            self._write()

    def _write(self) -> None:
        if self._handle is None:
            self._path = self._layout.tmp / f"{secrets.token_hex(8)}.pins"
            self._handle = try_lock(self._path)
            assert self._handle is not None, "a random name is nobody else's"  # noqa: S101
            self._close = weakref.finalize(self, os.close, self._handle)
        elif not self._pinned:
            self._path.unlink(missing_ok=True)
            self._handle = None
            self._close()
            return
        content = "".join(f"{name} {since:.0f}\n" for name, since in self._pinned.items()).encode()
        # In place and then cut, not cut and then written: on a full disk the earlier pins stay.
        if os.pwrite(self._handle, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._handle, len(content))


def pinned(layout: Layout, now_unix_s: float) -> set[str]:
    """The hex of every blob that a living process holds; files of dead processes are removed."""
    found: set[str] = set()
    for path in sorted(layout.tmp.glob("*.pins")):
        handle = try_lock_existing(path)
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)
            continue
        with contextlib.suppress(FileNotFoundError):
            found.update(_recent(path, now_unix_s))
    return found


def try_lock_existing(path: Path) -> int | None:
    """As ``core.locks.try_lock``, for a file that its holder may unlink: never locks a file that is gone.

    Without the comparison two processes could each hold "the" lock: one on the file that was unlinked while
    it waited, one on the file that took its name.
    """
    while True:
        handle = try_lock(path)
        if handle is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                return handle
        os.close(handle)


def _recent(path: Path, now_unix_s: float) -> set[str]:
    lines = [line.split() for line in path.read_text("ascii", errors="replace").splitlines()]
    return {line[0] for line in lines if len(line) == 2 and line[1].isdigit() and int(line[1]) > now_unix_s - KEPT_S}
