"""Jobs: their rows. What a job is and how it moves is in ``core/jobs.py``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
from sqlalchemy import Row, select, update

from homelab_llm.core.jobs import Job, JobState
from homelab_llm.data.database import Database
from homelab_llm.data.recorder import clean
from homelab_llm.data.tables import jobs

_DOC = "docs/guides/jobs.md"
_PLAIN = (
    *("job_id", "kind", "state", "stage", "file", "done_bytes", "total_bytes", "bytes_per_s", "attempts"),
    *("created_unix_s", "started_unix_s", "finished_unix_s", "host_id"),
)


class JobRows:
    """Jobs as they are kept. Every call blocks.

    Raises (all calls):
        DatabaseUnavailable: it cannot be reached.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, *changed: Job) -> None:
        """Write jobs, new ones too, in one transaction."""
        with self._database.write() as connection:
            for job in changed:
                values = _values(job)
                if not connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(values)).rowcount:
                    connection.execute(jobs.insert().values(job_id=job.job_id, **values))

    def find(self, job_id: str) -> Job | None:
        """The job of that id."""
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def unfinished(self) -> list[Job]:
        """Those that are queued or running, oldest first."""
        wanted = select(jobs).where(jobs.c.state.in_(("queued", "running")))
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(wanted.order_by(jobs.c.created_unix_s, jobs.c.job_id))]

    def recent(self, limit: int, *, states: Collection[JobState] = (), kind: str = "") -> list[Job]:
        """The newest ones, newest first; of these states and this kind, where they are given."""
        wanted = select(jobs).order_by(jobs.c.created_unix_s.desc(), jobs.c.job_id).limit(limit)
        if states:
            wanted = wanted.where(jobs.c.state.in_(states))
        if kind:
            wanted = wanted.where(jobs.c.kind == kind)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(wanted)]


def _values(job: Job) -> dict[str, Any]:
    error = job.error or {}
    told = {name: clean(getattr(job, name)) for name in _PLAIN if name != "job_id"}
    told |= {f"error_{name}": clean(str(error.get(name, ""))) for name in ("code", "message", "hint")}
    facts = {**error.get("facts", {}), "retryable": error.get("retryable", False)} if error else {}
    told |= {"parameters_json": _json(job.parameters), "result_json": _json(job.result), "doc": _DOC}
    return told | {"error_facts_json": _json(facts)}


def _json(value: Any) -> str:
    return str(clean(orjson.dumps(dict(value), default=str).decode()))


def _job(row: Row[Any]) -> Job:
    found = row._mapping
    error = None
    if found["error_code"]:
        facts = orjson.loads(found["error_facts_json"])
        error = {name: found[f"error_{name}"] for name in ("code", "message", "hint")}
        error |= {"retryable": facts.pop("retryable", False), "facts": facts}
    parameters, result = orjson.loads(found["parameters_json"]), orjson.loads(found["result_json"])
    return Job(**{name: found[name] for name in _PLAIN}, parameters=parameters, result=result, error=error)
