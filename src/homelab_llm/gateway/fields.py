"""Fields: the closed set of checks a request's fields are made of. Pure; each check returns the value a worker gets.

A check also tells its JSON Schema, from which the API description is built. ``null`` means "not given".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from homelab_llm.core.errors import BodyTooLarge, HomelabError, InvalidInput, UnknownField, UnsupportedRequest
from homelab_llm.core.units import parse_duration


class Check(Protocol):
    """Checks one value."""

    def __call__(self, value: Any, path: str) -> Any:
        """The value to pass on; ``path`` names the field in errors.

        Raises:
            InvalidInput: with ``field``.
        """
        ...

    def schema(self) -> dict[str, Any]:
        """What it takes, as JSON Schema."""
        ...


DROP = object()  # what a check returns for a field that is accepted and not passed on


def shown(text: object, limit: int = 60) -> str:
    """``text`` shortened and escaped, fit to be repeated in an error."""
    raw = text if isinstance(text, str) else repr(text)
    cut = raw if len(raw) <= limit else raw[: limit - 3] + "..."
    return cut.encode("unicode_escape").decode("ascii")


def wrong(path: str, wanted: str) -> InvalidInput:
    """The error of a value that is not what ``path`` takes."""
    return InvalidInput(f"{path!r} must be {wanted}", field=path)


def too_many(path: str, limit: int) -> BodyTooLarge:
    """The error of a list longer than its bound."""
    return BodyTooLarge(f"{path!r} has more than {limit} entries", field=path, limit=limit)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in a range."""

    low: int
    high: int

    def __call__(self, value: Any, path: str) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise wrong(path, f"a whole number from {self.low} to {self.high}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in a range."""

    low: float
    high: float

    def __call__(self, value: Any, path: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not self.low <= value <= self.high:
            raise wrong(path, f"a number from {self.low:g} to {self.high:g}")
        number: float = value
        return number

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Seed:
    """A 64-bit whole number, folded to the 32 bits that engines take; -1 is random."""

    def __call__(self, value: Any, path: str) -> int:
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise wrong(path, "a whole number of at most 64 bits")
        return value if value == -1 else value % (2**32 - 1)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "format": "int64"}


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def __call__(self, value: Any, path: str) -> bool:
        if type(value) is not bool:
            raise wrong(path, "true or false")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text:
    """A string; ``limit`` is in characters, 0 = bounded by the body alone."""

    limit: int = 0
    pattern: str = ""
    empty: bool = True

    def __call__(self, value: Any, path: str) -> str:
        if type(value) is not str:
            raise wrong(path, "a string")
        if not self.empty and not value:
            raise wrong(path, "a string that is not empty")
        if self.limit and len(value) > self.limit:
            raise BodyTooLarge(f"{path!r} is longer than {self.limit} characters", field=path, limit=self.limit)
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise wrong(path, f"a string like {self.pattern}")
        return value

    def schema(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "string"}
        if not self.empty:
            out["minLength"] = 1
        if self.limit:
            out["maxLength"] = self.limit
        if self.pattern:
            out["pattern"] = f"^{self.pattern}$"
        return out


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def __call__(self, value: Any, path: str) -> str:
        if type(value) is not str or value not in self.words:
            raise wrong(path, f"one of {', '.join(self.words)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with ``low`` to ``high`` entries."""

    item: Check
    high: int
    low: int = 0

    def __call__(self, value: Any, path: str) -> list[Any]:
        if type(value) is not list:
            raise wrong(path, "a list")
        if len(value) > self.high:
            raise too_many(path, self.high)
        if len(value) < self.low:
            raise wrong(path, f"a list with at least {self.low} entries")
        item = self.item
        return [item(entry, f"{path}[{index}]") for index, entry in enumerate(value)]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.schema(), "minItems": self.low, "maxItems": self.high}


@dataclass(frozen=True, slots=True)
class Tokens:
    """A list of token ids; checked without a call per entry, because there may be many."""

    high: int

    def __call__(self, value: Any, path: str) -> list[int]:
        if type(value) is not list or not value:
            raise wrong(path, "a list of token ids that is not empty")
        if len(value) > self.high:
            raise too_many(path, self.high)
        if set(map(type, value)) != {int} or min(value) < 0 or max(value) >= 2**31:
            raise wrong(path, "a list of token ids (whole numbers from 0)")
        return value

    def schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            "minItems": 1,
            "maxItems": self.high,
        }


