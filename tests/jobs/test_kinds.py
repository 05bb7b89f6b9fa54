"""Kinds of jobs: one table says what each takes, the other who does it; and what a job is, as a value."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, InternalError, InvalidInput
from homelab_llm.core.jobs import CANCELLING, STATES, Job, JobState, Report, key_of, moved, reported
from homelab_llm.data.database import Database
from homelab_llm.data.jobs import JobRows
from homelab_llm.gateway import job_kinds
from homelab_llm.gateway.job_kinds import JobOrder, parameters_of
from homelab_llm.ops.jobs import kinds
from homelab_llm.store.progress import JobProgress

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_every_kind_that_is_taken_is_done_and_the_other_way_round() -> None:
    assert list(job_kinds.KINDS) == list(kinds.KINDS)


def test_what_a_program_reports_is_what_a_job_shows() -> None:
    assert {known.name for known in fields(Report)} == {known.name for known in fields(JobProgress)} - {"note"}


def test_the_api_description_has_one_alternative_for_each_kind() -> None:
    alternatives = JobOrder().schema()["oneOf"]
    assert [found["properties"]["kind"]["const"] for found in alternatives] == list(job_kinds.KINDS)
    assert alternatives[0]["properties"]["parameters"]["required"] == ["model"]


@given(st.sampled_from([*job_kinds.KINDS, "odd", ""]), JSON)
def test_any_json_is_a_kinds_parameters_or_refused(kind: str, value: Any) -> None:
    try:
        checked = parameters_of(kind, value)
    except HomelabError as error:
        assert isinstance(error, InvalidInput)
    else:
        assert parameters_of(kind, checked) == checked


def test_the_same_work_has_the_same_key_whatever_the_order_of_its_parameters() -> None:
    assert key_of("pull", {"a": 1, "b": 2}) == key_of("pull", {"b": 2, "a": 1})
    assert key_of("pull", {"a": 1}) != key_of("push", {"a": 1})


@given(st.lists(st.sampled_from(STATES), max_size=8))
def test_a_job_moves_only_as_the_table_says_and_ends_once(wanted: list[JobState]) -> None:
    job = Job("job-00000000", "pull", {"model": "a"})
    for at, state in enumerate(wanted, 1):
        before = job
        try:
            job = moved(job, state, float(at))
        except InternalError:
            assert job is before
            continue
        assert not before.over
        assert (job.finished_unix_s is not None) == job.over
        assert job.attempts == before.attempts + (state == "running")
        assert job.started_unix_s is not None or state in ("queued", "cancelled")


def test_a_job_that_is_called_off_keeps_saying_so() -> None:
    job = moved(Job("job-00000000", "pull", {}), "running", 1.0)
    assert reported(job, Report("fetching", done_bytes=5)).stage == "fetching"
    off = reported(reported(job, Report(CANCELLING)), Report("fetching", done_bytes=6))
    assert (off.stage, off.done_bytes) == (CANCELLING, 6)


ERROR = {"code": "disk_full", "message": "no r\u00f6om", "hint": "rm", "retryable": True, "facts": {"free_bytes": 1}}


@pytest.mark.requirement("R-D1")
def test_a_job_is_read_as_it_was_written(database: Database) -> None:
    rows = JobRows(database)
    job = Job("job-00000001", "pull", {"model": "a\x00b"}, created_unix_s=5.0, host_id="h")
    rows.save(job)
    running = moved(job, "running", 6.0)
    failed = moved(running, "failed", 9.5, error=ERROR, total_bytes=2**40)
    rows.save(running, Job("job-00000002", "push", {}, created_unix_s=7.0))
    assert [found.job_id for found in rows.unfinished()] == ["job-00000001", "job-00000002"]
    rows.save(failed)
    found = rows.find("job-00000001")
    assert found is not None
    assert found.error == ERROR
    assert (found.state, found.attempts, found.total_bytes) == ("failed", 1, 2**40)
    assert json.dumps(found.as_dict())
    assert [each.job_id for each in rows.recent(10)] == ["job-00000002", "job-00000001"]
    assert [each.kind for each in rows.recent(10, states=STATES[:1])] == ["push"]
    assert rows.recent(10, kind="create") == rows.recent(0) == []
    assert rows.find("job-00000003") is None
