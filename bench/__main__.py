"""``make bench``: every ratio, measured side by side; exits 1 when a goal is missed. Names pick parts."""

from __future__ import annotations

import sys

from bench import engines, front_door, start
from bench.figures import Figure, report

PARTS = {"start": start.measure, "front_door": front_door.measure, "engines": engines.measure}


def main(names: list[str]) -> int:
    """Measure the named parts, or all."""
    figures: list[Figure] = []
    try:
        for name in names or list(PARTS):
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            figures.extend(PARTS[name]())  # what was measured before an error stays
    finally:
        held = report(figures, "bench.json")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