@dataclass(frozen=True, slots=True)
class Either:
    """The first alternative whose test accepts the value; ``wanted`` names them all in the error."""

    wanted: str
    choices: tuple[tuple[Callable[[Any], bool], Check], ...]

    def __call__(self, value: Any, path: str) -> Any:
        for fits, check in self.choices:
            if fits(value):
                return check(value, path)
        raise wrong(path, self.wanted)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [check.schema() for _, check in self.choices]}


@dataclass(frozen=True, slots=True)
class Opaque:
    """A JSON object that is passed on as it is, with at most ``values`` values in it."""

    values: int = 5000

    def __call__(self, value: Any, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise wrong(path, "an object")
        left = self.values
        level: list[Any] = [value]
        while level:
            container = level.pop()
            items = list(container.values()) if type(container) is dict else container
            left -= len(items)
            if left < 0:
                raise too_many(path, self.values)
            level += [item for item in items if type(item) in (dict, list)]
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}


@dataclass(frozen=True, slots=True)
class Bias:
    """``{token id: -100 … 100}``."""

    high: int = 1024

    def __call__(self, value: Any, path: str) -> dict[str, float]:
        if type(value) is not dict:
            raise wrong(path, "an object of token ids and numbers")
        if len(value) > self.high:
            raise too_many(path, self.high)
        number = Number(-100, 100)
        for token, bias in value.items():
            if not token.isascii() or not token.isdigit() or len(token) > 10:
                raise wrong(path, "an object whose keys are token ids")
            number(bias, f"{path}.{token}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": Number(-100, 100).schema(), "maxProperties": self.high}


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, or text such as ``5m``; negative = for ever. Returns seconds."""

    def __call__(self, value: Any, path: str) -> float:
        if type(value) in (int, float, str) and len(str(value)) <= 40:
            try:
                seconds = parse_duration(value)
            except HomelabError as error:
                raise InvalidInput(f"{path!r}: {error.message}", hint=error.hint, field=path) from error
            if math.isfinite(seconds):
                return seconds
        raise wrong(path, "seconds or a duration such as 5m")

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, {"type": "string"}]}


@dataclass(frozen=True, slots=True)
class NoEffect:
    """A field of OpenAI's API that means nothing on one's own machine: accepted on purpose, and dropped."""

    def __call__(self, value: Any, path: str) -> object:  # noqa: ARG002
        return DROP

    def schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, slots=True)
class Only:
    """A field of which only some values can be served; those are dropped, others refused with the reason."""

    values: tuple[Any, ...]
    reason: str
    hint: str = ""

    def __call__(self, value: Any, path: str) -> object:
        if any(type(value) is type(served) and value == served for served in self.values):
            return DROP
        raise UnsupportedRequest(f"{path!r}: {self.reason}", hint=self.hint, field=path)

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.values)} if self.values else {"not": {}}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an object: its check and what it means."""

    check: Check
    says: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """An object with known fields; rebuilt from them, so nothing unknown is passed on."""

    fields: Mapping[str, Field]
    needed: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "needed", tuple(name for name, known in self.fields.items() if known.required))

    def __call__(self, value: Any, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise wrong(path or "body", "an object")
        fields = self.fields
        out: dict[str, Any] = {}
        for name, given in value.items():
            known = fields.get(name)
            if known is None:
                raise unknown(name, path, fields)
            if given is not None:
                checked = known.check(given, f"{path}.{name}" if path else name)
                if checked is not DROP:
                    out[name] = checked
        for name in self.needed:
            if name not in out:
                where = f"{path}.{name}" if path else name
                raise InvalidInput(f"{where!r} is required", field=where)
        return out

    def schema(self) -> dict[str, Any]:
        properties = {
            name: {**known.check.schema(), **({"description": known.says} if known.says else {})}
            for name, known in self.fields.items()
        }
        out: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**out, "required": list(self.needed)} if self.needed else out


def unknown(name: str, path: str, known: Iterable[str]) -> UnknownField:
    """The error of a field nobody knows, naming the closest that is known."""
    closest = difflib.get_close_matches(name[:60].lower(), list(known), 1, 0.6)
    where = f"{path}.{shown(name)}" if path else shown(name)
    return UnknownField(
        f"unknown field {where!r}",
        hint=f"did you mean {closest[0]!r}?" if closest else "the fields are listed at /openapi.json",
        field=where,
        closest=closest,
    )
