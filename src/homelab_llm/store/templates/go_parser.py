"""The parser of Go's ``text/template``: tokens in, nodes out. Pure; a recursive descent with a bounded depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from homelab_llm.store.templates.go_nodes import (
    Action,
    Block,
    Branch,
    Call,
    Constant,
    Field,
    Function,
    GoTemplate,
    Group,
    Jump,
    Node,
    Operand,
    Pipe,
    Text,
    Variable,
)
from homelab_llm.store.templates.go_tokens import Token, refused, tokens

MAX_DEPTH = 60
_KEYWORDS = frozenset({"if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"})
_CONSTANTS = {"true": True, "false": False, "nil": None}


def parse(source: str) -> GoTemplate:
    """The nodes of a Go template.

    Raises:
        InvalidTemplate: it is none; the line is named.
    """
    return _Parser(tokens(source)).whole()


class _Parser:
    def __init__(self, stream: list[Token]) -> None:
        self._stream = stream
        self._at = 0
        self._depth = 0
        self._loops = 0
        self._defined: dict[str, Block] = {}
        self._branches: dict[str, Callable[[Token], Node]] = {
            "if": lambda token: self._branch("if", token),
            "with": lambda token: self._branch("with", token),
            "range": lambda token: self._branch("range", token),
            "template": self._call,
            "block": self._block,
            "break": self._jump,
            "continue": self._jump,
        }

    def whole(self) -> GoTemplate:
        body = self._list(())
        return GoTemplate(body, self._defined)

    # --- blocks ---------------------------------------------------------------------------------------------

    def _list(self, ends: tuple[str, ...], opened: Token | None = None) -> Block:
        """Nodes up to one of the words ``ends``, which is left to be read; without them up to the end."""
        self._deeper(opened)
        found: list[Node] = []
        while self._at < len(self._stream):
            token = self._stream[self._at]
            if token.kind == "text":
                self._at += 1
                found.append(Text(token.text, token.line))
                continue
            word = self._stream[self._at + 1]
            if word.kind == "word" and word.text in ends:
                self._depth -= 1
                return tuple(found)
            self._at += 1
            found += self._node(token)
        if ends and opened is not None:
            raise refused(opened.line, "the block that begins here has no {{ end }}")
        self._depth -= 1
        return tuple(found)

    def _node(self, opened: Token) -> list[Node]:
        word = self._peek()
        if word.kind == "close":
            raise refused(opened.line, "an empty action")
        if word.kind != "word" or word.text not in _KEYWORDS:
            return [Action(self._whole_pipe(opened.line))]
        self._at += 1
        if word.text == "define":
            self._define(word)
            return []
        if word.text in ("else", "end"):
            raise refused(word.line, f"{{{{ {word.text} }}}} without a block")
        return [self._branches[word.text](word)]

    def _branch(self, kind: Literal["if", "with", "range"], word: Token) -> Branch:
        pipe = self._whole_pipe(word.line, many=kind == "range")
        self._loops += kind == "range"
        body = self._list(("else", "end"), word)
        self._loops -= kind == "range"
        self._at += 1
        if self._take().text == "end":
            self._close()
            return Branch(kind, pipe, body)
        if (again := self._peek()).kind == "word" and again.text in ("if", "with"):
            self._at += 1
            self._deeper(again)
            otherwise = self._branch("if" if again.text == "if" else "with", again)  # its end is ours too
            self._depth -= 1
            return Branch(kind, pipe, body, (otherwise,))
        self._close()
        rest = self._list(("end",), word)
        self._end()
        return Branch(kind, pipe, body, rest)

    def _define(self, word: Token) -> None:
        name = self._name(word)
        self._close()
        self._keep(name, self._list(("end",), word), word)
        self._end()

    def _call(self, word: Token) -> Call:
        name = self._name(word)
        if self._peek().kind == "close":
            self._close()
            return Call(name, None, word.line)
        return Call(name, self._whole_pipe(word.line), word.line)

    def _block(self, word: Token) -> Call:
        name = self._name(word)
        pipe = self._whole_pipe(word.line)
        self._keep(name, self._list(("end",), word), word)
        self._end()
        return Call(name, pipe, word.line)

    def _jump(self, word: Token) -> Jump:
        if not self._loops:
            raise refused(word.line, f"{{{{ {word.text} }}}} outside of a range")
        self._close()
        return Jump("break" if word.text == "break" else "continue", word.line)

    def _keep(self, name: str, body: Block, word: Token) -> None:
        if name in self._defined:
            raise refused(word.line, f"the template {name[:40]!r} is defined twice")
        self._defined[name] = body

    def _name(self, word: Token) -> str:
        token = self._take()
        if token.kind != "value" or not isinstance(token.value, str):
            raise refused(word.line, f"{{{{ {word.text} }}}} needs a name in quotes")
        return token.value

    def _end(self) -> None:
        self._at += 2  # {{ end
        self._close()

    # --- pipelines ------------------------------------------------------------------------------------------

    def _whole_pipe(self, line: int, *, many: bool = False) -> Pipe:
        pipe = self._pipe(line, many=many)
        self._close()
        return pipe

    def _pipe(self, line: int, *, many: bool = False) -> Pipe:
        declared, assigns = self._declared(many=many)
        commands: list[tuple[Operand, ...]] = []
        while True:
            commands.append(self._command(line))
            if not self._mark("|"):
                return Pipe(tuple(commands), line, declared, assigns)
            self._at += 1

    def _declared(self, *, many: bool) -> tuple[tuple[str, ...], bool]:
        """``$x :=``, ``$x =``, and for a range ``$i, $x :=``; nothing is read where none stands."""
        names, at = [], self._at
        while self._stream[at].kind == "variable" and self._stream[at].text:
            names.append(self._stream[at].text)
            mark = self._stream[at + 1]
            if mark.kind == "mark" and mark.text in (":=", "="):
                self._at = at + 2
                return tuple(names), mark.text == "="
            if not (many and mark.text == "," and len(names) == 1):
                break
            at += 2
        return (), False

    def _command(self, line: int) -> tuple[Operand, ...]:
        words: list[Operand] = []
        while not (self._peek().kind == "close" or self._mark("|") or self._mark(")")):
            if words and not self._peek().spaced:
                raise refused(line, f"unexpected {self._peek().text[:40]!r}")
            words.append(self._operand())
        if not words:
            raise refused(line, "a command is missing")
        return tuple(words)

    def _operand(self) -> Operand:
        token = self._take()
        if token.kind == "field":
            return Field((token.text, *self._fields()))
        if token.kind == "dot":
            return Field(())
        if token.kind == "variable":
            return Variable(token.text, self._fields())
        if token.kind == "value":
            return Constant(token.value)
        if token.kind == "word":
            return Constant(_CONSTANTS[token.text]) if token.text in _CONSTANTS else Function(token.text)
        if token.text != "(":
            raise refused(token.line, f"unexpected {token.text[:40]!r}")
        self._deeper(token)
        pipe = self._pipe(token.line)
        self._depth -= 1
        if not self._mark(")"):
            raise refused(token.line, "a parenthesis is not closed")
        self._at += 1
        return Group(pipe, self._fields())

    def _fields(self) -> tuple[str, ...]:
        names: list[str] = []
        while (token := self._peek()).kind == "field" and not token.spaced:
            names.append(token.text)
            self._at += 1
        return tuple(names)

    # --- tokens ---------------------------------------------------------------------------------------------

    def _peek(self) -> Token:
        return self._stream[self._at]  # an action always ends with its close token

    def _take(self) -> Token:
        token = self._peek()
        if token.kind == "close":
            raise refused(token.line, "an action ends too early")
        self._at += 1
        return token

    def _mark(self, text: str) -> bool:
        token = self._peek()
        return token.kind == "mark" and token.text == text

    def _close(self) -> None:
        token = self._peek()
        if token.kind != "close":
            raise refused(token.line, f"unexpected {token.text[:40]!r}")
        self._at += 1

    def _deeper(self, token: Token | None) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise refused(token.line if token else 1, f"blocks are nested deeper than {MAX_DEPTH}")
