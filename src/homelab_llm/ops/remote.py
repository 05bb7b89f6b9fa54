"""Remote: the same command on another machine, over the system's own ``ssh``.

Every argument arrives there byte for byte: the far login shell gets one line, quoted as POSIX ``sh`` reads it.
Standard input, output and error are ours, and so is the exit code; only ssh's own failure becomes an error here.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from homelab_llm.core.errors import Cancelled, HomelabError, HostUnavailable, InvalidInput, NotFound, VersionMismatch

EXPECT_VERSION = "--expect-version"
"""Tells the far side our version; it refuses what would change something on another one."""
FAR_USAGE = 64
"""How the far side says "the command line is wrong" when it was told our version; it is shown as 2 here.

A program that does not know ``--expect-version`` ends with a plain 2. So both are told apart in the same call.
"""
_USAGE = 2
_SSH_FAILED = 255
_NO_SUCH_COMMAND, _NOT_EXECUTABLE = 127, 126
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]@/+~][A-Za-z0-9_.:%\[\]@/+~-]*")


@dataclass(frozen=True, slots=True)
class FarSide:
    """A machine and how to reach it.

    ``command`` is what runs there, as its shell reads it. ``ssh_config`` is a file of options for ssh; empty = its own.
    """

    host: str
    command: str = "mlxctl"
    ssh_config: str = ""


@dataclass(frozen=True, slots=True)
class Terminals:
    """Which of this process's streams are terminals."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False

    @property
    def whole(self) -> bool:
        """A terminal on both ends: the far side gets one too."""
        return self.stdin and self.stdout and self.stderr

    @property
    def can_ask(self) -> bool:
        """Whether ssh may ask a person for a passphrase."""
        return self.stdin and self.stderr


def far_line(command: str, argv: Sequence[str]) -> str:
    """One line for a POSIX shell that runs ``command`` with exactly these arguments.

    Raises:
        InvalidInput: an argument holds a NUL, which no program can be given.
    """
    if any("\0" in argument for argument in argv):
        raise InvalidInput("an argument holds a NUL character", field="argument")
    return " ".join([command, *map(shlex.quote, argv)])


def ssh_argv(far: FarSide, argv: Sequence[str], terminals: Terminals) -> list[str]:
    """The call of ssh.

    Raises:
        InvalidInput: the host is empty, or could be read as an option.
    """
    if not _HOST.fullmatch(far.host):
        raise InvalidInput(
            f"not a host: {far.host[:60]!r}", hint="write HOST, USER@HOST or a name of ~/.ssh/config", field="host"
        )
    options = ["-F", far.ssh_config] if far.ssh_config else []
    options += ["-t"] if terminals.whole else ["-T"]
    options += [] if terminals.can_ask else ["-o", "BatchMode=yes"]
    return ["ssh", *options, "--", far.host, far_line(far.command, argv)]


def run_there(
    far: FarSide,
    argv: Sequence[str],
    terminals: Terminals,
    *,
    version: str,
    environ: Mapping[str, str],
) -> int:
    """Run the command on the far side and return its exit code; blocks.

    Args:
        version: ours; the far side compares it before it does anything.

    Raises:
        HostUnavailable: ssh failed: no route, no such host, no key, the connection broke.
        NotFound: ``far.command`` is not there.
        VersionMismatch: it is too old to compare versions.
        Cancelled: Ctrl-C; the far command is interrupted as well.
    """
    call = ssh_argv(far, [EXPECT_VERSION, version, *argv], terminals)
    try:
        code, interrupted = _run(call, environ)
    except FileNotFoundError as error:
        raise HostUnavailable(
            "there is no ssh on this machine", hint="install the OpenSSH client", host=far.host
        ) from error
    if interrupted and code in (_SSH_FAILED, -signal.SIGINT):
        raise Cancelled("interrupted; the command over there ends too")
    if code == FAR_USAGE:
        return _USAGE
    if failure := _failure(far, code, version):
        raise failure
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def talk_there(
    far: FarSide, argv: Sequence[str], terminals: Terminals, *, version: str, environ: Mapping[str, str]
) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run a command on the far side with its standard output and input as two streams; its errors are ours.

    Leaving the block closes the streams and waits for the command to end.

    Raises:
        HostUnavailable, NotFound, VersionMismatch: as ``run_there``, in place of what the block made of the silence.
    """
    # A terminal would change bytes on their way, and ssh may still ask a person on ours.
    call = ssh_argv(
        far, [EXPECT_VERSION, version, *argv], Terminals(terminals.stdin, stdout=False, stderr=terminals.stderr)
    )
    try:
        process = subprocess.Popen(call, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise HostUnavailable(
            "there is no ssh on this machine", hint="install the OpenSSH client", host=far.host
        ) from error
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 — both were asked for
    try:
        yield process.stdout, process.stdin
    except HomelabError as error:
        raise _failure(far, _ended(process), version) or error from error
    except BaseException:
        process.terminate()
        raise
    finally:
        _ended(process)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Close its streams, which ends it, and wait for that."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    return process.wait()


def _run(call: Sequence[str], environ: Mapping[str, str]) -> tuple[int, bool]:
    """The exit code, and whether Ctrl-C came; that reaches ssh itself, so here it is only noted.

    An exception in the middle of waiting could lose the exit code of a process that has just ended.
    """
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        return subprocess.Popen(call, env=dict(environ)).wait(), bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_caller(stdout: int = 1) -> None:
    """On the far side: interrupt this process when the machine that forwarded the call goes away.

    Without a terminal nothing else would tell it: ssh ends and the far command goes on, silently.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(stdout, 0)  # only that the other end is gone
        if poll.poll():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def _failure(far: FarSide, code: int, version: str) -> HostUnavailable | NotFound | VersionMismatch | None:
    if code == _SSH_FAILED:
        return HostUnavailable(
            f"ssh to {far.host} failed; its reason is above",
            hint=f"ssh {far.host} true    # or --local to run it here",
            host=far.host,
        )
    if code in (_NO_SUCH_COMMAND, _NOT_EXECUTABLE):
        return NotFound(
            f"{far.command} cannot be run on {far.host}",
            hint="install homelab-llm there, or set remote.command to its full path",
            host=far.host,
        )
    if code == _USAGE:
        return VersionMismatch(
            f"{far.command} on {far.host} is too old to say its version; here is {version}",
            hint=f"install version {version} on {far.host}",
            here=version,
            there="unknown",
        )
    return None
