"""A conversion program: how it is told what to do, says how far it is, and ends.

Files of a model come as ``--file NAME=PATH``. Standard output has lines ``@progress {"stage", "done"}`` (what worker
hosts read too), at the end ``@result {…}`` with figures, or ``@error {…}``: the error as data. Standard error has one
sentence ``error: …``. The status is 0 when the target is complete, also when it was before, else 2.

With ``--lifeline`` the program ends as soon as its standard input does: whoever started it was killed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import DiskFull, HomelabError, InsufficientMemory, InvalidInput, JobFailed

FAILED = 2
_CUT_OFF = 87


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with what every program takes."""
    made = argparse.ArgumentParser(prog=name, description=description)
    made.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="a file of the model")
    made.add_argument("--lifeline", action="store_true", help="end when standard input does")
    return made


def files_of(pairs: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH`` words as a mapping."""
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


def progress(stage: str, done: float) -> None:
    """Say how far this is; ``done`` is 0 to 1."""
    _say("@progress " + json.dumps({"stage": stage, "done": round(min(max(done, 0.0), 1.0), 4)}))


def result(figures: Mapping[str, Any]) -> None:
    """Say what was measured or made."""
    _say("@result " + json.dumps(figures, allow_nan=False))


def run(options: argparse.Namespace, work: Callable[[], None]) -> int:
    """Do the work of a program; its exit status."""
    if options.lifeline:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        work()
    except (HomelabError, OSError, MemoryError) as error:
        typed = _typed(error)
        _say("@error " + json.dumps(typed.as_dict()))
        hint = f"; {typed.hint}" if typed.hint else ""
        print(f"error: {typed.message}{hint}", file=sys.stderr, flush=True)  # noqa: T201 — a program's output
        return FAILED
    return 0


def _typed(error: HomelabError | OSError | MemoryError) -> HomelabError:
    if isinstance(error, HomelabError):
        return error
    if isinstance(error, MemoryError):
        return InsufficientMemory("there is not enough memory for the largest tensor of the model")
    if error.errno == errno.ENOSPC:
        return DiskFull("the disk is full", hint="mlxctl prune, or free some space")
    if error.errno in (errno.ENOENT, errno.EISDIR, errno.EACCES) and error.filename:
        return InvalidInput(f"{Path(str(error.filename)).name} cannot be read: {error.strerror}")
    return JobFailed(f"the files cannot be read or written: {error.strerror}")


def _end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    os._exit(_CUT_OFF)  # what is half-written lies in a folder that is swept


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 — this is how programs talk to who started them
