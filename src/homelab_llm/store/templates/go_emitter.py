"""Statements of Go templates as statements of Jinja. Pure.

Everything is written as tags that trim the space around them, text as string literals: so the result does not depend
on how an engine trims blocks, and stays readable line by line.
"""

from __future__ import annotations

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.templates.go_expressions import expression
from homelab_llm.store.templates.go_fields import ELEMENTS, MAPPINGS, Value, printed
from homelab_llm.store.templates.go_nodes import Action, Block, Branch, Call, GoTemplate, Jump, Node, Pipe, Text
from homelab_llm.store.templates.go_scope import Scope
from homelab_llm.store.templates.go_tokens import quoted, refused

MAX_LINES = 20_000
_MAX_CALLS = 20


class Emitter:
    """Writes blocks of one Go template.

    Args:
        scope: what ``$`` and the variables are; kept between blocks.
    """

    def __init__(self, template: GoTemplate, scope: Scope) -> None:
        self._defined = template.defined
        self._scope = scope
        self._calls: list[str] = []
        self._left = MAX_LINES

    def lines(self, block: Block, indent: int = 0) -> list[str]:
        """The tags of a block.

        Raises:
            InvalidTemplate: something in it has no counterpart; named with its line.
        """
        found: list[str] = []
        for node in block:
            found += self._node(node, indent)
            if len(found) > self._left:
                raise InvalidTemplate(f"the template becomes longer than {MAX_LINES} lines")
        return found

    def _node(self, node: Node, indent: int) -> list[str]:
        if isinstance(node, Text):
            return [_print(quoted(node.text), indent)]
        if isinstance(node, Action):
            return [self._action(node.pipe, indent)]
        if isinstance(node, Jump):
            return [_tag(node.word, indent)]
        if isinstance(node, Call):
            return self._call(node, indent)
        with self._scope.inside():
            return self._range(node, indent) if node.kind == "range" else self._if(node, indent)

    def _action(self, pipe: Pipe, indent: int) -> str:
        value = expression(pipe, self._scope)
        if not pipe.declared:
            return _print(self._printed(value, pipe.line), indent)
        return _tag(self._kept(pipe, value), indent)

    def _kept(self, pipe: Pipe, value: Value) -> str:
        """The statement that keeps a value under the name the pipeline gives it."""
        if value.kind == "root":
            raise refused(pipe.line, "a variable cannot hold everything")
        (name,) = pipe.declared
        if pipe.assigns:
            return self._scope.assign(name, value, pipe.line)
        return self._scope.declare(name, value)

    def _printed(self, value: Value, line: int) -> str:
        if value.kind == "root":
            raise refused(line, "everything cannot be printed")
        return printed(value)

    # --- blocks ---------------------------------------------------------------------------------------------

    def _if(self, node: Branch, indent: int) -> list[str]:
        value = expression(node.pipe, self._scope)
        found: list[str] = []
        if node.pipe.declared:
            found.append(_tag(self._kept(node.pipe, value), indent))
            value = self._scope.variable(node.pipe.declared[0], node.pipe.line)
        elif node.kind == "with" and value.kind != "root":
            fresh = self._scope.fresh(value.kind)
            found.append(_tag(f"set {fresh} = {value.code}", indent))
            value = Value(fresh, value.kind)
        condition = "true" if value.kind == "root" else value.code
        found.append(_tag(f"if {condition}", indent))
        with self._scope.inside(value if node.kind == "with" else None):
            found += self.lines(node.body, indent + 1)
        if again := _plain_if(node.otherwise):
            with self._scope.inside():
                condition, *rest = self._if(again, indent)
            return [*found, condition.replace("{%- if", "{%- elif", 1), *rest]
        if node.otherwise:
            found.append(_tag("else", indent))
            with self._scope.inside():
                found += self.lines(node.otherwise, indent + 1)
        return [*found, _tag("endif", indent)]

    def _range(self, node: Branch, indent: int) -> list[str]:
        value = expression(node.pipe, self._scope)
        if value.kind not in ELEMENTS:
            raise refused(node.pipe.line, f"a range over a {value.kind.replace('_', ' ')}")
        if node.pipe.assigns:
            raise refused(node.pipe.line, "a range that assigns variables of outside")
        item = Value(self._scope.fresh(ELEMENTS[value.kind]), ELEMENTS[value.kind])
        mapping = value.kind in MAPPINGS
        key = Value(self._scope.fresh("key") if mapping else "loop.index0", "text" if mapping else "number")
        source = f"{value.code}.items()" if mapping else value.code
        found = [
            _tag(f"for {key.code}, {item.code} in {source}" if mapping else f"for {item.code} in {source}", indent)
        ]
        with self._scope.inside(item):
            *keys, last = node.pipe.declared or ("",)
            named = [*((name, key) for name in keys), (last, item)]
            found += [
                _tag(self._scope.declare(name, kept), indent + 1) for name, kept in named if name not in ("", "_")
            ]
            found += self.lines(node.body, indent + 1)
        if node.otherwise:
            found.append(_tag("else", indent))
            with self._scope.inside():
                found += self.lines(node.otherwise, indent + 1)
        return [*found, _tag("endfor", indent)]

    def _call(self, node: Call, indent: int) -> list[str]:
        """A template that is called is written out where it is called."""
        if node.name not in self._defined:
            raise refused(node.line, f"the template {node.name[:40]!r} is not defined")
        if node.name in self._calls or len(self._calls) >= _MAX_CALLS:
            raise refused(node.line, f"the template {node.name[:40]!r} calls itself")
        value = expression(node.pipe, self._scope) if node.pipe else Value("none", "nothing")
        self._calls.append(node.name)
        with self._scope.inside(value, root=value):
            found = self.lines(self._defined[node.name], indent)
        self._calls.pop()
        self._left -= len(found)
        return found


def _plain_if(block: Block) -> Branch | None:
    """An ``if`` that is all of an ``else``, and declares nothing."""
    if len(block) == 1 and isinstance(node := block[0], Branch) and node.kind == "if" and not node.pipe.declared:
        return node
    return None


def _tag(text: str, indent: int) -> str:
    return f"{'  ' * indent}{{%- {text} -%}}"


def _print(code: str, indent: int) -> str:
    return f"{'  ' * indent}{{{{- {code} -}}}}"
