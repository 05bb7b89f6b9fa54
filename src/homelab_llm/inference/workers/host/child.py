"""The engine's process: started in a group of its own, bound to the host's life, ended as a group."""

# ruff: noqa: PTH123 — pathlib would cost this small process a megabyte
from __future__ import annotations

import contextlib
import os
import re
import signal
import sys

from homelab_llm.inference.fleet import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_OOM_SCORE = "500"
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|out_of_memory|failed to allocate|cannot allocate memory|unable to allocate|bad_alloc"
    r"|memoryerror|insufficient memory|cudamalloc failed|alloc_buffer: failed",
    re.IGNORECASE,
)


def adopt_orphans() -> Callable[[], None]:
    """Make grandchildren ours when their parent ends; gives what a new child must call to die with the host.

    Linux only, prctl(2). Elsewhere the daemon ends the group when the host is killed.
    """
    if not LINUX:
        return lambda: None
    try:
        import ctypes

        prctl: Any = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda: None
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


class Child:
    """A started program. ``output`` is the read end of its standard output and error.

    Raises:
        OSError: it could not be executed.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], die_with_us: Callable[[], None]) -> None:
        host = os.getpid()
        self.output, out = os.pipe()
        failed, report = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, env, out=out, report=report, die_with_us=die_with_us, host=host)
        os.close(out)
        os.close(report)
        raw = os.read(failed, 16)
        os.close(failed)
        if raw:
            os.waitpid(self.pid, 0)
            os.close(self.output)
            raise OSError(int(raw), os.strerror(int(raw)), argv[0])
        os.set_blocking(self.output, False)
        self.started = processes.start_time(self.pid) or 0

    def signal(self, number: int) -> None:
        """Signal the whole group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.pid, number)

    def rest(self) -> list[int]:
        """The group's living members."""
        return processes.members_of(self.pid, self.started)


def _become(
    argv: Sequence[str], env: Mapping[str, str], *, out: int, report: int, die_with_us: Callable[[], None], host: int
) -> NoReturn:
    """In the child: turn into the program, or tell the errno and end."""
    try:
        os.setpgid(0, 0)
        die_with_us()
        if os.getppid() != host:  # the host died before it could be watched
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _offer_to_the_oom_killer()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.chdir("/")
        os.execve(argv[0], list(argv), dict(env))  # noqa: S606 — an argv needs no shell
    except OSError as error:
        os.write(report, str(error.errno or 1).encode())
    finally:
        os._exit(127)


def _offer_to_the_oom_killer() -> None:
    """When memory ends, the system shall end this process and not the daemon (proc(5), oom_score_adj)."""
    if LINUX:
        with contextlib.suppress(OSError):  # everybody may raise it; a sandbox may say no
            handle = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(handle, _OOM_SCORE.encode())
            os.close(handle)


def oom_kills() -> int:
    """How often this system's OOM killer struck since boot; -1 when it does not tell."""
    if not LINUX:
        return -1
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as stream:
        for line in stream:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return -1


def exit_reason(status: int, tail: str, *, asked: bool, oom_kills_before: int) -> dict[str, Any]:
    """A wait status and the last words as ``{exit_code, signal, out_of_memory, tail}``.

    An unasked SIGKILL counts as out of memory when the OOM killer struck meanwhile.
    """
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    failed = code != 0 and not asked
    struck = number == signal.SIGKILL and oom_kills() > oom_kills_before >= 0
    return {
        "exit_code": code,
        "signal": number,
        "out_of_memory": failed and (struck or bool(_OUT_OF_MEMORY.search(tail))),
        "tail": tail,
    }
