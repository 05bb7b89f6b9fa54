"""Ranges of numbers as grammars: digits compared from the left; and JSON Schema's words for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.inference.kit.grammar import NOTHING, Alt, Expr, Rep, Text, alt, chars, seq

LIMIT = 10**16 - 1  # the longest number a grammar here lets a model write


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest number allowed; None = no bound; open = the bound itself is not allowed."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    @classmethod
    def of(cls, schema: Mapping[str, Any], where: str) -> Bounds:
        """Read ``minimum``, ``maximum`` and their exclusive forms (draft 4's booleans too).

        Raises:
            InvalidInput: no number, or no number is left.
        """
        low, low_open = _bound(schema, "minimum", "exclusiveMinimum", where, max)
        high, high_open = _bound(schema, "maximum", "exclusiveMaximum", where, min)
        if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
            raise InvalidInput(f"'{where}' allows no number: its minimum is above its maximum", field=where)
        return cls(low, high, low_open, high_open)

    @property
    def free(self) -> bool:
        return self.low is None and self.high is None

    def whole(self) -> Expr:
        """The whole numbers within."""
        low = None if self.low is None else math.floor(self.low) + 1 if self.low_open else math.ceil(self.low)
        high = None if self.high is None else math.ceil(self.high) - 1 if self.high_open else math.floor(self.high)
        return integers(low, high)

    def real(self, fraction: Expr) -> Expr | None:
        """All numbers within, without exponents; None where the bounds are open or no whole numbers.

        ``fraction`` is what may follow a whole part.
        """
        if self.low_open or self.high_open or any(b is not None and b != int(b) for b in (self.low, self.high)):
            return None
        low = None if self.low is None else int(self.low)
        high = None if self.high is None else int(self.high)
        options: list[Expr] = [integers(bound, bound) for bound in (low, high) if bound is not None]
        if high is None or high > 0:  # 2.5 lies within 1 to 3 because its whole part lies within 1 to 2
            options.append(seq(integers(max(low or 0, 0), None if high is None else high - 1), fraction))
        if low is None or low < 0:
            nearest = 0 if high is None or high >= 0 else -high
            options.append(seq("-", integers(nearest, None if low is None else -low - 1), fraction))
        return Alt(tuple(options))


def _bound(
    schema: Mapping[str, Any], plain: str, exclusive: str, where: str, tighter: Callable[..., float]
) -> tuple[float | None, bool]:
    for word in (plain, exclusive):
        value = schema.get(word, 0)
        if word == exclusive and isinstance(value, bool):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput(f"'{where}.{word}' must be a number", field=f"{where}.{word}")
    included, excluded = schema.get(plain), schema.get(exclusive)
    if isinstance(excluded, bool):
        return included, excluded and included is not None
    if included is None or excluded is None:
        return (included, False) if excluded is None else (excluded, True)
    tightest = tighter(included, excluded)
    return tightest, tightest == excluded


def integers(low: int | None, high: int | None) -> Expr:
    """All whole numbers from ``low`` to ``high``, both included; None = no bound. Impossible when low > high."""
    low = -LIMIT if low is None else max(low, -LIMIT)
    high = LIMIT if high is None else min(high, LIMIT)
    options: list[Expr] = []
    if low < 0:
        below = _naturals(max(1, -min(high, -1)), -low) if min(high, -1) >= low else Alt(())
        options.append(seq("-", below))
    if high >= 0:
        options.append(_naturals(max(low, 0), high))
    return Alt(tuple(options))


def _naturals(low: int, high: int) -> Expr:
    """From ``low`` to ``high``, neither negative; one option for every length."""
    options = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = 0 if length == 1 else 10 ** (length - 1)
        start, end = max(low, first), min(high, 10**length - 1)
        if start <= end:
            options.append(_digits(str(start), str(end)))
    return Alt(tuple(options))


def _digits(low: str, high: str) -> Expr:
    """Numbers of one length between two of that length."""
    if not low:
        return NOTHING
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return Rep(chars("09"), len(low), len(low))
    if low[0] == high[0]:
        return seq(Text(low[0]), _digits(low[1:], high[1:]))
    options: list[Expr] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        options.append(seq(low[0], _digits(low[1:], "9" * rest)))
        first += 1
    if high[1:] != "9" * rest:
        options.append(seq(high[0], _digits("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        between = chars(f"{first}{last}")
        options.append(seq(between, Rep(chars("09"), rest, rest)) if rest else between)
    return alt(*options)
