"""``make bars``: every bar of the product at full size → ``build/bars.json``. Names pick parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from bench import engines, front_door, newcomer, pulling, registered, start
from bench.figures import BUILD, Figure, measure_parts
from bench.rig import ROOT


def _tests() -> Iterator[Figure]:
    """The whole-product tests at full size; each measured time becomes a figure."""
    out = BUILD / "bars-tests.json"
    out.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/bars",
        "tests/controller",
        "tests/data",
        "tests/fleet",
        "tests/oci",
        "tests/registry",
        "tests/sources",
        "tests/store",
        "tests/transfer",
        "tests/transfer",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "HOMELAB_SIZE": "full"}, check=False)
    yield Figure("bars.tests", float(done.returncode == 0), "green", "= 1")
    if out.exists():
        yield from (Figure(**row) for row in json.loads(out.read_text()))


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "start": start.measure,
    "front_door": front_door.measure,
    "engines": engines.measure,
    "registered": registered.measure,
    "pulling": pulling.measure,
    "tests": _tests,
    "newcomer": newcomer.measure,
}


if __name__ == "__main__":
    raise SystemExit(measure_parts(PARTS, sys.argv[1:], "bars.json"))
