"""Cloning: a copy that shares its blocks until one side is written, where the file system can (APFS, Btrfs, XFS).

Sources: ioctl_ficlone(2); clonefile(2) of macOS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

_FICLONE = 0x40049409
_CLONE_NOOWNERCOPY = 0x0002
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


def clone_into(source: int, target: int, target_path: Path, beside: Path) -> bool:
    """Make the file at ``target_path`` a clone of the open file ``source``.

    Args:
        target: ``target_path``, open for writing and empty. On macOS the path gets a new inode: open it again.
        beside: a free path in the same folder, for macOS.

    Returns:
        False when the file system, or this pair of them, cannot; the target is then as it was.
    """
    try:
        if sys.platform == "darwin":
            _clonefile(source, beside)
            beside.rename(target_path)
        else:
            fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _clonefile(source: int, beside: Path) -> None:
    """``fclonefileat`` wants a name that is free, so it clones beside the target."""
    import ctypes

    beside.unlink(missing_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.open(beside.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.fclonefileat(source, folder, os.fsencode(beside.name), ctypes.c_uint32(_CLONE_NOOWNERCOPY)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(beside))
    finally:
        os.close(folder)
    beside.chmod(0o644)
