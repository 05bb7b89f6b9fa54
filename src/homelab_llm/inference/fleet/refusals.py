"""The errors with which the scheduler refuses: each says its numbers."""

from __future__ import annotations

import math

from homelab_llm.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Fact,
    HomelabError,
    InsufficientMemory,
    LoadFailed,
    QueueFull,
)
from homelab_llm.core.units import format_bytes, format_duration


def again(error: HomelabError, **facts: Fact) -> HomelabError:
    """A copy, with more facts: each request gets an exception of its own (raising one alters it)."""
    return type(error)(error.message, hint=error.hint, **{**error.facts, **facts})


def too_large(model: str, needed_bytes: int, free_bytes: int, budget_bytes: int) -> InsufficientMemory:
    """The model does not fit even when it is alone."""
    return InsufficientMemory(
        f"{model} needs {format_bytes(needed_bytes)}; all models together may take {format_bytes(budget_bytes)}",
        hint="take a smaller model or quantization, lower engine.context_tokens or engine.parallel, "
        "or raise fleet.memory_fraction",
        model=model,
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
        budget_bytes=budget_bytes,
    )


def queue_full(model: str, queue_length: int, retry_after_s: float) -> QueueFull:
    """``retry_after_s`` is rounded up to whole seconds, at least 1, as the HTTP header has it."""
    seconds = max(1, math.ceil(retry_after_s))
    return QueueFull(
        f"{queue_length} requests wait for {model}",
        hint=f"try again in {format_duration(seconds)}",
        model=model,
        queue_length=queue_length,
        retry_after_s=seconds,
    )


def waited_too_long(model: str, limit_s: float, place: int) -> DeadlineExceeded:
    """``place`` is where the request stood in the queue at the end."""
    return DeadlineExceeded(
        f"no worker for {model} became free within {format_duration(limit_s)}",
        hint="raise fleet.max_wait_s, or ask for fewer things at once",
        model=model,
        limit_s=limit_s,
        place=place,
    )


def unloaded(model: str) -> Cancelled:
    """The operator called the load off."""
    return Cancelled(f"{model} was unloaded by the operator while the request waited", model=model)


def ended_while_loading(model: str) -> LoadFailed:
    """The worker was gone before it was ready, and nobody said why."""
    return LoadFailed(f"the worker of {model} ended while it loaded", hint="mlxctl logs", model=model)
