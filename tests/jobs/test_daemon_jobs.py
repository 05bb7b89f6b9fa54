"""Jobs of a real daemon: joined, watched, cancelled, and gone on with whatever is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from homelab_llm.core.paths import Home
from homelab_llm.ops.jobs.runner import FAILPOINTS
from homelab_llm.testing.daemon import Daemon, UnixConnection
from homelab_llm.testing.paced import PacedFile
from homelab_llm.testing.waits import until

MB = 10**6
OVER = ("succeeded", "failed", "cancelled")


def submit(daemon: Daemon, url: str, **more: str) -> dict[str, Any]:
    status, job = daemon.call("POST", "/admin/jobs", {"kind": "pull", "parameters": {"model": url, **more}})
    assert status == 202, job
    return dict(job)


def job_of(daemon: Daemon, job: dict[str, Any]) -> dict[str, Any]:
    return dict(daemon.call("GET", f"/admin/jobs/{job['job_id']}")[1])


def ended(daemon: Daemon, job: dict[str, Any], within_s: float = 30) -> dict[str, Any]:
    """The job when it is over."""
    lines = daemon.call("GET", f"/admin/jobs/{job['job_id']}/progress?stream=true", timeout_s=within_s)[1]
    told = [json.loads(line) for line in lines.splitlines()]
    assert told[-1]["state"] in OVER, told[-1]
    return dict(told[-1])


def child_of(daemon: Daemon) -> psutil.Process:
    """The program that does the job which runs."""

    def found() -> list[psutil.Process]:
        children = psutil.Process(daemon.pid).children(recursive=True)
        return [child for child in children if "homelab_llm.ops.jobs.program" in child.cmdline()]

    programs: list[psutil.Process] = until(found)
    return programs[0]


def received(daemon: Daemon, paced: PacedFile, job: dict[str, Any], count_bytes: int) -> dict[str, Any]:
    """The job when it says that so much is there; a little more goes through until it does."""
    paced.allow(count_bytes)

    def told() -> dict[str, Any] | None:
        paced.allow(1 << 12)
        found = job_of(daemon, job)
        return found if found["done_bytes"] >= count_bytes else None

    return dict(until(told))


@pytest.mark.requirement("R-M2")
def test_a_download_is_a_job_that_anybody_can_watch(daemon: Daemon, home: Home, paced: PacedFile) -> None:
    status, job = daemon.call("POST", "/admin/models/download", {"model": paced.url, "name": "far"})
    assert (status, job["status"], job["model"]) == (202, "running", paced.url)
    received(daemon, paced, job, 8 * MB)
    seen = daemon.call("GET", f"/admin/models/download/{job['job_id']}/progress")[1]
    assert (seen["status"], seen["stage"]) == ("running", "fetching")
    assert seen["total_bytes"] == len(paced.content)
    paced.allow(len(paced.content))
    last = ended(daemon, job)
    assert last["result"]["model"] == "far:latest"
    assert last["result"]["size_bytes"] == len(paced.content)
    assert [model["id"] for model in daemon.call("GET", "/v1/models")[1]["data"]] == ["far:latest"]
    listed = daemon.call("GET", "/admin/models/downloads?state=succeeded")[1]["downloads"]
    assert [found["job_id"] for found in listed] == [job["job_id"]]
    kinds = {event["kind"] for event in events(daemon) if event["facts"].get("job_id") == job["job_id"]}
    assert kinds == {"job_queued", "job_started", "job_succeeded"}


def events(daemon: Daemon) -> list[dict[str, Any]]:
    text = daemon.call("GET", "/admin/events?after=0&follow=false")[1]
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.requirement("R-M2")
def test_fifty_who_ask_for_one_model_share_one_job(daemon: Daemon, paced: PacedFile) -> None:
    with ThreadPoolExecutor(50) as people:
        jobs = list(people.map(lambda _: submit(daemon, paced.url, name="one"), range(50)))
        assert len({job["job_id"] for job in jobs}) == 1
        watching = [people.submit(ended, daemon, jobs[0]) for _ in range(50)]
        paced.allow(len(paced.content) * 2)
        assert {watch.result()["state"] for watch in watching} == {"succeeded"}
    assert paced.sent_bytes < 1.5 * len(paced.content)  # resolving reads its beginning
    assert len(daemon.call("GET", "/admin/jobs")[1]["jobs"]) == 1


@pytest.mark.requirement("R-M2")
def test_a_killed_daemon_goes_on_with_its_jobs_and_loses_little(daemon: Daemon, home: Home, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 18 * MB)
    program = child_of(daemon)
    daemon.kill()
    psutil.wait_procs([program], timeout=20)
    assert not program.is_running()
    paced.allow(len(paced.content) * 2)
    daemon.start()
    last = ended(daemon, job)
    assert (last["state"], last["attempts"]) == ("succeeded", 2)
    assert paced.sent_bytes - len(paced.content) <= 16 * MB


@pytest.mark.requirement("R-M2", "B-5")
def test_a_planned_restart_hands_running_jobs_to_the_new_daemon(daemon: Daemon, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 8 * MB)
    waiting = submit(daemon, paced.url, name="too")
    program = child_of_any(daemon)
    daemon.restart()
    assert not any(child.is_running() for child in program)
    paced.allow(len(paced.content) * 3)
    assert ended(daemon, job)["state"] == ended(daemon, waiting)["state"] == "succeeded"


def child_of_any(daemon: Daemon) -> list[psutil.Process]:
    children = psutil.Process(daemon.pid).children(recursive=True)
    return [child for child in children if "homelab_llm.ops.jobs.program" in child.cmdline()]


def test_a_job_that_is_called_off_keeps_what_it_has(daemon: Daemon, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 18 * MB)
    program = child_of(daemon)
    status, told = daemon.call("POST", f"/admin/jobs/{job['job_id']}/cancel", timeout_s=20)
    assert (status, told["state"]) == (200, "cancelled")
    assert not program.is_running()
    assert daemon.call("DELETE", f"/admin/models/download/{job['job_id']}")[1]["status"] == "cancelled"
    again = submit(daemon, paced.url, name="far")
    assert again["job_id"] != job["job_id"]
    paced.allow(len(paced.content) * 2)
    assert ended(daemon, again)["state"] == "succeeded"
    assert paced.sent_bytes - len(paced.content) <= 16 * MB


def test_a_program_that_is_killed_is_started_once_more(daemon: Daemon, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 8 * MB)
    child_of(daemon).kill()
    until(lambda: job_of(daemon, job)["attempts"] == 2)
    child_of(daemon).send_signal(signal.SIGSEGV)
    last = ended(daemon, job)
    assert (last["state"], last["error"]["code"]) == ("failed", "job_failed")
    assert last["error"]["facts"]["signal"] == signal.SIGSEGV


def test_jobs_wait_for_their_turn_and_can_be_called_off_before(
    home: Home, environ: dict[str, str], paced: PacedFile
) -> None:
    with Daemon(home, environ={**environ, "HOMELAB_STORE__MAX_JOBS": "1"}) as daemon:
        first, second, third = (submit(daemon, paced.url, name=name) for name in ("a", "b", "c"))
        until(lambda: job_of(daemon, first)["state"] == "running")
        assert job_of(daemon, second)["state"] == job_of(daemon, third)["state"] == "queued"
        assert daemon.call("POST", f"/admin/jobs/{second['job_id']}/cancel")[1]["state"] == "cancelled"
        paced.allow(len(paced.content) * 2)
        assert ended(daemon, third)["state"] == "succeeded"
        assert job_of(daemon, third)["started_unix_s"] >= job_of(daemon, first)["finished_unix_s"]


def test_the_error_of_the_work_is_the_error_of_the_job(daemon: Daemon, paced: PacedFile) -> None:
    missing = submit(daemon, "nosuchmodel")
    error = ended(daemon, missing)["error"]
    assert error["code"] == "model_not_found"
    assert error["hint"]


def test_a_full_disk_is_told_by_the_job(home: Home, environ: dict[str, str], paced: PacedFile) -> None:
    with Daemon(home, environ={**environ, "HOMELAB_STORE__FREE_FLOOR_BYTES": str(1 << 60)}) as daemon:
        error = ended(daemon, submit(daemon, paced.url))["error"]
        assert (error["code"], error["facts"]["needed_bytes"]) == ("disk_full", len(paced.content))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/admin/jobs", {"kind": "dance"}, 400, "invalid_input"),
        ("POST", "/admin/jobs", {"kind": "pull", "parameters": {}}, 400, "invalid_input"),
        ("POST", "/admin/jobs", {"kind": "pull", "parameters": {"model": "a", "colour": 1}}, 400, "unknown_field"),
        ("POST", "/admin/jobs", {"kind": "pull", "parameters": []}, 400, "invalid_input"),
        ("POST", "/admin/models/download", {"name": "a"}, 400, "invalid_input"),
        ("GET", "/admin/jobs/job-00000000", None, 404, "job_not_found"),
        ("GET", "/admin/jobs/../../etc", None, 404, "job_not_found"),
        ("GET", "/admin/jobs/job-00000000/progress?stream=true", None, 404, "job_not_found"),
        ("GET", "/admin/models/download/x%00/progress", None, 404, "job_not_found"),
        ("POST", "/admin/jobs/job-00000000/cancel", None, 404, "job_not_found"),
        ("GET", "/admin/jobs?state=odd", None, 400, "invalid_input"),
        ("GET", "/admin/jobs?kind=odd", None, 400, "invalid_input"),
        ("GET", "/admin/jobs?limit=100000", None, 400, "invalid_input"),
        ("GET", "/admin/jobs?odd=1", None, 400, "unknown_field"),
        ("DELETE", "/admin/jobs/job-00000000", None, 405, "endpoint_not_found"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    one_daemon: Daemon, method: str, path: str, body: Any, status: int, code: str
) -> None:
    found, told = one_daemon.call(method, path, body)
    assert (found, told["error"]["code"]) == (status, code)


@pytest.mark.requirement("R-M2")
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_daemon_killed_at_any_step_of_a_job_finishes_it_later(
    home: Home, environ: dict[str, str], paced: PacedFile, point: str
) -> None:
    paced.allow(10 * len(paced.content))
    daemon = Daemon(home, environ=environ)
    daemon.start(environ={"HOMELAB_FAILPOINTS": f"{point}=kill"})
    with contextlib.suppress(OSError, http.client.HTTPException):
        submit(daemon, paced.url, name="far")
    assert daemon.wait() == -signal.SIGKILL
    with daemon:
        (job,) = daemon.call("GET", "/admin/jobs")[1]["jobs"]
        assert ended(daemon, job)["result"]["model"] == "far:latest"


def test_jobs_go_on_here_when_the_new_daemon_fails(daemon: Daemon, home: Home, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 8 * MB)
    (home.root / "config.yaml").write_text("odd: true\n")
    assert daemon.call("POST", "/admin/restart", {})[0] == 503
    paced.allow(3 * len(paced.content))
    assert ended(daemon, job)["state"] == "succeeded"


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/event-stream"])
def test_progress_is_a_stream_of_what_was_asked_for(daemon: Daemon, paced: PacedFile, kind: str) -> None:
    paced.allow(3 * len(paced.content))
    job = submit(daemon, paced.url, name="far")
    connection = UnixConnection(str(daemon.home.daemon_sock), 30)
    with contextlib.closing(connection):
        connection.request("GET", f"/admin/jobs/{job['job_id']}/progress", headers={"Accept": kind})
        with connection.getresponse() as reply:
            assert reply.headers["content-type"] == kind
            lines = [line.removeprefix(b"data: ") for line in reply.read().splitlines() if line]
    assert json.loads(lines[-1])["state"] == "succeeded"


def test_jobs_go_on_after_the_daemon_was_stopped(daemon: Daemon, paced: PacedFile) -> None:
    job = submit(daemon, paced.url, name="far")
    received(daemon, paced, job, 8 * MB)
    daemon.stop()
    paced.allow(3 * len(paced.content))
    daemon.start()
    assert ended(daemon, job)["state"] == "succeeded"


def test_a_stored_model_is_verified_and_built_on_by_jobs(daemon: Daemon, paced: PacedFile) -> None:
    paced.allow(3 * len(paced.content))
    assert ended(daemon, submit(daemon, paced.url, name="far"))["state"] == "succeeded"
    assert ended(daemon, ask(daemon, "verify"))["result"]["ok"] is True
    assert ended(daemon, ask(daemon, "repair", model="far"))["result"]["files"] == []
    made = ended(daemon, ask(daemon, "create", name="mine", spec="FROM far\nSYSTEM Be brief.\n"))
    assert made["result"]["model"] == "mine:latest", made["error"]
    refused = ended(daemon, ask(daemon, "push", model="far", target="oci://127.0.0.1:1/a/b:c"))
    assert refused["error"]["code"] == "source_unavailable"
    refused = ended(daemon, ask(daemon, "quantize", model="far", name="small", type="odd"))
    assert refused["error"]["code"] == "invalid_input"


def ask(daemon: Daemon, kind: str, **parameters: Any) -> dict[str, Any]:
    status, job = daemon.call("POST", "/admin/jobs", {"kind": kind, "parameters": parameters})
    assert status == 202, job
    return dict(job)
