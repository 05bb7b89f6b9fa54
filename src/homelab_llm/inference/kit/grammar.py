"""Grammars: what a model may say, as a small tree, and its text in llama.cpp's notation (GBNF).

Notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. A grammar that leaves here is bounded,
cannot recurse without consuming a character, and can be satisfied: the engine's own parser is never asked to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from homelab_llm.core.errors import InvalidInput

MAX_NODES = 20_000
MAX_REPEAT = 2_000  # llama.cpp refuses more
_MAX_TRIE_DEPTH = 40


def too_complex(message: str, where: str, limit: int, hint: str = "") -> InvalidInput:
    """What could be enforced, but would cost an engine too much; told apart by the fact ``too_complex``."""
    return InvalidInput(message, hint=hint, field=where, limit=limit, too_complex=True)


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly these characters."""

    value: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character: inside ``ranges`` (inclusive), or outside them when ``negated``."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """What the rule of this name says."""

    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other; empty = nothing."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of them; empty = impossible."""

    options: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Rep:
    """``least`` to ``most`` times; None = without end."""

    item: Expr
    least: int = 0
    most: int | None = None


Expr = Text | Chars | Ref | Seq | Alt | Rep
NOTHING = Seq(())


def seq(*items: Expr | str) -> Expr:
    """One after the other; strings are taken as they are."""
    return Seq(tuple(Text(item) if isinstance(item, str) else item for item in items))


def alt(*options: Expr | str) -> Expr:
    """One of them."""
    return Alt(tuple(Text(option) if isinstance(option, str) else option for option in options))


def chars(*ranges: str, negated: bool = False) -> Expr:
    """A set of characters: each range is one character, or two with everything between."""
    return Chars(tuple((part[0], part[-1]) for part in ranges), negated)


def maybe(item: Expr) -> Expr:
    """Once or not at all."""
    return Rep(item, 0, 1)


def one_of(words: Sequence[str], depth: int = 0) -> Expr:
    """One of many texts, common beginnings taken together: the engine then follows one way, and not one for each."""
    if len(set(words)) <= 1 or depth > _MAX_TRIE_DEPTH:
        return Alt(tuple(Text(word) for word in dict.fromkeys(words)))
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word)
    options: list[Expr] = []
    for group in by_first.values():
        common = _common_beginning(group)
        rest = one_of([word[len(common) :] for word in group], depth + 1)
        options.append(Seq((Text(common), rest)) if any(word != common for word in group) else Text(common))
    return Alt(tuple(options))


def _common_beginning(words: Sequence[str]) -> str:
    first, last = min(words), max(words)
    for at, character in enumerate(first):
        if last[at] != character:
            return first[:at]
    return first


@dataclass(slots=True)
class Grammar:
    """Rules by name. ``root`` is where an answer begins."""

    rules: dict[str, Expr] = field(default_factory=dict)

    def add(self, name: str, expr: Expr) -> Ref:
        """Define a rule, or keep it when it is there."""
        self.rules.setdefault(name, expr)
        return Ref(name)

    @property
    def size(self) -> int:
        """Parts, with counted repetitions written out: what an engine will hold."""
        parts = (part for rule in self.rules.values() for part in _walk(rule))
        return sum(1 + max(part.least, part.most or 0) if isinstance(part, Rep) else 1 for part in parts)

    def text(self, where: str = "") -> str:
        """The grammar in GBNF, checked.

        Args:
            where: the field of the request it was made from, for messages.

        Raises:
            InvalidInput: too large, recursive without end, or impossible to satisfy.
        """
        productive = self.check(where)
        kept = {name: _prune(rule, productive) for name, rule in self.rules.items() if name in productive}
        return "\n".join(f"{name} ::= {_render(rule)}" for name, rule in kept.items()) + "\n"

    def check(self, where: str = "") -> frozenset[str]:
        """Raise as ``text``; the rules that can be satisfied."""
        if self.size > MAX_NODES:
            raise too_complex(f"'{where}' is too large: its grammar has {self.size} parts", where, MAX_NODES)
        productive = _closure(self.rules, _productive)
        if "root" not in productive:
            raise InvalidInput(f"'{where}' cannot be satisfied: no finite answer fits it", field=where)
        nullable = _closure(self.rules, _nullable)
        parts = (part for rule in self.rules.values() for part in _walk(rule))
        if any(isinstance(part, Rep) and part.most != 1 and _nullable(part.item, nullable) for part in parts):
            raise InvalidInput(f"'{where}' repeats something that may be empty", field=where)
        if loop := _left_loop(self.rules, nullable):
            raise InvalidInput(f"'{where}' refers to itself without end ({loop})", field=where)
        return productive


