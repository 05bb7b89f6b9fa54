"""What the old and the new daemon say to each other, as values. Pure.

    new → old   Busy          it first migrates the database, which may take a while
    new → old   Prepared      it has its settings, the lock and the sockets, and accepts nothing yet
    old → new   Yours         the old one accepts nothing any more; so many requests still run in each worker
    new → old   Serving       it has the workers and accepts
    old → new   Done          one of those requests ended; the end of the connection ends all that are left
    new → old   Failed        in place of any of its messages: it ends, and why

Until ``Serving`` everything belongs to the old daemon, which goes on when the new one fails, dies or is silent. From
``Yours`` on the new one goes on alone when the old one dies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from homelab_llm.core.errors import InvalidInput

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Busy:
    """The new daemon needs up to ``limit_s`` before it is prepared; ``text`` says for what."""

    text: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """The new daemon stands ready."""

    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Yours:
    """The old daemon let go; ``leases`` are the requests that it still runs, by worker id."""

    leases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Serving:
    """The new daemon serves on these front addresses."""

    pid: int
    listeners: list[str]


@dataclass(frozen=True, slots=True)
class Done:
    """A request that the old daemon ran in this worker ended."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The new daemon ends; an error as it would be shown to a person."""

    code: str
    text: str
    hint: str = ""


Message: TypeAlias = Busy | Prepared | Yours | Serving | Done | Failed
_KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Busy, Prepared, Yours, Serving, Done, Failed)
}


def encode(message: Message) -> bytes:
    """One line of JSON."""
    return json.dumps({"say": type(message).__name__.lower(), **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises:
        InvalidInput: it is none.
    """
    try:
        told: dict[str, Any] = json.loads(line)
        return _KINDS[told.pop("say")](**told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"the other daemon said something unknown: {line[:80]!r}") from error
