"""Exit codes of ``mlxctl`` and ``mlxserve``: one number per family of the error tree, never renumbered."""

from __future__ import annotations

from typing import NamedTuple

from homelab_llm.core import errors

OK = 0
FAILED = 1
USAGE = 2
FAR_USAGE = 64  # what a forwarded call says in place of 2; whoever forwarded it turns it back (``ops/remote.py``)
INTERNAL = 70
INTERRUPTED = 130
PIPE_CLOSED = 141


class ExitCode(NamedTuple):
    """A number and what it means, for the reference page."""

    number: int
    meaning: str


_FAMILIES: dict[type[errors.HomelabError], int] = {
    errors.HomelabError: FAILED,
    errors.InvalidInput: 3,
    errors.NotFound: 4,
    errors.Denied: 5,
    errors.Conflict: 6,
    errors.Exhausted: 7,
    errors.EngineError: 8,
    errors.TransferError: 9,
    errors.DaemonUnavailable: 10,
    errors.DeadlineExceeded: 11,
    errors.DatabaseUnavailable: 12,
    errors.Cancelled: INTERRUPTED,
    errors.InternalError: INTERNAL,
    errors.ModelDamaged: FAILED,
}

EXIT_CODES: tuple[ExitCode, ...] = (
    ExitCode(OK, "done"),
    ExitCode(FAILED, "it ran, and the answer is no: `doctor` found something broken, `verify` found drift or damage"),
    ExitCode(USAGE, "the command line itself is wrong: unknown verb, option or missing argument"),
    ExitCode(3, "invalid input: a name, setting, file or request that cannot be used"),
    ExitCode(4, "not found: a model, slot, key, source or endpoint"),
    ExitCode(5, "denied: no key or the wrong one, a gated model, an address that may not be listened on"),
    ExitCode(6, "conflict: in use, name taken, port taken, another daemon runs, another version"),
    ExitCode(7, "exhausted: memory, disk or queue"),
    ExitCode(8, "an engine is missing or failed"),
    ExitCode(9, "a download did not arrive as promised; the same command resumes it"),
    ExitCode(10, "no daemon answers"),
    ExitCode(11, "a time limit passed"),
    ExitCode(12, "the system database cannot be used"),
    ExitCode(INTERNAL, "a defect of this product; `-v` shows where"),
    ExitCode(INTERRUPTED, "interrupted by Ctrl-C"),
    ExitCode(PIPE_CLOSED, "the reader of the output went away"),
)


def exit_code_of(cls: type[errors.HomelabError]) -> int:
    """The code of a class of the error tree: that of its nearest ancestor that has one."""
    return next(_FAMILIES[base] for base in cls.__mro__ if base in _FAMILIES)


def has_own_family(cls: type[errors.HomelabError]) -> bool:
    """Whether a class is mapped by something closer than the root; the test of the tree asks this."""
    return any(base in _FAMILIES for base in cls.__mro__ if base is not errors.HomelabError) or (
        cls is errors.HomelabError
    )