def _parts(expr: Expr) -> Sequence[Expr]:
    match expr:
        case Seq(items) | Alt(items):
            return items
        case Rep(item):
            return (item,)
        case _:
            return ()


def _walk(expr: Expr) -> Iterator[Expr]:
    stack = [expr]
    while stack:
        found = stack.pop()
        yield found
        stack.extend(_parts(found))


def _closure(rules: Mapping[str, Expr], holds: Callable[[Expr, Set[str]], bool]) -> frozenset[str]:
    """The smallest set of rules for which ``holds`` is true of each, given the set."""
    found: set[str] = set()
    order = list(rules.items())
    size = -1
    while len(found) > size:  # there and back again: rules mostly stand after those they refer to
        size = len(found)
        for name, rule in order:
            if name not in found and holds(rule, found):
                found.add(name)
        order.reverse()
    return frozenset(found)


def _productive(expr: Expr, rules: Set[str]) -> bool:
    match expr:
        case Ref(name):
            return name in rules
        case Seq(items):
            return all(_productive(item, rules) for item in items)
        case Alt(options):
            return any(_productive(option, rules) for option in options)
        case Rep(item, least):
            return least == 0 or _productive(item, rules)
        case _:
            return True


def _prune(expr: Expr, rules: Set[str]) -> Expr:
    """A productive expression without its impossible parts: GBNF has no word for them."""
    match expr:
        case Seq(items):
            return Seq(tuple(_prune(item, rules) for item in items))
        case Alt(options):
            return Alt(tuple(_prune(option, rules) for option in options if _productive(option, rules)))
        case Rep(item, least, most):
            return Rep(_prune(item, rules), least, most) if _productive(item, rules) else NOTHING
        case _:
            return expr


def _nullable(expr: Expr, rules: Set[str]) -> bool:
    match expr:
        case Text(value):
            return not value
        case Chars():
            return False
        case Ref(name):
            return name in rules
        case Seq(items):
            return all(_nullable(item, rules) for item in items)
        case Alt(options):
            return any(_nullable(option, rules) for option in options)
        case Rep(item, least):
            return least == 0 or _nullable(item, rules)


def _firsts(expr: Expr, nullable: Set[str]) -> Iterator[str]:
    """Rules that may be entered before a character is consumed."""
    match expr:
        case Ref(name):
            yield name
        case Seq(items):
            for item in items:
                yield from _firsts(item, nullable)
                if not _nullable(item, nullable):
                    return
        case Alt(options):
            for option in options:
                yield from _firsts(option, nullable)
        case Rep(item):
            yield from _firsts(item, nullable)
        case _:
            return


def _left_loop(rules: Mapping[str, Expr], nullable: Set[str]) -> str:
    """A rule that can begin with itself, or an empty string."""
    clear = _closure(rules, lambda rule, done: set(_firsts(rule, nullable)) <= done)
    return min(rules.keys() - clear, default="")


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}


def _escape(text: str, also: str = "") -> str:
    out: list[str] = []
    for character in text:
        if character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif character in also or not character.isprintable():
            code = ord(character)
            out.append(f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}")
        else:
            out.append(character)
    return "".join(out)


def _render(expr: Expr) -> str:
    match expr:
        case Text(value):
            return f'"{_escape(value)}"'
        case Chars(ranges, negated):
            inner = "".join(
                _escape(low, "^]-[") + (f"-{_escape(high, '^]-[')}" if high != low else "") for low, high in ranges
            )
            return f"[{'^' if negated else ''}{inner}]"
        case Ref(name):
            return name
        case Seq(items):
            return " ".join(_inner(item) for item in items) or '""'
        case Alt(options):
            return " | ".join(_render(option) for option in options)
        case Rep(item, least, most):
            return f"{_inner(item)}{_times(least, most)}"


def _inner(expr: Expr) -> str:
    return f"({_render(expr)})" if isinstance(expr, Seq | Alt) else _render(expr)


def _times(least: int, most: int | None) -> str:
    if (least, most) == (0, 1):
        return "?"
    if most is None and least in (0, 1):
        return "*" if least == 0 else "+"
    return f"{{{least},{'' if most is None else most}}}"
