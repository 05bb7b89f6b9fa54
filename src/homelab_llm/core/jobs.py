"""Jobs: long work on models (a pull, a push, a conversion) as a value, and the moves between its states. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from homelab_llm.core.errors import InternalError

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[JobState, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
CANCELLING = "cancelling"
"""The stage of a job that somebody called off and whose program still ends."""

_MOVES: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
}


@dataclass(frozen=True, slots=True)
class Report:
    """How far a job is. ``total_bytes`` is None while unknown, ``eta_s`` while it cannot be told."""

    stage: str
    file: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands.

    ``parameters`` are those of its kind. ``error`` is what ``HomelabError.as_dict`` gives, None unless it failed;
    ``result`` is what came of it, empty until it succeeded. ``attempts`` counts the programs started for it. Times are
    None until they happen.
    """

    job_id: str
    kind: str
    parameters: Mapping[str, Any]
    state: JobState = "queued"
    stage: str = ""
    file: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    attempts: int = 0
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    created_unix_s: float = 0.0
    started_unix_s: float | None = None
    finished_unix_s: float | None = None
    host_id: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state not in _MOVES

    @property
    def key(self) -> str:
        """The same for the same work: who asks for it again joins it."""
        return key_of(self.kind, self.parameters)

    @property
    def subject(self) -> str:
        """What it is about, for people: the model it names, else its kind."""
        return str(self.parameters.get("model") or self.kind)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        return {known.name: getattr(self, known.name) for known in fields(self)} | {
            "parameters": dict(self.parameters),
            "result": dict(self.result),
            "error": None if self.error is None else dict(self.error),
        }


def key_of(kind: str, parameters: Mapping[str, Any]) -> str:
    """See ``Job.key``."""
    return f"{kind} {json.dumps(parameters, sort_keys=True)}"


def moved(job: Job, state: JobState, now_unix_s: float, **values: Any) -> Job:
    """The job in another state.

    | from | by | to |
    |---|---|---|
    | queued | its turn | running |
    | queued | somebody calls it off | cancelled |
    | running | its program says what came of it | succeeded |
    | running | its program says why not, or ends without a word | failed |
    | running | somebody calls it off, and its program has ended | cancelled |
    | running | its program died and is tried again; its daemon ended | queued |

    The other three states are final.

    Raises:
        InternalError: no such move.
    """
    if state not in _MOVES.get(job.state, ()):
        raise InternalError(f"a job cannot go from {job.state} to {state}")
    if state == "running":
        values |= {"started_unix_s": job.started_unix_s or now_unix_s, "attempts": job.attempts + 1, "stage": ""}
    elif state == "queued":
        values |= {"bytes_per_s": 0.0, "eta_s": None, "stage": "waiting"}
    else:
        values |= {"finished_unix_s": now_unix_s, "bytes_per_s": 0.0, "eta_s": None}
    return replace(job, state=state, **values)


def reported(job: Job, report: Report) -> Job:
    """The job with what its program told; one that is called off keeps saying so."""
    stage = CANCELLING if job.stage == CANCELLING else report.stage
    return replace(job, stage=stage, file=report.file, done_bytes=report.done_bytes, total_bytes=report.total_bytes,
                   bytes_per_s=report.bytes_per_s, eta_s=report.eta_s)  # fmt: skip
