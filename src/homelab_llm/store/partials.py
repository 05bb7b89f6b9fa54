"""Partials: the unfinished blob of one key, what is known about it, and the lock of who writes it.

``<hex of key>.part`` holds bytes, ``.map`` says which are there, ``.json`` is the record, ``.lock`` is held by the
writer; ``.beside`` is a clone or link for the blink of an eye before it becomes the part. The key itself is
hashed and never written: it may be an address with a token in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidDigest, StoreBusy, StoreDamaged
from homelab_llm.store.blocks import Blocks
from homelab_llm.store.layout import Layout, digest_path, read_small
from homelab_llm.store.pins import try_lock_existing

_POLL_S = 0.02
_MAX_RECORD_BYTES = 1 << 16
_MAX_MAP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class PartialRecord:
    """What the bytes of a partial are a part of.

    ``expected`` is the digest the whole must have, or empty; ``validator`` an ETag or the like that changes
    with the content, or empty. ``boot`` is the boot of the machine in which they were written: after another one only
    what was fsynced is believed. ``digest`` is set once the blob is complete, so that who waited for it, or asks again
    with the same validator, finds it.
    """

    expected: str = ""
    validator: str = ""
    boot: str = ""
    digest: str = ""

    @property
    def resumable(self) -> bool:
        """Whether kept bytes can be proved to belong to what is asked for."""
        return bool(self.expected or self.validator)

    def continues(self, other: PartialRecord) -> bool:
        """Whether bytes kept under ``other`` are a beginning of what this record describes."""
        return self.resumable and (self.expected, self.validator) == (other.expected, other.validator)


@dataclass(frozen=True, slots=True)
class Partial:
    """The files of one key. Everything but ``hold`` and ``try_hold`` is for who holds the lock."""

    part: Path
    record_path: Path
    lock: Path
    beside: Path
    map: Path

    @classmethod
    def of(cls, layout: Layout, key: str) -> Partial:
        return cls.at(layout, Digest.of(key.encode()))

    @classmethod
    def at(cls, layout: Layout, key: Digest) -> Partial:
        """The partial of a key that is known by its hash only."""
        return cls(
            digest_path(layout.tmp, key, ".part"),
            digest_path(layout.tmp, key, ".json"),
            digest_path(layout.tmp, key, ".lock"),
            digest_path(layout.tmp, key, ".beside"),
            digest_path(layout.tmp, key, ".map"),
        )

    def hold(self, wait_s: float, waiting: Callable[[], None] | None = None) -> int:
        """Wait for the right to write this key; returns the file descriptor that holds it.

        Raises:
            StoreBusy: another process wrote it for longer than ``wait_s``.
        """
        deadline = time.monotonic() + wait_s
        handle = try_lock_existing(self.lock)
        if handle is None and waiting is not None:
            waiting()
        while handle is None:
            if time.monotonic() >= deadline:
                raise StoreBusy("another process is writing the same file", hint="try again when it is done")
            time.sleep(_POLL_S)
            handle = try_lock_existing(self.lock)
        return handle

    def try_hold(self) -> int | None:
        """As ``hold``, without waiting."""
        return try_lock_existing(self.lock)

    def let_go(self, handle: int) -> None:
        """End the right; the lock's file goes too when nothing is kept."""
        if not (self.part.exists() or self.record_path.exists()):
            self.lock.unlink(missing_ok=True)
        os.close(handle)

    def there_bytes(self) -> int:
        """How many bytes are there, for who only looks on."""
        try:
            content = read_small(self.map, _MAX_MAP_BYTES)
        except (OSError, StoreDamaged):
            return 0
        return Blocks.parse(content, size_bytes=1 << 62, durable_only=False).there_bytes

    def sweep(self) -> None:
        """Remove what a killed process left of writing the record."""
        for path in self.record_path.parent.glob(f".{self.record_path.name}.*.tmp"):
            path.unlink(missing_ok=True)

    def record(self) -> PartialRecord:
        """What the record says; an absent or damaged one says nothing, so its bytes are not used."""
        try:
            found = json.loads(read_small(self.record_path, _MAX_RECORD_BYTES))
            record = PartialRecord(**found)
        except (FileNotFoundError, StoreDamaged, ValueError, TypeError, RecursionError):
            return PartialRecord()
        return record if all(isinstance(value, str) for value in asdict(record).values()) else PartialRecord()

    def write_record(self, record: PartialRecord) -> None:
        write_atomic(self.record_path, json.dumps(asdict(record)).encode(), mode=0o600)

    def discard(self) -> None:
        """Forget bytes and record. Unlinks and never truncates: a part may be a hard link to somebody's file."""
        for path in (self.part, self.beside, self.map, self.record_path):
            path.unlink(missing_ok=True)


def partial_key(path: Path) -> Digest | None:
    """The key that a file in ``tmp`` belongs to, the temporary file of its record included; None for others."""
    name = path.name.removeprefix(".").partition(".")[0]
    try:
        return Digest.parse(f"sha256:{name}")
    except InvalidDigest:
        return None


def finished_digest(record: PartialRecord) -> Digest | None:
    """The digest of the complete blob that the record names, if it does."""
    try:
        return Digest.parse(record.digest) if record.digest else None
    except InvalidDigest:
        return None
