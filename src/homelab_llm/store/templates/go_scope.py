"""Scopes of a Go template while it is translated: what the dot and each variable are called in Jinja."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from homelab_llm.store.templates.go_fields import Kind, Value
from homelab_llm.store.templates.go_tokens import refused

_ODD = re.compile(r"[^a-z0-9]+")
_ROOT = Value("", "root")


class Scope:
    """Names as they are seen at one place.

    Jinja forgets what a loop sets, Go does not: variables that are assigned anywhere live in a namespace of Jinja.
    Every declaration gets a name of its own, for Jinja's blocks do not hide what Go's do.

    Args:
        root: the fields of ``$``.
        assigned: names of variables that are assigned after their declaration.
    """

    def __init__(self, root: Mapping[str, tuple[str, Kind]], assigned: frozenset[str]) -> None:
        self.root = root
        self.dot = _ROOT
        self.used: set[str] = set()
        """Fields of the root that the template reads."""
        self._assigned = assigned
        self._known: dict[str, Value] = {"": _ROOT}
        self._numbers = count(1)

    def variable(self, name: str, line: int) -> Value:
        """Raises InvalidTemplate: it was not declared."""
        if name not in self._known:
            raise refused(line, f"the variable ${name[:40]} is not declared")
        return self._known[name]

    def fresh(self, word: str) -> str:
        """A name that Jinja has not seen."""
        return f"{_ODD.sub('_', word.lower()).strip('_') or 'v'}_{next(self._numbers)}"

    def declare(self, name: str, value: Value) -> str:
        """The statement that declares a variable with ``value``; later ones see it."""
        fresh = self.fresh(name)
        if name in self._assigned:
            self._known[name] = Value(f"{fresh}.value", value.kind)
            return f"set {fresh} = namespace(value={value.code})"
        self._known[name] = Value(fresh, value.kind)
        return f"set {fresh} = {value.code}"

    def assign(self, name: str, value: Value, line: int) -> str:
        """The statement that gives a declared variable another value."""
        known = self.variable(name, line)
        if value.kind not in (known.kind, "nothing"):
            if known.kind != "nothing":
                raise refused(line, f"${name[:40]} is a {known.kind} and becomes a {value.kind}")
            self._known[name] = Value(known.code, value.kind)
        return f"set {known.code} = {value.code}"

    @contextmanager
    def inside(self, dot: Value | None = None, *, root: Value | None = None) -> Iterator[None]:
        """A block with variables of its own; with ``root`` a called template, which sees nothing of its caller."""
        before = self.dot, self._known
        self.dot = dot or self.dot
        self._known = {"": root} if root else dict(self._known)
        yield
        self.dot, self._known = before
