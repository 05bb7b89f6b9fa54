"""``mlxctl jobs``: long work on models that the daemon does: list it, look at it, wait for it, call it off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import Cancelled, DaemonUnavailable, JobFailed, error_of
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli.completion import job_ids, job_kinds
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient

_HERE = "homelab_llm.interface.cli.jobs"
_HEADERS = ("ID", "KIND", "ABOUT", "STATE", "DONE", "SINCE", "TOOK")
_OVER = ("succeeded", "failed", "cancelled")
_SILENCE_S = 60.0  # the daemon says something every 10 s
_COMES_BACK_S = 60.0
_LOOK_S = 0.1
_CANCEL_S = 30.0
_ARGUMENT = click.argument("job_id", metavar="ID", shell_complete=job_ids)


class _Listing(LazyGroup):
    """Without a verb: ``list``, with its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and (not args or args[0].startswith("-")) and not {"-h", "--help"} & set(args):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(
    "jobs",
    cls=_Listing,
    verbs={"list": f"{_HERE}:list_"} | {name: f"{_HERE}:{name}" for name in ("show", "wait", "cancel")},
)
def jobs() -> None:
    """Long work on models: pulls, pushes, conversions. Without a verb: list."""


@verb("list")
@click.option("--all", "whole", is_flag=True, help="Also those that are over, the newest 1000.")
@click.option("--kind", shell_complete=job_kinds, help="Only this kind: pull, push, convert, …")
def list_(invocation: Invocation, whole: bool, kind: str | None) -> None:
    """List the jobs that are queued or running, newest first."""
    path = "/admin/jobs?limit=1000" + ("" if whole else "&state=queued,running") + (f"&kind={kind}" if kind else "")
    found = invocation.running_daemon().get(path)["jobs"]
    invocation.output.table(_HEADERS, map(_row, found), {"jobs": found})
    if not found and not whole:
        invocation.output.note("nothing to do; jobs that are over: mlxctl jobs list --all")


@verb("show")
@_ARGUMENT
def show(invocation: Invocation, job_id: str) -> None:
    """Show one job: what was asked for, how far it is, what came of it."""
    job = invocation.running_daemon().get(f"/admin/jobs/{job_id}")
    invocation.output.result({"job": job}, lambda: _described(job))


@verb("wait")
@_ARGUMENT
def wait(invocation: Invocation, job_id: str) -> None:
    """Wait until a job is over; the exit code is that of its error.

    A daemon that is restarted meanwhile is waited for. Ctrl-C ends the wait, never the job. With --json one line of
    progress after another.
    """
    try:
        job = _followed(invocation, job_id)
    except KeyboardInterrupt:
        raise Cancelled(f"{job_id} goes on without you", hint=f"mlxctl jobs wait {job_id}") from None
    if job["error"]:
        raise error_of(job["error"])
    if job["state"] == "cancelled":
        raise Cancelled(f"{job_id} was called off")
    if not invocation.output.json:
        invocation.output.result({}, lambda: [f"{job_id} succeeded: {_about(job)}", *_result(job)])


@verb("cancel")
@_ARGUMENT
def cancel(invocation: Invocation, job_id: str) -> None:
    """Call a job off; what a pull has received is kept. One that is over stays as it is."""
    client = invocation.running_daemon()
    job = client.post(f"/admin/jobs/{job_id}/cancel", {}, timeout_s=_CANCEL_S)
    called_off = job["state"] == "cancelled"
    invocation.output.result({"job": job}, f"{job_id} is cancelled" if called_off else f"{job_id} has {job['state']}")


def _followed(invocation: Invocation, job_id: str) -> dict[str, Any]:
    """The job when it is over, its progress shown until then."""
    client = invocation.running_daemon()
    job: dict[str, Any] = client.get(f"/admin/jobs/{job_id}")
    with invocation.output.transfer(f"{job['kind']} {_about(job)}") as bar:
        while True:
            try:
                for job in _steps(client, job_id):
                    if invocation.output.json:
                        invocation.output.event(job)
                    bar.update(job["stage"] or job["state"], job["done_bytes"], job["total_bytes"], _pace(job))
            except DaemonUnavailable:
                invocation.output.note("the daemon ended; waiting for the next one")
            if job["state"] in _OVER:
                return job
            client = _back(invocation)


def _steps(client: DaemonClient, job_id: str) -> Iterator[dict[str, Any]]:
    with client.watch(f"/admin/jobs/{job_id}/progress?stream=true", silence_s=_SILENCE_S) as reply:
        for line in filter(None, reply.lines()):
            step = json.loads(line)
            if "job_id" not in step:
                raise error_of(step.get("error") or {}) if "error" in step else JobFailed("the daemon told nonsense")
            yield step


def _back(invocation: Invocation) -> DaemonClient:
    """The daemon that came after the one that ended.

    Raises:
        DaemonUnavailable: none came.
    """
    deadline = time.monotonic() + _COMES_BACK_S
    while (client := invocation.daemon_if_running()) is None:
        if time.monotonic() > deadline:
            raise DaemonUnavailable("the daemon ended and did not come back", hint="mlxctl daemon start")
        time.sleep(_LOOK_S)
    return client


def _about(job: Mapping[str, Any]) -> str:
    """What a job is about: its model, and where that goes."""
    told = job["parameters"]
    aim = told.get("target") or told.get("name")
    return str(told.get("model", "")) + (f" → {aim}" if aim else "")


def _row(job: Mapping[str, Any]) -> tuple[str, ...]:
    since = time.strftime("%m-%d %H:%M", time.localtime(job["created_unix_s"]))
    state = f"{job['state']}: {job['error']['code']}" if job["error"] else job["state"]
    return (job["job_id"], job["kind"], _about(job), state, _done(job), since, _took(job))


def _done(job: Mapping[str, Any]) -> str:
    done, total = job["done_bytes"], job["total_bytes"]
    if not total:
        return format_bytes(done) if done else ""
    return f"{100 * min(done / total, 1):.0f} % of {format_bytes(total)}"


def _took(job: Mapping[str, Any]) -> str:
    if job["started_unix_s"] is None:
        return ""
    return format_duration(max((job["finished_unix_s"] or time.time()) - job["started_unix_s"], 0))


def _pace(job: Mapping[str, Any]) -> str:
    if not job["bytes_per_s"]:
        return ""
    left = f", {format_duration(max(job['eta_s'], 1))} left" if job["eta_s"] else ""
    return f"{format_bytes(int(job['bytes_per_s']))}/s{left}"


def _described(job: Mapping[str, Any]) -> Iterable[str]:
    stage = f", {job['stage']}" if job["state"] == "running" and job["stage"] else ""
    yield f"{job['job_id']}: {job['kind']} {_about(job)}"
    yield f"state:      {job['state']}{stage}"
    if done := _done(job):
        yield f"done:       {done} {_pace(job)}".rstrip()
    yield f"asked for:  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(job['created_unix_s']))}"
    if took := _took(job):
        yield f"took:       {took}" + (f", started {job['attempts']} times" if job["attempts"] > 1 else "")
    yield from (f"{name + ':':11} {value}" for name, value in job["parameters"].items())
    if job["error"]:
        yield f"error:      {job['error']['message']}"
        yield from [f"  try: {job['error']['hint']}"] * bool(job["error"]["hint"])
    yield from _result(job)


def _result(job: Mapping[str, Any]) -> list[str]:
    return [f"  {name}: {value}" for name, value in job["result"].items() if value not in ("", None, [], {})]
