"""``make bench``: every ratio, measured side by side; exits 1 when a goal is missed. Names pick parts."""

from __future__ import annotations

import sys

from bench import engines, front_door, pulling, registered, start
from bench.figures import measure_parts

PARTS = {
    "start": start.measure,
    "front_door": front_door.measure,
    "registered": registered.measure,
    "engines": engines.measure,
    "pulling": pulling.measure,
}


if __name__ == "__main__":
    raise SystemExit(measure_parts(PARTS, sys.argv[1:], "bench.json"))
