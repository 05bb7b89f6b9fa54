"""Verification: which blobs are known to be good, so that a model is hashed once and not before every load.

``STORE/verified`` is a list of lines. ``good`` says: at this moment the file of this size, time, inode and time of
change had the content of its digest; ``bad`` that it had another; ``doubt`` takes both back. What was hashed under an
earlier boot of the machine counts only if it was ``sealed`` since, which a daemon does when it ends in order: after a
power cut everything is hashed again. The file is derived: a lost, torn or damaged line costs a hash, never trust.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.boot import boot_id
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import StoreDamaged
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.layout import Layout, read_small

_HEADER = b"homelab-llm verified 1\n"
_MAX_BYTES = 32 << 20
_COMPACT_BYTES = 4 << 20

Verdict = Literal["good", "bad", "unknown"]


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it lay there: if any of these differs, somebody touched it."""

    size_bytes: int
    modified_ns: int
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one blob: the verdict, for the file in this state; when and under which boot it was hashed."""

    verdict: Verdict
    state: FileState
    at_unix_s: int
    boot: str


class Verification:
    """The list of one store. Reading takes no lock; for writing the store's lock is held by who calls ``*_locked``.

    Args:
        boot: names this boot; ``core.boot.boot_id`` unless a test says otherwise.
    """

    def __init__(self, layout: Layout, *, boot: Callable[[], str] = boot_id) -> None:
        self._layout, self._boot = layout, boot
        self._lines: dict[bytes, bytes] = {}
        self._unsealed: set[bytes] = set()
        self._read_until = 0
        self._inode = 0
        self._reading = threading.Lock()

    def verdict(self, digest: Digest) -> Verdict:
        """What is known of the blob as it lies there now; one look at the file. A blob that is gone is unknown."""
        known = self.known(digest)
        return known.verdict if known else "unknown"

    def known(self, digest: Digest) -> Known | None:
        """As ``verdict``, with when and how it was found; None = nothing that still counts."""
        self._refresh()
        hex_ = digest.hex.encode("ascii")
        line = self._lines.get(hex_)
        known = _parsed(line) if line is not None else None
        if known is None or (hex_ in self._unsealed and known.boot != self._boot()):
            return None
        try:
            found = os.lstat(self._layout.blob(digest))
        except OSError:
            return None
        return known if stat.S_ISREG(found.st_mode) and FileState.of(found) == known.state else None

    def damaged(self) -> list[Digest]:
        """The blobs that are known to be bad now."""
        self._refresh()
        bad = [Digest(hex_.decode("ascii")) for hex_, line in self._lines.items() if line.startswith(b"bad ")]
        return [digest for digest in bad if self.verdict(digest) == "bad"]

    def note(self, verdicts: Iterable[tuple[Digest, FileState, Verdict]]) -> None:
        """Write down what was found, for the files in the states they had while they were hashed."""
        with self._layout.locked():
            self.note_locked(verdicts)

    def note_locked(self, verdicts: Iterable[tuple[Digest, FileState, Verdict]]) -> None:
        """As ``note``. A disk that is full is no error: what is not written is hashed again."""
        now, boot = int(time.time()), self._boot()
        lines = [_line(digest.hex, verdict, state, now, boot) for digest, state, verdict in verdicts]
        self._append(lines)

    def published_locked(self, digest: Digest) -> None:
        """The blob has just been hashed, made durable and given its place."""
        with contextlib.suppress(OSError):
            self.note_locked([(digest, FileState.of(os.lstat(self._layout.blob(digest))), "good")])

    def doubt(self, digests: Iterable[Digest]) -> None:
        """Hash these again before they are believed: what was loaded from them failed."""
        with self._layout.locked():
            self._append([f"doubt {digest.hex}\n" for digest in digests])

    def seal(self) -> None:
        """All that was found so far also counts after the next boot; called when a daemon ends in order."""
        if self._layout.verified.exists():
            with self._layout.locked():
                self._append(["sealed\n"])

    def distrust(self) -> None:
        """Forget everything: something ended without order, and nobody knows what was under way."""
        if self._layout.verified.exists():
            with self._layout.locked():
                self._layout.verified.unlink(missing_ok=True)

    # --- the file -------------------------------------------------------------------------------------------

    def _append(self, lines: list[str]) -> None:
        if not lines:
            return
        path = self._layout.verified
        failpoint("store.verified.note")
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                size = os.fstat(handle).st_size
                # A line that a kill tore ends here: it shall not take the next one with it.
                start = _HEADER if size == 0 else b"\n"
                os.write(handle, start + "".join(lines).encode("ascii"))
            finally:
                os.close(handle)
            if size > _COMPACT_BYTES:
                self._compact()

    def _compact(self) -> None:
        """Write only what still counts, when that is much less; the caller holds the store's lock."""
        self._refresh()
        there = set(os.listdir(self._layout.blobs))  # noqa: PTH208 — names are all that is wanted
        kept = [(hex_, line) for hex_, line in self._lines.items() if hex_.decode("ascii", "replace") in there]
        sealed = [line for hex_, line in kept if hex_ not in self._unsealed]
        others = [line for hex_, line in kept if hex_ in self._unsealed]
        content = _HEADER + b"\n".join([*sealed, b"sealed", *others, b""])
        if len(content) * 2 < self._layout.verified.stat().st_size:
            write_atomic(self._layout.verified, content)

    def _take(self, content: bytes) -> None:
        """Take in further lines. They are read when somebody asks for them: there may be tens of thousands."""
        for line in content.split(b"\n"):
            if line.startswith((b"good ", b"bad ")):
                hex_ = line.partition(b" ")[2][:64]
                self._lines[hex_] = line
                self._unsealed.add(hex_)
            elif line.startswith(b"doubt "):
                self._lines.pop(line[6:], None)
            elif line == b"sealed":
                self._unsealed.clear()

    def _forget(self) -> None:
        self._lines.clear()
        self._unsealed.clear()

    def _refresh(self) -> None:
        """Take in what was written since; lines are only ever added, unless the file is another one."""
        with self._reading:
            try:
                found = self._layout.verified.stat()
            except OSError:
                self._forget()
                self._read_until, self._inode = 0, 0
                return
            same = found.st_ino == self._inode and found.st_size >= self._read_until
            if same and found.st_size == self._read_until:
                return
            try:
                content = read_small(self._layout.verified, _MAX_BYTES)
            except (OSError, StoreDamaged):
                content = b""
            if not content.startswith(_HEADER):
                content = b""
            if not same:
                self._forget()
            self._take(content[self._read_until if same else 0 :])
            self._read_until, self._inode = len(content) if content else found.st_size, found.st_ino


def _line(hex_: str, verdict: Verdict, state: FileState, at_unix_s: int, boot: str) -> str:
    numbers = f"{state.size_bytes} {state.modified_ns} {state.inode} {state.changed_ns} {at_unix_s}"
    return f"{verdict} {hex_} {numbers} {boot or '-'}\n"


def _parsed(line: bytes) -> Known | None:
    """What a line says; None for one that was torn or damaged."""
    words = line.split(b" ")
    try:
        kind, _, size, modified, inode, changed, at_unix_s, boot = words
        state = FileState(int(size), int(modified), int(inode), int(changed))
        verdict: Verdict = "good" if kind == b"good" else "bad"
        return Known(verdict, state, int(at_unix_s), "" if boot == b"-" else boot.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return None
