"""Processes: who is who, who is dead, and what a group weighs. The worker host uses it too, so: small, stdlib only.

A pid alone proves nothing, it is used again; a pid with its start time names one process for ever (until the
next boot on Linux, where start times count from boot; ``boot_id`` tells boots apart). Proof of death: no such
process (it was reaped), a zombie, or another start time.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Identity = tuple[int, int]
    """A process for ever: pid and start time."""

LINUX = sys.platform == "linux"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sight:
    """A process as it was when looked at. ``start_time`` is in the kernel's own unit: compare, do not compute."""

    __slots__ = ("group", "pid", "start_time", "zombie")

    def __init__(self, pid: int, group: int, start_time: int, zombie: bool) -> None:
        self.pid = pid
        self.group = group
        self.start_time = start_time
        self.zombie = zombie


def look(pid: int) -> Sight | None:
    """The process ``pid`` now; None when there is none."""
    return _look_proc(pid) if LINUX else _look_darwin(pid)


def start_time(pid: int) -> int | None:
    """The start time of ``pid``; None when there is no such process."""
    sight = look(pid)
    return sight.start_time if sight else None


def alive(pid: int, started: int) -> bool:
    """Whether the process that was ``pid`` with start time ``started`` still lives; False is the proof of death."""
    sight = look(pid)
    return sight is not None and not sight.zombie and sight.start_time == started


def group_members(group: int) -> list[int]:
    """The living processes of a process group, zombies left out."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit()) if LINUX else _group_darwin(group)  # noqa: PTH208 — pathlib costs the host a megabyte
    seen = (look(pid) for pid in pids)
    return [sight.pid for sight in seen if sight is not None and sight.group == group and not sight.zombie]


def members_of(leader: int, started: int) -> list[int]:
    """The living processes of the group that ``leader``, started at ``started``, leads or led.

    A group with members keeps its number from being used again, so only a leader with another start time shows
    that the number went to somebody else; then nobody is left.
    """
    sight = look(leader)
    if sight is not None and sight.start_time != started:
        return []
    return group_members(leader)


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory the processes hold together: proportional (PSS) on Linux, footprint on macOS. May take milliseconds."""
    return sum(_memory_proc(pid) if LINUX else _memory_darwin(pid) for pid in pids)


def boot_id() -> str:
    """Names this boot where start times need it; empty elsewhere."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip() if LINUX else ""


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and user id at the other end of a Unix socket: who connected, or who listens. -1 = not told."""
    if LINUX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("iii", raw)
        return pid, uid
    pid = connection.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID of <sys/un.h>
    credentials = connection.getsockopt(0, 1, 76)  # LOCAL_PEERCRED: struct xucred {version, uid, …}
    return pid, struct.unpack_from("II", credentials)[1]


def _read(path: str) -> bytes:
    """Content of a small file; empty when it cannot be read (the process went away, or is not ours)."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 — pathlib costs the host a megabyte
            return stream.read()
    except OSError:
        return b""


def _look_proc(pid: int) -> Sight | None:
    """proc(5): the fields after the command's name, which may itself hold blanks and brackets."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    return Sight(pid, int(fields[2]), int(fields[19]), fields[0] in {b"Z", b"X", b"x"})


def _memory_proc(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 else 0


# --- macOS: libproc by ctypes; layouts from <sys/proc_info.h> and <sys/resource.h> ---


def _libproc() -> Any:
    import ctypes

    return ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)


def _look_darwin(pid: int) -> Sight | None:
    import ctypes

    buffer = ctypes.create_string_buffer(136)  # struct proc_bsdinfo
    if _libproc().proc_pidinfo(pid, 3, ctypes.c_uint64(0), buffer, 136) != 136:  # PROC_PIDTBSDINFO; 0 for a zombie
        return None
    (status,) = struct.unpack_from("I", buffer, 4)
    (group,) = struct.unpack_from("I", buffer, 100)
    seconds, microseconds = struct.unpack_from("QQ", buffer, 120)
    return Sight(pid, group, seconds * 1_000_000 + microseconds, status == 5)  # SZOMB


def _group_darwin(group: int) -> list[int]:
    import ctypes

    buffer = (ctypes.c_int * 4096)()
    size = _libproc().proc_listpids(2, group, buffer, ctypes.sizeof(buffer))  # PROC_PGRP_ONLY
    return [pid for pid in buffer[: max(0, size) // 4] if pid]


def _memory_darwin(pid: int) -> int:
    import ctypes

    buffer = ctypes.create_string_buffer(96)  # struct rusage_info_v0
    if _libproc().proc_pid_rusage(pid, 0, buffer) != 0:
        return 0
    (footprint,) = struct.unpack_from("Q", buffer, 72)  # ri_phys_footprint counts Metal's memory too
    return int(footprint)
