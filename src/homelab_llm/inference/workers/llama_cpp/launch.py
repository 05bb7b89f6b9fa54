"""Start an installed ``llama-server`` on our socket: this program becomes it.

Run as ``python -P -m homelab_llm.inference.workers.llama_cpp.launch --socket … -- /path/llama-server --model …``.
llama-server takes a host for a Unix socket only when it ends in ``.sock``; a link leads from our name to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Link, then become the server; returns only when that fails."""
    parser = argparse.ArgumentParser(prog="llama_cpp.launch", description="Start llama-server on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("program", nargs="+", help="the server's absolute path and its arguments, after --")
    given = parser.parse_args(argv)
    bind = given.socket.with_suffix(".sock")
    for stale in (bind, given.socket):
        stale.unlink(missing_ok=True)
    given.socket.symlink_to(bind.name)
    command = [*given.program, "--host", str(bind)]
    try:
        os.execv(command[0], command)  # noqa: S606 — an argv needs no shell
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
