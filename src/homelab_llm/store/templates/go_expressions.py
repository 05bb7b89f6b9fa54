"""Pipelines of Go templates as expressions of Jinja. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.templates.go_fields import ELEMENTS, FIELDS, MAPPINGS, Kind, Value, printed
from homelab_llm.store.templates.go_nodes import Constant, Function, Group, Operand, Pipe, Variable
from homelab_llm.store.templates.go_scope import Scope
from homelab_llm.store.templates.go_tokens import quoted, refused

_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_VERB = re.compile(r"%(.)", re.DOTALL)


def expression(pipe: Pipe, scope: Scope) -> Value:
    """The value of a pipeline; what it declares is the caller's business.

    Raises:
        InvalidTemplate: something in it that Jinja's messages do not have; named with its line.
    """
    return _Expression(scope, pipe.line).pipe(pipe)


class _Expression:
    def __init__(self, scope: Scope, line: int) -> None:
        self._scope = scope
        self._line = line

    def pipe(self, pipe: Pipe) -> Value:
        found: Value | None = None
        for command in pipe.commands:
            found = self._command(command, found)
        assert found is not None  # noqa: S101 — the parser gives every pipeline a command
        return found

    def _command(self, words: Sequence[Operand], piped: Value | None) -> Value:
        first = words[0]
        if isinstance(first, Function):
            given = [self._operand(word) for word in words[1:]]
            return self._call(first.name, given if piped is None else [*given, piped])
        if len(words) > 1 or piped is not None:
            raise self._refused("something that is no function is given arguments")
        return self._operand(first)

    def _operand(self, word: Operand) -> Value:
        if isinstance(word, Constant):
            return _constant(word.value)
        if isinstance(word, Function):
            return self._call(word.name, [])
        if isinstance(word, Group):
            if word.pipe.declared:
                raise self._refused("a variable declared inside parentheses")
            return self._fields(self.pipe(word.pipe), word.names)
        if isinstance(word, Variable):
            return self._fields(self._scope.variable(word.name, self._line), word.names)
        return self._fields(self._scope.dot, word.names)

    def _fields(self, value: Value, names: Sequence[str]) -> Value:
        for name in names:
            value = self._field(value, name)
        return value

    def _field(self, value: Value, name: str) -> Value:
        if value.kind == "root":
            self._scope.used.add(name)
            known = self._scope.root
        elif value.kind in MAPPINGS or value.kind == "value":
            return Value(f"{value.code}[{quoted(name)}]", ELEMENTS[value.kind])
        else:
            known = FIELDS.get(value.kind, {})
        if name not in known:
            raise self._refused(f".{name} is not known of {_article(value.kind)}")
        code, kind = known[name]
        return Value(code.replace("@", value.code), kind)

    # --- functions ------------------------------------------------------------------------------------------

    def _call(self, name: str, given: list[Value]) -> Value:
        if name in _COMPARED:
            return self._compare(name, given)
        known: dict[str, tuple[int, int, Callable[[list[Value]], Value]]] = {
            "and": (1, 99, lambda values: self._either("and", values)),
            "or": (1, 99, lambda values: self._either("or", values)),
            "not": (1, 1, lambda values: Value(f"(not {values[0].code})", "flag")),
            "len": (1, 1, lambda values: Value(f"({values[0].code} | length)", "number")),
            "index": (1, 9, self._index),
            "slice": (1, 3, self._slice),
            "json": (1, 1, self._json),
            "print": (1, 99, self._print),
            "println": (1, 99, lambda values: Value(f"({self._print(values).code} ~ '\\n')", "text")),
            "printf": (1, 99, self._printf),
            "currentDate": (0, 0, lambda _: Value("strftime_now('%Y-%m-%d')", "text")),
        }
        if name not in known:
            raise self._refused(f"the function {name[:40]} is not known")
        least, most, make = known[name]
        if not least <= len(given) <= most:
            raise self._refused(f"{name} with {len(given)} arguments")
        return make(given)

    def _compare(self, name: str, given: list[Value]) -> Value:
        if len(given) < 2 or (len(given) > 2 and name != "eq"):
            raise self._refused(f"{name} with {len(given)} arguments")
        first, sign = given[0].code, _COMPARED[name]
        return Value("(" + " or ".join(f"{first} {sign} {other.code}" for other in given[1:]) + ")", "flag")

    def _either(self, word: str, given: list[Value]) -> Value:
        kinds = {value.kind for value in given}
        kind: Kind = given[0].kind if len(kinds) == 1 else "value"
        return Value("(" + f" {word} ".join(value.code for value in given) + ")", kind)

    def _index(self, given: list[Value]) -> Value:
        value = given[0]
        for key in given[1:]:
            if value.kind not in ELEMENTS:
                raise self._refused(f"index into {_article(value.kind)}")
            value = Value(f"{value.code}[{key.code}]", ELEMENTS[value.kind])
        return value

    def _slice(self, given: list[Value]) -> Value:
        value, *bounds = given
        if value.kind in MAPPINGS or value.kind not in {*ELEMENTS, "text"}:
            raise self._refused(f"slice of {_article(value.kind)}")
        begin, end = [*(bound.code for bound in bounds), "", ""][:2]
        return Value(f"{value.code}[{begin}:{end}]", value.kind)

    def _json(self, given: list[Value]) -> Value:
        (value,) = given
        if value.kind == "root":
            raise self._refused("json of everything")
        if value.kind == "arguments":
            return Value(printed(value), "text")
        return Value(f"({value.code} | tojson)", "text")

    def _print(self, given: list[Value]) -> Value:
        if len(given) > 1 and any(value.kind != "text" for value in given):
            raise self._refused("print of several values that are not text")
        return Value("(" + " ~ ".join(self._printable(value) for value in given) + ")", "text")

    def _printf(self, given: list[Value]) -> Value:
        form, rest = given[0], list(given[1:])
        if not (form.kind == "text" and form.code.startswith("'")):
            raise self._refused("printf with a format that is not a literal")
        # The literal is split at its verbs; both halves of "%%" stay text.
        pieces: list[str] = []
        literal, at = form.code[1:-1], 0
        for verb in _VERB.finditer(literal):
            pieces.append(f"'{literal[at : verb.start()]}'")
            at = verb.end()
            if verb[1] == "%":
                pieces.append("'%'")
            elif verb[1] in "svdq" and rest:
                value = rest.pop(0)
                pieces.append(f"({value.code} | tojson)" if verb[1] == "q" else self._printable(value))
            else:
                raise self._refused(f"printf with %{verb[1]}" if rest else "printf with too few arguments")
        pieces.append(f"'{literal[at:]}'")
        if rest:
            raise self._refused("printf with too many arguments")
        return Value("(" + " ~ ".join(piece for piece in pieces if piece != "''") + ")" if pieces else "''", "text")

    def _printable(self, value: Value) -> str:
        if value.kind == "root":
            raise self._refused("everything cannot be printed")
        return printed(value)

    def _refused(self, what: str) -> InvalidTemplate:
        return refused(self._line, what)


def _constant(value: str | int | float | bool | None) -> Value:
    if isinstance(value, bool):
        return Value("true" if value else "false", "flag")
    if value is None:
        return Value("none", "nothing")
    return Value(quoted(value), "text") if isinstance(value, str) else Value(f"{value}", "number")


def _article(kind: Kind) -> str:
    return "the root" if kind == "root" else f"a {kind.replace('_', ' ')}"
