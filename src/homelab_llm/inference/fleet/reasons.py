"""Why a worker ended: the host's exit reason as an error of our tree. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from homelab_llm.core.errors import EngineError, LoadFailed, WorkerCrashed, WorkerOutOfMemory
from homelab_llm.core.logs import redact

_FOLDERS = re.compile(r"(?<![\w/])/(?:[^\s/'\":]+/)+")
_TELLING = re.compile(r"error|fail|exception|memory|abort|fatal|assert", re.IGNORECASE)
_SAID_CHARACTERS = 240


def error_of(reason: Mapping[str, Any] | None, *, model: str, engine: str, log: str, loading: bool) -> EngineError:
    """The typed error for an end that nobody asked for.

    Args:
        reason: what the host told with ``exit``; None when the host itself died without a word.
        log: name of the log file, for people.
        loading: whether the model was not ready yet.
    """
    facts: dict[str, Any] = {"log": log}
    if reason is None:
        how = "its worker host ended without giving a reason"
    else:
        facts |= {"exit_code": reason.get("exit_code"), "signal": reason.get("signal")}
        how = _how(reason, engine)
    said = last_words(str(reason.get("tail", "")), telling_only=bool(reason.get("signal"))) if reason else ""
    text = f"{model}: {how}" + (f": {said}" if said else "")
    if reason is not None and reason.get("out_of_memory"):
        return WorkerOutOfMemory(
            f"{model} ran out of memory" + (f": {said}" if said else ""),
            hint="choose a smaller model or context, or unload another model: mlxctl ps",
            **facts,
        )
    return (
        LoadFailed(text, hint="mlxctl logs", **facts) if loading else WorkerCrashed(text, hint="mlxctl logs", **facts)
    )


def _how(reason: Mapping[str, Any], engine: str) -> str:
    what = "the conversion" if reason.get("stage") == "prepare" else f"the {engine} worker"
    if number := reason.get("signal"):
        return f"{what} was ended by {_signal_name(int(number))}"
    return f"{what} ended with exit code {reason.get('exit_code')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_words(tail: str, *, telling_only: bool = False) -> str:
    """The one line of the output that tells most, without secrets and without folders of this machine.

    Args:
        telling_only: nothing rather than a line that names no trouble.
    """
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)]
    chosen = (telling or ([] if telling_only else lines) or [""])[-1]
    printable = "".join(character for character in chosen if character.isprintable())
    return redact(_FOLDERS.sub("…/", printable))[:_SAID_CHARACTERS]
