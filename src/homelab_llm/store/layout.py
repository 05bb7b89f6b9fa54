"""Layout: where things lie in a store. An OCI image layout, and beside it what only this product reads.

STORE/oci-layout  STORE/index.json  STORE/blobs/sha256/<hex>    the standard part
STORE/tmp/<hex of key>.part .map .json .lock                    unfinished blobs (``partials.py``)
STORE/tmp/<random>.pins                                         blobs that live writers still need (``pins.py``)
STORE/views/<hex>/                                              folders of links with real file names (``views.py``)
STORE/gist.json                                                 what a list needs of manifests (``gist.py``)
STORE/verified                                                  blobs that are known good (``verification.py``)
STORE/store.lock                                                held over every read-modify-write

A digest becomes a path in ``digest_path`` and nowhere else; a model's name never does.
Source: OCI image-spec, image-layout.md.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from homelab_llm.core.atomic import sync_folder, write_atomic
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DiskFull, InvalidDigest, StoreDamaged
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.core.units import format_bytes

FAILPOINTS = (
    "store.layout.folders",
    "store.layout.index",
    "store.partial.recorded",
    "store.blob.chunk",
    "store.blob.written",
    "store.blob.checkpoint",
    "store.blob.before_sync",
    "store.blob.synced",
    "store.blob.pinned",
    "store.blob.renamed",
    "store.blob.committed",
    "store.put.written",
    "store.put.renamed",
    "store.add.checked",
    "store.add.config",
    "store.add.manifest",
    "store.index.before_write",
    "store.index.written",
    "store.remove.untagged",
    "store.view.dropped",
    "store.gc.marked",
    "store.gc.blob",
    "store.prune.partial",
    "store.prune.leftover",
    "store.view.linked",
    "store.view.renamed",
    "store.import.chosen",
    "store.import.cloned",
    "store.import.file",
    "store.import.inspected",
    "store.verified.note",
)
"""Every failpoint of the store, for tests that must miss none; ``atomic.before_rename`` (core) is passed as well."""

MAX_DOCUMENT_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20
_MARKER = {"imageLayoutVersion": "1.0.0"}
_EMPTY_INDEX = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
_HEX = re.compile(r"[0-9a-f]{64}")


def digest_path(folder: Path, digest: Digest, suffix: str = "") -> Path:
    """The place of ``digest`` in ``folder``: the only function that makes a path of a digest.

    Raises:
        InvalidDigest: a ``Digest`` that was built by hand around something else than 64 lower-case hex digits.
    """
    if not _HEX.fullmatch(digest.hex):
        raise InvalidDigest("not a digest: expected 64 lower-case hex digits")
    return folder / f"{digest.hex}{suffix}"


class Layout:
    """The places of the store at ``root``. Creates nothing until ``ensure``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = root / "oci-layout"
        self.index = root / "index.json"
        self.gist = root / "gist.json"
        self.verified = root / "verified"
        self.blobs = root / "blobs" / "sha256"
        self.tmp = root / "tmp"
        self.views = root / "views"

    def blob(self, digest: Digest) -> Path:
        return digest_path(self.blobs, digest)

    def view(self, digest: Digest) -> Path:
        return digest_path(self.views, digest)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock; the layout must exist. Never held while bytes are fetched, copied or hashed.

        Raises:
            StoreBusy: another process held it for a minute.
        """
        with locked(self.root / "store.lock", wait_s=60.0):
            yield

    def ensure(self) -> None:
        """Create what is missing, in an order that a kill at any step leaves readable; cheap when all is there.

        Raises:
            StoreDamaged: see ``check``.
            DiskFull: no room even for that.
        """
        self.check()
        if self.marker.exists() and self.blobs.is_dir() and self.tmp.is_dir():
            return
        with disk_full_is_typed(self.root):
            for folder in (self.blobs, self.tmp, self.views):
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            failpoint("store.layout.folders")
            with self.locked():
                if not self.marker.exists():
                    if not self.index.exists():
                        write_atomic(self.index, json.dumps(_EMPTY_INDEX).encode())
                    failpoint("store.layout.index")
                    write_atomic(self.marker, json.dumps(_MARKER).encode())
                sync_folder(self.blobs.parent)

    def check(self) -> None:
        """See that a store which exists is one this version can read.

        Raises:
            StoreDamaged: the marker is not ours or of a newer layout, or ``index.json`` is gone. A lost index is
                never taken for an empty one: the next prune would free every model.
        """
        try:
            content = read_small(self.marker, MAX_DOCUMENT_BYTES)
        except FileNotFoundError as error:
            # Blobs first: the index is there before the first of them, so another process that makes the store now
            # cannot look like a lost index.
            if self.blobs.is_dir() and any(self.blobs.iterdir()) and not self.index.exists():
                raise damaged(self.index, "is missing, and oci-layout too") from error
            return
        try:
            version = json.loads(content)["imageLayoutVersion"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged(self.marker, "is not an OCI layout marker") from error
        if version != _MARKER["imageLayoutVersion"]:
            raise damaged(self.marker, f"is of layout version {str(version)[:20]!r}; this version reads 1.0.0")
        if not self.index.exists():
            raise damaged(self.index, "is missing")


def damaged(file: Path, what: str) -> StoreDamaged:
    """The error for a file of the store that cannot be trusted; names it by its place inside the store."""
    name = f"blobs/sha256/{file.name}" if _HEX.fullmatch(file.name) else file.name
    return StoreDamaged(
        f"{name} of the store {what}",
        hint="restore that file, or move the store's folder away and pull or import the models again",
        file=name,
    )


def read_small(path: Path, limit_bytes: int) -> bytes:
    """All of a document of the store.

    Raises:
        FileNotFoundError: nothing is there.
        StoreDamaged: not a plain file, or larger than ``limit_bytes``.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise damaged(path, "is not a plain file") from error
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise damaged(path, "is not a plain file")
        if found.st_size > limit_bytes:
            raise damaged(path, f"is larger than {limit_bytes} bytes")
        content = bytearray()
        while block := os.read(handle, found.st_size + 1):
            content += block
        return bytes(content)
    finally:
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; absent is fine, what cannot be removed stays. Links are not followed."""
    import shutil  # lazily: it pulls in four compression libraries

    shutil.rmtree(folder, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Free bytes for this user on the file system of ``folder``, or of its nearest parent that exists."""
    while True:
        try:
            found = os.statvfs(folder)
        except FileNotFoundError:
            folder = folder.parent
            continue
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def disk_full_is_typed(folder: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn the system's "no space" and "over quota" into ``DiskFull``; other errors pass.

    Raises:
        DiskFull: with ``needed_bytes`` (0: a few kilobytes of bookkeeping) and ``free_bytes``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(needed_bytes, free_bytes(folder)) from error


def disk_full(needed_bytes: int, free: int) -> DiskFull:
    """The error, with both counts in its text and facts."""
    needed = f"{format_bytes(needed_bytes)} more needed" if needed_bytes else "no room left"
    return DiskFull(
        f"the disk of the store is full: {needed}, {format_bytes(free)} free",
        hint="free some space (mlxctl rm NAME removes a model), then run the same command again",
        needed_bytes=needed_bytes,
        free_bytes=free,
    )
