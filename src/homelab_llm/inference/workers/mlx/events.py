"""What passes between the HTTP side and the generation thread: jobs one way, events the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.workers.mlx.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Progress:
    """``processed`` of ``total`` prompt tokens are read."""

    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Token:
    """One new token. ``finish`` is ``stop`` when this token ends the text (it is not part of it), or ``length``.

    ``logprob`` and ``likeliest`` (pairs of id and log probability, likeliest first) only when the job asked.
    """

    id: int
    finish: str | None = None
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The job is over without an end."""

    error: HomelabError


Event = Progress | Token | Failed


@dataclass(slots=True, eq=False)
class Job:
    """One sequence to generate. ``sink`` gets its events on the event loop's thread.

    ``logprobs``: None, or how many of the likeliest tokens to report beside the chosen one.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    sink: Callable[[Event], None]
    ignore_end: bool = False
    logprobs: int | None = None
    uid: int = field(default=-1, init=False)
