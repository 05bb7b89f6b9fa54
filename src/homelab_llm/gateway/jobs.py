"""Job routes: ``/admin/jobs`` and ``/admin/models/download``. A client that goes away stops no job."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qsl

import orjson

from homelab_llm.core.errors import Conflict, InvalidInput, JobNotFound, UnknownField
from homelab_llm.core.jobs import STATES, Job, JobState
from homelab_llm.gateway.exchange import EVENTS, NDJSON, Exchange
from homelab_llm.gateway.fields import shown, wrong
from homelab_llm.gateway.job_kinds import KINDS
from homelab_llm.gateway.seams import Jobs

MOST = 1000
_FEW = 100
_ID = re.compile(r"job-[0-9a-f]{8}")
_BEFORE_ID = ("/admin/jobs/", "/admin/models/download/")


class JobRoutes:
    """Serves the routes of jobs.

    Args:
        jobs: None where no daemon does long work; every method then raises.
    """

    def __init__(self, jobs: Jobs | None) -> None:
        self._jobs_or_none = jobs

    async def submit(self, exchange: Exchange, order: Mapping[str, Any]) -> None:
        """Ask for a job."""
        job = await self._jobs.submit(order["kind"], order["parameters"])
        await exchange.json(job.as_dict(), 202)

    async def download(self, exchange: Exchange, parameters: Mapping[str, Any]) -> None:
        """Ask for a pull."""
        await exchange.json(_as_download(await self._jobs.submit("pull", parameters)), 202)

    async def list(self, exchange: Exchange) -> None:
        """The jobs, newest first."""
        wanted = Wanted.of(exchange.scope["query_string"])
        found = await self._jobs.recent(wanted.limit, states=wanted.states, kind=wanted.kind)
        await exchange.json({"jobs": [job.as_dict() for job in found]})

    async def downloads(self, exchange: Exchange) -> None:
        """The pulls, newest first."""
        wanted = Wanted.of(exchange.scope["query_string"])
        found = await self._jobs.recent(wanted.limit, states=wanted.states, kind="pull")
        await exchange.json({"downloads": [_as_download(job) for job in found]})

    async def show(self, exchange: Exchange) -> None:
        """One job."""
        await exchange.json(_shape(exchange, await self._jobs.find(_id_of(exchange.path))))

    async def cancel(self, exchange: Exchange) -> None:
        """Call a job off; one that is over is told as it is."""
        await exchange.json(_shape(exchange, await self._jobs.cancel(_id_of(exchange.path))))

    async def progress(self, exchange: Exchange) -> None:
        """How far it is; until it is over, where a stream is wanted. A slow reader misses steps, never the end."""
        kind = _stream_kind(exchange)
        job_id = _id_of(exchange.path)
        if not kind:
            await exchange.json(_shape(exchange, await self._jobs.find(job_id)))
            return
        await self._jobs.find(job_id)  # an unknown one is a status, not a line
        exchange.has_no_deadline()
        exchange.watch()
        async with contextlib.aclosing(cast("Any", self._jobs.watch(job_id))) as steps:
            async for job in steps:
                told = orjson.dumps(_shape(exchange, job), default=str)
                await exchange.write(b"data: " + told + b"\n\n" if kind == EVENTS else told + b"\n", kind)
        exchange.close_connection()
        await exchange.end()

    @property
    def _jobs(self) -> Jobs:
        if self._jobs_or_none is None:
            raise Conflict("this server does no long work on models", hint="mlxctl pull works without it")
        return self._jobs_or_none


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list shall have."""

    states: tuple[JobState, ...] = ()
    kind: str = ""
    limit: int = _FEW

    @classmethod
    def of(cls, query: bytes) -> Wanted:
        """From ``?state=a,b&kind=pull&limit=10``.

        Raises:
            UnknownField, InvalidInput: with ``field``.
        """
        states: tuple[JobState, ...] = ()
        kind, limit = "", _FEW
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name == "state":
                states = tuple(state for state in STATES if state in value.split(","))
                if not states or set(value.split(",")) - set(STATES):
                    raise wrong("state", f"one of {', '.join(STATES)}, or several joined by commas")
            elif name == "kind":
                kind = value
                if kind not in KINDS:
                    raise wrong("kind", f"one of {', '.join(KINDS)}")
            elif name == "limit":
                if not re.fullmatch(r"[0-9]{1,4}", value) or not 1 <= int(value) <= MOST:
                    raise wrong("limit", f"a whole number from 1 to {MOST}")
                limit = int(value)
            else:
                raise UnknownField(
                    f"unknown field {shown(name)!r}", hint="state, kind and limit are known", field=shown(name)
                )
        return cls(states, kind, limit)


def _stream_kind(exchange: Exchange) -> bytes:
    """The content type of the stream that is wanted; empty: none is.

    Raises:
        UnknownField, InvalidInput: with ``field``.
    """
    accepted = b",".join(value for name, value in exchange.scope["headers"] if name == b"accept").lower()
    kind = next((kind for kind in (NDJSON, EVENTS) if kind in accepted), b"")
    for name, value in parse_qsl(exchange.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name != "stream":
            raise UnknownField(f"unknown field {shown(name)!r}", hint="stream is known", field=shown(name))
        if value not in ("true", "false"):
            raise InvalidInput("'stream' is true or false", field="stream")
        kind = (kind or NDJSON) if value == "true" else b""
    return kind


def _id_of(path: str) -> str:
    """The id in a path.

    Raises:
        JobNotFound: what stands there cannot be one.
    """
    rest = next(path.removeprefix(before) for before in _BEFORE_ID if path.startswith(before))
    job_id = rest.removesuffix("/progress").removesuffix("/cancel")
    if not _ID.fullmatch(job_id):
        raise JobNotFound(f"no job has the id {shown(job_id)!r}", hint="mlxctl jobs --all")
    return job_id


def _shape(exchange: Exchange, job: Job) -> dict[str, Any]:
    return _as_download(job) if exchange.path.startswith("/admin/models/") else job.as_dict()


def _as_download(job: Job) -> dict[str, Any]:
    """A job as ``/admin/models/download`` tells it: with the model it fetches, and ``status`` for its state."""
    return {"status": job.state, "model": job.parameters.get("model", ""), **job.as_dict()}
