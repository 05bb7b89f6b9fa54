"""Opening a model file without being fooled by what lies at its path."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from homelab_llm.core.errors import NotRegularFile

_BUFFER_BYTES = 1 << 18


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file for reading; the caller closes it.

    A FIFO never blocks the open and a symbolic link is not followed, so resolve links first where they are
    wanted (the Hugging Face cache is made of them). What is checked is the open file, not its path.

    Raises:
        NotRegularFile: a FIFO, device, socket, folder or symbolic link; or nothing readable is there.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise NotRegularFile(_reason(path, error)) from error
    except ValueError as error:  # an embedded NUL
        raise NotRegularFile("not a path") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise NotRegularFile(f"{path.name} is not a plain file but {_kind(mode)}")
    return os.fdopen(handle, "rb", buffering=_BUFFER_BYTES)


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{path.name} is a symbolic link, and links are not followed here"
    if error.errno == errno.ENXIO:
        return f"{path.name} is not a plain file but a socket or device"
    return f"{path.name[:80]} cannot be opened: {os.strerror(error.errno or 0)}"


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a device"
