"""Rendering a stranger's chat template in a process of its own: with limits on time, text and memory.

The process lives for one job of any number of conversations and costs about a tenth of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidTemplate

LIMIT_S = 5.0
MEMORY_BYTES = 512 << 20
MAX_OUTPUT_BYTES = 64 << 20
_START_S = 20.0  # a busy machine starts a process slowly; only the template's own time is held to the limit
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is rendered: messages as OpenAI's, and the variables beside them (``tools``, ``enable_thinking``, …)."""

    messages: Sequence[Mapping[str, Any]]
    values: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt, or why there is none; ``code`` is that of the error."""

    prompt: str = ""
    code: str = ""
    reason: str = ""


def render(source: str, conversations: Sequence[Conversation], *, limit_s: float = LIMIT_S) -> list[Rendered]:
    """Render each conversation; blocks for at most ``limit_s`` each and some seconds more.

    Raises:
        InvalidTemplate: it is not valid, reaches for what it may not, or takes or makes too much.
    """
    job = {
        "source": source,
        "limit_s": limit_s,
        "memory_bytes": MEMORY_BYTES,
        "conversations": [
            {"messages": list(c.messages), "values": dict(c.values), "add_generation_prompt": c.add_generation_prompt}
            for c in conversations
        ],
    }
    told = _run(json.dumps(job).encode(), _START_S + limit_s * max(1, len(conversations)))
    if "error" in told:
        error = told["error"]
        raise InvalidTemplate(error["message"], hint=error["hint"], **error["facts"])
    return [_outcome(one) for one in told["rendered"]]


def _run(job: bytes, patience_s: float) -> dict[str, Any]:
    program = (sys.executable, "-P", "-m", "homelab_llm.store.templates.render_program")
    environ = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}  # no secret goes there
    try:
        done = subprocess.run(program, input=job, capture_output=True, timeout=patience_s, env=environ, check=False)
    except subprocess.TimeoutExpired as error:
        raise _stopped("it took too long") from error
    if done.returncode != 0 or len(done.stdout) > MAX_OUTPUT_BYTES:
        memory = b"MemoryError" in done.stderr or done.returncode < 0
        raise _stopped("it took too much memory or time" if memory else "it broke the process that renders it")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _outcome(one: Mapping[str, Any]) -> Rendered:
    if "error" not in one:
        return Rendered(prompt=one["prompt"])
    return Rendered(code=one["error"]["code"], reason=one["error"]["message"])


def _stopped(why: str) -> InvalidTemplate:
    return InvalidTemplate(f"the chat template was stopped: {why}", hint="mlxctl template check FILE")
