"""Boot: which start of the machine this is. What was not made durable before another one may be lost."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")
_DARWIN = b"kern.bootsessionuuid"


@cache
def boot_id() -> str:
    """Another text after every boot; empty where the system does not tell."""
    if sys.platform == "darwin":
        return _sysctl(_DARWIN)
    try:
        return _LINUX.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _sysctl(name: bytes) -> str:
    import ctypes
    import ctypes.util

    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    buffer, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    if library.sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    return buffer.value.decode("ascii", "replace")
