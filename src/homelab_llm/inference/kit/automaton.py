"""Automata: a regular expression as right-linear rules, so that the engine never follows two readings at once.

llama.cpp keeps one stack for every way a text can be read, and looks at all of them for every token of the
vocabulary: a hundred optional parts in a row (``.?.?.?…``) stop it for minutes. A deterministic automaton has one way
only. Making it can take long too, so the work is counted and bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from homelab_llm.core.errors import InvalidInput
from homelab_llm.inference.kit.grammar import NOTHING, Alt, Chars, Expr, Grammar, Ref, Rep, Seq, Text, too_complex

MAX_STATES = 400
MAX_STEPS = 60_000

Span = tuple[int, int]
_PLAIN: tuple[Span, ...] = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))


class _Builder:
    """Thompson's construction: ``edges`` by state, ``jumps`` without a character."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.edges: list[list[tuple[Span, int]]] = []
        self.jumps: list[list[int]] = []

    def state(self) -> int:
        if len(self.edges) >= 4 * MAX_STATES:
            raise _too_complex(self._where)
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1

    def add(self, expr: Expr, start: int) -> int:
        """The state after ``expr`` when it begins in ``start``."""
        match expr:
            case Text(value):
                for character in value:
                    start = self._edge(start, ((ord(character), ord(character)),))
            case Chars():
                start = self._edge(start, tuple(_spans(expr)))
            case Seq(items):
                for item in items:
                    start = self.add(item, start)
            case Alt(options):
                start = self._join([self.add(option, start) for option in options])
            case Rep(item, least, most):
                start = self._repeat(item, least, most, start)
            case Ref():
                raise TypeError("a pattern has no rules")
        return start

    def _edge(self, start: int, spans: tuple[Span, ...]) -> int:
        end = self.state()
        self.edges[start].extend((span, end) for span in spans)
        return end

    def _join(self, ends: list[int]) -> int:
        end = self.state()
        for one in ends:
            self.jumps[one].append(end)
        return end

    def _repeat(self, item: Expr, least: int, most: int | None, start: int) -> int:
        for _ in range(least):
            start = self.add(item, start)
        if most is None:
            loop = self._join([start])
            self.jumps[self.add(item, loop)].append(loop)
            return self._join([loop])
        ends = [start]
        for _ in range(most - least):
            start = self.add(item, start)
            ends.append(start)
        return self._join(ends)


def _too_complex(where: str) -> InvalidInput:
    return too_complex(f"'{where}' is too complex to be enforced", where, MAX_STATES)


def add_automaton(grammar: Grammar, expr: Expr, where: str, name: str) -> Ref:
    """Rules ``name-n`` for the regular ``expr``, one for every state.

    Raises:
        InvalidInput: too many states, or too much work to find them.
    """
    builder = _Builder(where)
    first = builder.state()
    last = builder.add(expr, first)
    start = _closed(builder, {first})
    numbers = {start: 0}
    todo = [start]
    steps = 0
    for states in todo:
        edges = [edge for state in states for edge in builder.edges[state]]
        options: list[Expr] = [NOTHING] if last in states else []
        for target, spans in _moves(edges).items():
            steps += len(edges) + len(target)
            closed = _closed(builder, target)
            if closed not in numbers:
                numbers[closed] = len(numbers)
                todo.append(closed)
            ranges = tuple((chr(low), chr(high)) for low, high in spans)
            options.append(Seq((Chars(ranges), Ref(f"{name}-{numbers[closed]}"))))
            if steps > MAX_STEPS or len(numbers) > MAX_STATES:
                raise _too_complex(where)
        grammar.rules[f"{name}-{numbers[states]}"] = Alt(tuple(options))
    return Ref(f"{name}-0")


def _closed(builder: _Builder, states: set[int] | frozenset[int]) -> frozenset[int]:
    """With everything that can be reached without a character."""
    found, todo = set(states), list(states)
    while todo:
        for target in builder.jumps[todo.pop()]:
            if target not in found:
                found.add(target)
                todo.append(target)
    return frozenset(found)


def _moves(edges: list[tuple[Span, int]]) -> dict[frozenset[int], list[Span]]:
    """Where each character leads: the spans by their set of targets. One sweep over the spans' ends."""
    turns: dict[int, list[tuple[int, int]]] = {}
    for (low, high), target in edges:
        turns.setdefault(low, []).append((target, 1))
        turns.setdefault(high + 1, []).append((target, -1))
    found: dict[frozenset[int], list[Span]] = {}
    counts: dict[int, int] = {}
    at = 0
    for point in sorted(turns):
        if counts:
            spans = found.setdefault(frozenset(counts), [])
            if spans and spans[-1][1] == at - 1:
                spans[-1] = (spans[-1][0], point - 1)
            else:
                spans.append((at, point - 1))
        for target, change in turns[point]:
            counts[target] = counts.get(target, 0) + change
            if not counts[target]:
                del counts[target]
        at = point
    return found


def _spans(chars: Chars) -> Iterator[Span]:
    """The code points of a class; a negated one holds what stands in a JSON string as itself."""
    given = sorted((ord(low), ord(high)) for low, high in chars.ranges)
    if not chars.negated:
        yield from given
        return
    for low, high in _PLAIN:
        for barred_low, barred_high in given:
            if barred_high < low or barred_low > high:
                continue
            if low < barred_low:
                yield low, barred_low - 1
            low = max(low, barred_high + 1)
        if low <= high:
            yield low, high
