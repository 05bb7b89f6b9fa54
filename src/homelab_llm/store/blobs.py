"""Blobs: content by digest. Written once, hashed on the way, published only when size and SHA-256 are right.

The order of a commit: bytes → fsync → pin → rename → fsync of the folder. A process killed anywhere in it
leaves either a partial that the next writer of the same key continues or throws away, or a whole blob.
"""

from __future__ import annotations

import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from homelab_llm.core.atomic import publish
from homelab_llm.core.digests import Digest
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.layout import Layout, disk_full_is_typed
from homelab_llm.store.partials import Partial, PartialRecord, finished_digest
from homelab_llm.store.pins import Pins
from homelab_llm.store.verification import Verification
from homelab_llm.store.writer import BlobWriter, FurtherHash

__all__ = ["BlobStore", "BlobWriter"]


class BlobStore:
    """The blobs of one store. Safe to use from several threads and processes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pins = Pins(layout)
        self._verification = Verification(layout)

    @property
    def verification(self) -> Verification:
        """Which blobs are known to be good."""
        return self._verification

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._layout.blob(digest)

    def has(self, digest: Digest) -> bool:
        """Whether the blob is there, as a plain file. A prune may free it next moment; ``hold`` prevents that."""
        return self.size_bytes(digest) is not None

    def size_bytes(self, digest: Digest) -> int | None:
        """The blob's size, or None when it is not there."""
        try:
            found = self._layout.blob(digest).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def hold(self, digest: Digest) -> bool:
        """As ``has``, and keeps the blob from being freed until a model has it or ``release``."""
        if not self.has(digest):
            return False
        with self._layout.locked(), disk_full_is_typed(self._layout.root):
            if not self.has(digest):
                return False
            self._pins.add(digest)
            return True

    def release(self, digests: Iterable[Digest]) -> None:
        """Stop keeping blobs that no model got in the end; nothing refers to them, so a prune frees them."""
        with self._layout.locked(), disk_full_is_typed(self._layout.root):
            self._pins.release(digests)

    def release_locked(self, digests: Iterable[Digest]) -> None:
        """As ``release``, for who already holds the store's lock."""
        self._pins.release(digests)

    def open_writer(
        self,
        key: str,
        *,
        expected: Digest | None = None,
        size_bytes: int | None = None,
        validator: str = "",
        further: FurtherHash | None = None,
        wait_s: float = math.inf,
        waiting: Callable[[], None] | None = None,
    ) -> BlobWriter:
        """Start or continue writing one blob; blocks while another thread or process writes the same ``key``.

        Bytes kept from a killed writer are used again when ``expected`` and ``validator`` are what they were
        and not both empty; ``offset`` of the writer says how many. When the blob is already there (and not known to
        be damaged), or whoever wrote it before us finished it, the writer is ``complete``: nothing is to be sent.

        Args:
            key: what is written, for example an address; equal keys share one partial.
            expected: the digest the whole must have.
            size_bytes: the size the whole must have; more is refused while writing.
            validator: ETag or the like; a different one starts over.
            further: another promise that the whole has to keep.
            wait_s: how long to wait for another writer of the key; ``waiting`` is called once if that is needed.

        Raises:
            StoreBusy: another writer held the key for longer than ``wait_s``.
            DiskFull: the missing bytes do not fit; nothing was written.
            StoreDamaged: see ``Layout.check``.
        """
        self._layout.ensure()
        partial = Partial.of(self._layout, key)
        with disk_full_is_typed(self._layout.root):
            held = partial.hold(wait_s, waiting)
        writer = BlobWriter(
            self._layout,
            self._publish,
            partial,
            held,
            expected=expected,
            size_bytes=size_bytes,
            validator=validator,
            further=further,
        )
        try:
            there = expected or _finished_before(partial, validator)
            usable = there is not None and self._verification.verdict(there) != "bad"
            if there is not None and usable and size_bytes in (None, self.size_bytes(there)) and self.hold(there):
                writer.find(there, self.size_bytes(there) or 0)
            else:
                writer.open()
        except BaseException:
            writer.close()
            raise
        return writer

    def kept_bytes(self, key: str) -> int:
        """How much of an unfinished blob is there; also while somebody writes it."""
        return Partial.of(self._layout, key).there_bytes()

    def _publish(self, part: Path, digest: Digest) -> None:
        """Give a finished, fsynced part its place; the blob is held from before it appears.

        One that is already there is replaced: what was just hashed is right, the other one may be damaged.
        """
        with self._layout.locked():
            self._pins.add(digest)
            try:
                failpoint("store.blob.pinned")
                publish(part, self._layout.blob(digest))
                part.unlink(missing_ok=True)  # rename does nothing when both are links to one inode
                failpoint("store.blob.renamed")
                self._verification.published_locked(digest)
            except BaseException:
                self._pins.release([digest])
                raise

    def put_locked(self, content: bytes) -> Digest:
        """Store a small document at once; the caller holds the store's lock until something refers to it."""
        digest = Digest.of(content)
        target = self._layout.blob(digest)
        if self.size_bytes(digest) == len(content) and target.read_bytes() == content:
            return digest
        temporary = self._layout.tmp / f"{secrets.token_hex(8)}.put"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint("store.put.written")
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        failpoint("store.put.renamed")
        return digest


def _finished_before(partial: Partial, validator: str) -> Digest | None:
    """The digest under which another writer of this key, with the same validator, has just finished."""
    kept = partial.record()
    same = PartialRecord(validator=validator).continues(replace(kept, digest=""))
    return finished_digest(kept) if same else None
