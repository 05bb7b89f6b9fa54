"""The grammar of JSON itself: values, strings without control characters, numbers of bounded length.

RFC 8259, narrowed where freedom only lets a model run away: numbers have at most 16 digits in a row, whitespace is one
space or one line break with an indentation, and a ``\\u`` escape never makes half a surrogate pair.
"""

from __future__ import annotations

from collections.abc import Collection

from homelab_llm.inference.kit.grammar import Expr, Grammar, Ref, Rep, Text, alt, chars, maybe, seq

_DIGIT = chars("09")
_HEX = chars("09", "af", "AF")
_PLAIN = chars('"', "\\", "\x00\x1f", "\x7f", negated=True)
_MAX_DIGITS = 16


def space(grammar: Grammar) -> Ref:
    """Optional whitespace between the parts of a value."""
    return grammar.add("ws", maybe(alt(" ", seq(Text("\n"), Rep(chars(" ", "\t"), 0, 20)))))


def char(grammar: Grammar) -> Ref:
    """One character inside a string, as it is or escaped."""
    not_surrogate = alt(
        seq(chars("09", "ac", "AC", "ef", "EF"), Rep(_HEX, 3, 3)), seq(chars("d", "D"), chars("07"), Rep(_HEX, 2, 2))
    )
    escaped = alt(chars('"', "\\", "/", "b", "f", "n", "r", "t"), seq("u", not_surrogate))
    return grammar.add("char", alt(_PLAIN, seq("\\", escaped)))


def string(grammar: Grammar) -> Ref:
    """Any string."""
    return grammar.add("string", seq('"', Rep(char(grammar)), '"'))


def integer(grammar: Grammar) -> Ref:
    """Any whole number."""
    return grammar.add("integer", seq(maybe(Text("-")), _whole()))


def fraction(grammar: Grammar) -> Ref:
    """What may follow the whole part of a number, without an exponent."""
    return grammar.add("fraction", maybe(seq(".", Rep(_DIGIT, 1, _MAX_DIGITS))))


def number(grammar: Grammar) -> Ref:
    """Any number; exponents have at most two digits, so that every reader can hold it."""
    exponent = maybe(seq(chars("e", "E"), maybe(chars("+", "-")), Rep(_DIGIT, 1, 2)))
    return grammar.add("number", seq(integer(grammar), fraction(grammar), exponent))


def _whole() -> Expr:
    return alt("0", seq(chars("19"), Rep(_DIGIT, 0, _MAX_DIGITS - 1)))


def boolean(grammar: Grammar) -> Ref:
    """True or false."""
    return grammar.add("boolean", alt("true", "false"))


def value(grammar: Grammar) -> Ref:
    """Any value."""
    if "value" not in grammar.rules:
        grammar.rules["value"] = alt()  # taken, before its parts refer to it
        parts = (free_object(grammar), free_array(grammar), string(grammar), number(grammar), boolean(grammar))
        grammar.rules["value"] = alt(*parts, "null")
    return Ref("value")


def listed(grammar: Grammar, item: Expr, least: int = 0, most: int | None = None) -> Expr:
    """Items with commas between them, ``least`` to ``most`` of them, without brackets."""
    if most == 0:
        return seq(space(grammar))
    ws = space(grammar)
    more = Rep(seq(",", ws, item, ws), max(0, least - 1), None if most is None else most - 1)
    some = seq(item, ws, more)
    return seq(ws, some if least else maybe(some))


def free_object(grammar: Grammar) -> Ref:
    """Any object."""
    if "object" not in grammar.rules:
        grammar.rules["object"] = alt()
        member = grammar.add("member", seq(string(grammar), space(grammar), ":", space(grammar), value(grammar)))
        grammar.rules["object"] = seq("{", listed(grammar, member), "}")
    return Ref("object")


def free_array(grammar: Grammar) -> Ref:
    """Any array."""
    if "array" not in grammar.rules:
        grammar.rules["array"] = alt()
        grammar.rules["array"] = seq("[", listed(grammar, value(grammar)), "]")
    return Ref("array")


def other_string(grammar: Grammar, taken: Collection[str], name: str) -> Ref:
    """Any string but these, in whatever spelling: while it could still become one of them, escapes are not allowed.

    ``name`` prefixes the rules it makes, one for every common beginning.
    """
    begun = sorted({word[:length] for word in taken for length in range(len(word) + 1)} or {""})
    names = {beginning: f"{name}-{number}" for number, beginning in enumerate(begun)}
    rest = seq(Rep(char(grammar)), '"')
    for beginning in begun:
        following = sorted({word[len(beginning)] for word in taken if word.startswith(beginning) and word != beginning})
        options = [seq(character, Ref(names[beginning + character])) for character in following if _is_plain(character)]
        barred = ('"', "\\", "\x00\x1f", "\x7f", *following)
        options.append(seq(chars(*barred, negated=True), rest))
        if beginning not in taken:
            options.append(Text('"'))
        grammar.add(names[beginning], alt(*options))
    return grammar.add(name, seq('"', Ref(names[""])))


def _is_plain(character: str) -> bool:
    return character not in '"\\\x7f' and character >= " "
