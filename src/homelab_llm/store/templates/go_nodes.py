"""What a parsed Go template consists of: values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """Text as it is printed."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B``; no names is the dot itself."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """``$name.A.B``; the empty name is ``$``, what the template was called with."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal, true, false or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Function:
    """A name that is called when it stands first in a command."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """``(pipeline).A.B``."""

    pipe: Pipe
    names: tuple[str, ...] = ()


Operand: TypeAlias = "Field | Variable | Constant | Function | Group"


@dataclass(frozen=True, slots=True)
class Pipe:
    """``declared := command | command``; each command is its words. ``assigns``: ``=`` in place of ``:=``."""

    commands: tuple[tuple[Operand, ...], ...]
    line: int
    declared: tuple[str, ...] = ()
    assigns: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """``{{ pipeline }}``: printed, unless it declares or assigns."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """``if``, ``with`` or ``range``, with what stands after ``else``."""

    kind: Literal["if", "with", "range"]
    pipe: Pipe
    body: Block
    otherwise: Block = ()


@dataclass(frozen=True, slots=True)
class Call:
    """``{{ template "name" pipeline }}``."""

    name: str
    pipe: Pipe | None
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """``{{ break }}`` or ``{{ continue }}``."""

    word: Literal["break", "continue"]
    line: int


Node: TypeAlias = "Text | Action | Branch | Call | Jump"
Block: TypeAlias = "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """The template itself, and those it defines by name."""

    body: Block
    defined: dict[str, Block]
