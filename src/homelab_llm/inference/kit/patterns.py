"""Patterns: the regular part of JSON Schema's ``pattern``, as a grammar of the characters inside a JSON string.

Known: literals, ``.``, classes, ``\\d \\w \\s`` and their opposites, groups, alternatives, ``? * + {m,n}``, and ``^``
and ``$`` at the ends. Everything else (look-around, back-references, anchors inside) is refused, never guessed.
"""

from __future__ import annotations

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.inference.kit.automaton import add_automaton
from homelab_llm.inference.kit.grammar import MAX_REPEAT, NOTHING, Alt, Chars, Expr, Grammar, Ref, Rep, Seq, Text

MAX_CHARACTERS = 512
_MAX_DEPTH = 12
_DIGITS = (("0", "9"),)
_WORD = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE = ((" ", " "), ("\u00a0", "\u00a0"))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_BARRED = (("\x00", "\x1f"), ('"', '"'), ("\\", "\\"), ("\x7f", "\x7f"))  # must be escaped in JSON, so never meant here
_META = frozenset("^$.*+?()[]{}|\\/-")

Ranges = tuple[tuple[str, str], ...]


def add_pattern(grammar: Grammar, source: str, where: str, name: str) -> Ref:
    """The characters of a string that fits ``source``, as rules called ``name-…``.

    Where the pattern leaves characters free, escapes are not among them.

    Raises:
        InvalidInput: too long or too complex.
        UnsupportedRequest: broken, or not in the known part.
    """
    if len(source) > MAX_CHARACTERS:
        raise InvalidInput(f"'{where}' is longer than {MAX_CHARACTERS} characters", field=where, limit=MAX_CHARACTERS)
    begins, ends = source.startswith("^"), _ends(source)
    body = source[begins : len(source) - ends]
    if "|" in body and (begins or ends) and _splits(body):
        raise _refuse(where, "an anchor belongs to one alternative only: put the alternatives in a group")
    free = Rep(Chars(_BARRED, negated=True))
    whole = Seq(((NOTHING if begins else free), _Reader(body, where).read(), (NOTHING if ends else free)))
    return add_automaton(grammar, whole, where, name)


def _refuse(where: str, why: str) -> UnsupportedRequest:
    return UnsupportedRequest(f"'{where}' cannot be enforced: {why}", field=where)


def _ends(source: str) -> bool:
    before = source[:-1]
    return source.endswith("$") and (len(before) - len(before.rstrip("\\"))) % 2 == 0


def _splits(body: str) -> bool:
    """Whether there is an alternative outside of every group and class."""
    depth, in_class, skip = 0, False, False
    for character in body:
        if skip:
            skip = False
        elif character == "\\":
            skip = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            return True
    return False


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, source: str, where: str) -> None:
        self._source = source
        self._where = where
        self._at = 0
        self._depth = 0

    def read(self) -> Expr:
        found = self._alternatives()
        if self._at < len(self._source):
            raise _refuse(self._where, "a ) without its (")
        return found

    def _peek(self) -> str:
        return self._source[self._at : self._at + 1]

    def _take(self) -> str:
        if not (character := self._peek()):
            raise _refuse(self._where, "it ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> Expr:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _refuse(self._where, "its groups are nested too deeply")
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self) -> Expr:
        items: list[Expr] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._quantified(self._atom()))
        return Seq(tuple(items))

    def _atom(self) -> Expr:
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return Chars(_BARRED, negated=True)
            case "\\":
                return self._escaped()
            case "^" | "$":
                raise _refuse(self._where, "an anchor in the middle")
            case "*" | "+" | "?" | "{":
                raise _refuse(self._where, f"{character} has nothing to repeat")
        return _literal(character, self._where)

    def _group(self) -> Expr:
        if self._peek() == "?":
            self._at += 1
            if self._take() != ":":
                raise _refuse(self._where, "look-around and named groups are not known")
        found = self._alternatives()
        if self._take() != ")":
            raise _refuse(self._where, "a ( without its )")
        return found

    def _quantified(self, item: Expr) -> Expr:
        character = self._peek()
        if character not in ("*", "+", "?", "{") or not character:
            return item
        self._at += 1
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(character) or self._counts()
        if self._peek() in ("?", "+"):
            raise _refuse(self._where, "lazy and possessive repetition are not known")
        if least > MAX_REPEAT or (most is not None and not least <= most <= MAX_REPEAT):
            raise _refuse(self._where, f"a repetition must be between 0 and {MAX_REPEAT} times")
        return Rep(item, least, most)

    def _counts(self) -> tuple[int, int | None]:
        end = self._source.find("}", self._at)
        low, comma, high = self._source[self._at : end].partition(",") if end >= 0 else ("", "", "")
        if not (low.isascii() and low.isdigit() and len(low) < 6 and (not high or (high.isdigit() and len(high) < 6))):
            raise _refuse(self._where, "a { without numbers")
        self._at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def _escaped(self) -> Expr:
        character = self._take()
        if character.lower() in _CLASSES:
            ranges = _CLASSES[character.lower()]
            return Chars((*ranges, *_BARRED), negated=True) if character.isupper() else Chars(ranges)
        return _literal(self._named(character), self._where)

    def _named(self, character: str) -> str:
        """The character an escape stands for."""
        if character in "ux":
            length = 4 if character == "u" else 2
            digits = self._source[self._at : self._at + length]
            if len(digits) < length or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise _refuse(self._where, "an escape without its digits")
            self._at += length
            return chr(int(digits, 16))
        if character in _META or not character.isalnum():
            return character
        raise _refuse(self._where, f"\\{character} is not known")

    def _class(self) -> Expr:
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[str, str]] = []
        while (character := self._take()) != "]":
            low = self._member(character)
            if isinstance(low, tuple):
                ranges.extend(low)
            elif self._peek() == "-" and self._source[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member(self._take())
                if isinstance(high, tuple) or high < low:
                    raise _refuse(self._where, "a range that runs backwards")
                ranges.append((low, high))
            else:
                ranges.append((low, low))
        if not ranges:
            raise _refuse(self._where, "an empty class")
        if negated:
            return Chars((*ranges, *_BARRED), negated=True)
        return _without_barred(tuple(ranges), self._where)

    def _member(self, character: str) -> str | Ranges:
        if character != "\\":
            return character
        named = self._take()
        if named in _CLASSES:
            return _CLASSES[named]
        if named.lower() in _CLASSES:
            raise _refuse(self._where, f"\\{named} inside a class is not known")
        return self._named(named)


def _literal(character: str, where: str) -> Expr:
    """One character as it stands inside a JSON string."""
    if character in '"\\':
        return Text("\\" + character)
    if character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff":
        raise _refuse(where, "control characters are not known")
    return Text(character)


def _without_barred(ranges: Ranges, where: str) -> Expr:
    """The class, with characters that JSON wants escaped given as their escapes."""
    kept: list[tuple[str, str]] = []
    escaped: list[Expr] = []
    for low, high in ranges:
        start = low
        for barred in ('"', "\\"):
            if start <= barred <= high:
                escaped.append(Text("\\" + barred))
                if start < barred:
                    kept.append((start, chr(ord(barred) - 1)))
                start = chr(ord(barred) + 1)
        if start <= high:
            kept.append((start, high))
    if any(low < " " or low <= "\x7f" <= high or (low <= "\udfff" and high >= "\ud800") for low, high in kept):
        raise _refuse(where, "control characters are not known")
    found: list[Expr] = [Chars(tuple(kept))] if kept else []
    return Alt((*found, *escaped)) if escaped else found[0]
