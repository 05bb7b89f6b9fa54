"""Figures: what a measurement says, its goal, and whether it holds."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    ``goal`` is a bound such as ``<= 0.30`` or ``>= 6000``, or empty for a figure that is only reported;
    ``against`` names the anchor measured in the same run; ``spread`` is min … max or the interquartile range.
    """

    id: str
    value: float
    unit: str
    goal: str = ""
    against: str = ""
    spread: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value meets the goal; a figure without a goal holds."""
        if not self.goal:
            return True
        relation, bound = self.goal.split()
        if math.isnan(self.value):
            return False
        return {"<=": self.value <= float(bound), ">=": self.value >= float(bound), "=": self.value == float(bound)}[
            relation
        ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(percent / 100 * len(ordered)) - 1))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (min … max)`` of repeated rounds."""
    return f"median {statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def report(figures: Sequence[Figure], file: str) -> bool:
    """Print the table, write ``build/<file>``, and say whether every goal holds."""
    for figure in figures:
        mark = "ok  " if figure.holds else "MISS"
        goal = f"goal {figure.goal}" if figure.goal else ""
        print(
            f"{mark} {figure.id:44} {figure.value:>12.4g} {figure.unit:10} {goal:16} {figure.against}  {figure.spread}"
        )
    BUILD.mkdir(exist_ok=True)
    rows = [asdict(figure) | {"holds": figure.holds} for figure in figures]
    (BUILD / file).write_text(json.dumps(rows, indent=1) + "\n")
    return all(figure.holds for figure in figures)


def measure_parts(parts: Mapping[str, Callable[[], Iterator[Figure]]], names: Sequence[str], file: str) -> int:
    """Measure the named parts, or all, and report; the exit code, 1 when a goal is missed.

    What was measured before a part fails is reported too.
    """
    if unknown := sorted(set(names) - set(parts)):
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    figures: list[Figure] = []
    try:
        for name in names or list(parts):
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            figures.extend(parts[name]())
    finally:
        held = report(figures, file)
    return 0 if held else 1
