"""Running a tool of the system, bounded, with its own words in the error."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from homelab_llm.core.errors import HomelabError, UnsupportedRequest

TOOL_TIMEOUT_S = 90.0


def run_tool(
    argv: Sequence[str], environ: Mapping[str, str], *, must: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` with this environment (its PATH too) and wait; exit code 127 when there is no such program.

    Raises:
        HomelabError: with ``must``, when it does not end with 0.
    """
    try:
        done = subprocess.run(
            list(argv), env=dict(environ), capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if must:
            raise UnsupportedRequest(f"this machine has no {argv[0]}") from error
        return subprocess.CompletedProcess(list(argv), 127, "", "")
    except subprocess.TimeoutExpired as error:
        raise HomelabError(f"{argv[0]} did not end within {TOOL_TIMEOUT_S:.0f} s", tool=argv[0]) from error
    if must and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HomelabError(
            f"{' '.join(argv[:3])} failed: {said[-1] if said else f'exit code {done.returncode}'}", tool=argv[0]
        )
    return done
