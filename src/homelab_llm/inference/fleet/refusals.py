"""The errors with which the scheduler refuses: each says its numbers."""

from __future__ import annotations

from homelab_llm.core.errors import (
    Cancelled,
    DaemonUnavailable,
    DeadlineExceeded,
    Fact,
    HandedOver,
    HomelabError,
    InsufficientMemory,
    LoadFailed,
    ModelQuarantined,
    QueueFull,
    WorkerStalled,
)
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.inference.engines.base import Footprint
from homelab_llm.inference.fleet.state import Outlook


def again(error: HomelabError, **facts: Fact) -> HomelabError:
    """A copy, with more facts: each request gets an exception of its own (raising one alters it)."""
    return type(error)(error.message, hint=error.hint, **{**error.facts, **facts})


def no_room(model: str, needed_bytes: int, outlook: Outlook) -> InsufficientMemory:
    """The model does not fit, even when everything else but the pinned models went."""
    pinned = f", of which pinned models hold {format_bytes(outlook.pinned_bytes)}" if outlook.pinned_bytes else ""
    alone = needed_bytes > outlook.budget_bytes
    return InsufficientMemory(
        f"{model} needs {format_bytes(needed_bytes)}; "
        f"all models together may take {format_bytes(outlook.budget_bytes)}{pinned}",
        hint="take a smaller model or quantization, lower engine.context_tokens or engine.parallel, "
        "or raise fleet.memory_fraction"
        if alone
        else "unload a pinned model, or let it go when others need room: mlxctl ps",
        model=model,
        needed_bytes=needed_bytes,
        free_bytes=outlook.free_bytes,
        evictable_bytes=outlook.evictable_bytes,
        pinned_bytes=outlook.pinned_bytes,
        budget_bytes=outlook.budget_bytes,
    )


def in_parts(error: InsufficientMemory, parts: Footprint | None, others_bytes: int) -> HomelabError:
    """With what makes up the need, and what other processes hold."""
    if parts is None:
        return again(error, others_bytes=others_bytes)
    return again(
        error,
        weights_bytes=parts.weights_bytes,
        kv_bytes=parts.kv_bytes,
        overhead_bytes=parts.overhead_bytes,
        others_bytes=others_bytes,
    )


def queue_full(model: str, queue_length: int, place: int, retry_after_s: int) -> QueueFull:
    """``place`` counts those that wait and those that were sent away before; ``retry_after_s`` as the HTTP header."""
    return QueueFull(
        f"{queue_length} requests wait for {model}",
        hint=f"try again in {format_duration(retry_after_s)}",
        model=model,
        queue_length=queue_length,
        place=place,
        retry_after_s=retry_after_s,
    )


def quarantined(model: str, failures: int, last: HomelabError | None) -> ModelQuarantined:
    """The model failed ``failures`` times in a row, at last with ``last``."""
    reason = last.message if last else ""
    return ModelQuarantined(
        f"{model} failed {failures} times in a row and is not tried again: {reason}",
        hint=f"mlxctl logs; when the cause is gone: mlxctl unquarantine {model}",
        model=model,
        failures=failures,
        reason=reason,
    )


def gave_no_answer(model: str) -> WorkerStalled:
    """A worker that is ended because it does not answer."""
    return WorkerStalled(f"the worker of {model} gave no answer", hint="mlxctl logs", model=model)


def stopping() -> DaemonUnavailable:
    """This daemon takes no request any more."""
    return DaemonUnavailable("the daemon is stopping", hint="mlxctl daemon start")


def handed_over() -> HandedOver:
    """Another daemon of this home takes the request."""
    return HandedOver("the daemon hands over to a new one", hint="send the request again")


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
