"""Budget: how much memory all models together may take on this machine. Arithmetic first, reading at the end.

Limits that count: the machine's memory, the memory limit of every control group above us (Linux), and what the
GPU may wire of the unified memory (macOS). The smallest result holds.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MACOS_WIRED_FRACTION = 0.75
"""Part of the unified memory that macOS lets the GPU wire when ``iogpu.wired_limit_mb`` is 0."""

_UNLIMITED_BYTES = 1 << 60  # control groups v1 write "no limit" as almost 2**63


@dataclass(frozen=True, slots=True)
class Scope:
    """A limit and what is used under it; ``used_bytes`` leaves out what the system can drop at once (caches)."""

    name: str
    limit_bytes: int
    used_bytes: int = 0


def budget_of(scopes: Iterable[Scope], fraction: float, ours_bytes: int | None = None) -> int:
    """The budget under all scopes: ``fraction`` of each limit, less what others use there.

    Args:
        ours_bytes: what our workers use now, to tell it from what others use; None = do not count others.

    Raises:
        ValueError: no scope, or a fraction outside 0 to 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} is not in (0, 1]")
    return max(0, min(_allowed_bytes(scope, fraction, ours_bytes) for scope in scopes))


def _allowed_bytes(scope: Scope, fraction: float, ours_bytes: int | None) -> int:
    others_bytes = 0 if ours_bytes is None else max(0, scope.used_bytes - ours_bytes)
    return int(scope.limit_bytes * fraction) - others_bytes


def wired_scope(total_bytes: int, configured_mb: int) -> Scope:
    """The share of unified memory a GPU may wire on macOS; ``configured_mb`` is ``iogpu.wired_limit_mb``, 0 = unset."""
    limit_bytes = configured_mb * 2**20 if configured_mb > 0 else int(total_bytes * MACOS_WIRED_FRACTION)
    return Scope("GPU wired limit", min(limit_bytes, total_bytes))


def control_group_scopes(root: Path = Path("/")) -> list[Scope]:
    """The memory limits of our control group and of all above it, versions 2 and 1; none where there are none.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat).
    """
    scopes: list[Scope] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            scope = _control_group(base.joinpath(*parts[:depth]), *names)
            if scope is not None:
                scopes.append(scope)
    return scopes


def _control_group(folder: Path, limit_name: str, used_name: str, cache_name: str) -> Scope | None:
    limit = _text(folder / limit_name).strip()
    if not limit.isdigit() or int(limit) >= _UNLIMITED_BYTES:
        return None
    used = _text(folder / used_name).strip()
    statistics = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    cache_bytes = int(statistics.get(cache_name, "0"))
    used_bytes = max(0, int(used) - cache_bytes) if used.isdigit() else 0
    return Scope(f"control group {folder.name or '/'}", int(limit), used_bytes)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _wired_limit_mb() -> int:
    """``iogpu.wired_limit_mb`` of this Mac; 0 when it is not set or not known."""
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(b"iogpu.wired_limit_mb", ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else int(value.value)


def read_scopes() -> list[Scope]:
    """The limits of this machine now; about 0.2 ms."""
    import psutil

    memory = psutil.virtual_memory()
    scopes = [Scope("machine", memory.total, memory.total - memory.available)]
    if sys.platform == "darwin":
        scopes.append(wired_scope(memory.total, _wired_limit_mb()))
    else:
        scopes.extend(control_group_scopes())
    return scopes


def measure_budget(fraction: float, ours_bytes: int | None = None) -> int:
    """The budget of this machine now, in bytes; arguments as in ``budget_of``."""
    return budget_of(read_scopes(), fraction, ours_bytes)
