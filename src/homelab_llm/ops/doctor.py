"""``doctor``: what is wrong, why, and the next command. Each check looks at one thing and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.paths import Home

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; ``step`` is the next command, empty when there is nothing to do."""

    name: str
    status: Status
    why: str
    step: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the checks look at. ``ask`` gets a path of the daemon; None when no daemon answers."""

    home: Home
    environ: Mapping[str, str]
    ask: Callable[[str], Any] | None


Check = Callable[[Surroundings], Iterator[Finding]]


def examine(surroundings: Surroundings, checks: tuple[Check, ...]) -> Iterator[Finding]:
    """Run every check; one that cannot finish is a finding itself, and the others still run."""
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            yield from check(surroundings)
        except HomelabError as error:
            yield Finding(name, "fail", error.message, error.hint, error.facts)
        except OSError as error:
            yield Finding(name, "fail", f"{error.strerror}: {error.filename}" if error.filename else str(error))
