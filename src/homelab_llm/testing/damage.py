"""Damage to stored bytes, as disks, kills and other programs do it. The size and times lie where they can."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Damaging = Callable[[Path], None]
_PAGE_BYTES = 4096


def flip_a_bit(path: Path) -> None:
    """One bit in the middle; the time of change stays as it was, as when the disk did it."""
    _silently(path, path.stat().st_size // 2, lambda old: bytes([old[0] ^ 1]) + old[1:])


def zero_a_page(path: Path) -> None:
    """A page of zeros, as after a write that the disk lost."""
    size = path.stat().st_size
    begin = min(size // 2, max(0, size - _PAGE_BYTES))
    _silently(path, begin, lambda old: bytes(len(old)))


def cut_short(path: Path) -> None:
    """The last third is gone."""
    os.truncate(path, path.stat().st_size * 2 // 3)


def remove(path: Path) -> None:
    """It is not there any more."""
    path.unlink()


def make_a_link(path: Path) -> None:
    """A link to the right bytes somewhere else; a blob is a plain file."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to(aside.name)


DAMAGES: dict[str, Damaging] = {
    "a flipped bit": flip_a_bit,
    "a zeroed page": zero_a_page,
    "a truncated file": cut_short,
    "a missing blob": remove,
}


def _silently(path: Path, begin: int, change: Callable[[bytes], bytes]) -> None:
    found = path.stat()
    with path.open("r+b") as stream:
        stream.seek(begin)
        old = stream.read(_PAGE_BYTES)
        stream.seek(begin)
        stream.write(change(old))
    while True:  # the clock of a file system is coarse: the change shall be later than what was before it
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        if path.stat().st_ctime_ns != found.st_ctime_ns:
            return
