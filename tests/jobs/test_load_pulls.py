"""A load of a model that is not there yet: the pull is a job, which the load follows and lets go of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.interface.daemon_client import DaemonClient, Reply
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.paced import PacedFile
from homelab_llm.testing.slotted import free_ports
from homelab_llm.testing.waits import until

MB = 10**6


@pytest.fixture
def slotted(home: Home, environ: dict[str, str]) -> Iterator[Daemon]:
    """A daemon with two slots."""
    ports = ",".join(map(str, free_ports(2)))
    with Daemon(home, environ=environ, fake=True, slots=ports) as running:
        yield running


class Loading:
    """A load that somebody watches, and may leave; it pulls already."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._lines = reply.lines()
        while json.loads(next(self._lines))["stage"] != "pulling":
            pass

    def last(self) -> dict[str, Any]:
        return dict(json.loads(list(self._lines)[-1]))

    def leave(self) -> None:
        self._reply.close()


Load = Callable[[str], Loading]


@pytest.fixture
def load(slotted: Daemon) -> Iterator[Load]:
    """Begins a load."""
    client = DaemonClient(slotted.home.daemon_sock)
    with ExitStack() as stack:
        yield lambda model: Loading(
            stack.enter_context(client.stream("/admin/slots/load", {"model": model, "slot": "auto"}))
        )


def jobs_of(daemon: Daemon) -> list[dict[str, Any]]:
    return list(daemon.call("GET", "/admin/jobs")[1]["jobs"])


@pytest.mark.requirement("R-M2")
def test_a_load_follows_the_job_that_pulls(slotted: Daemon, load: Load, paced: PacedFile) -> None:
    loading = load(paced.url)
    (job,) = until(lambda: jobs_of(slotted))
    assert (job["kind"], job["parameters"]) == ("pull", {"model": paced.url})
    paced.allow(2 * len(paced.content))
    assert loading.last()["model"] == jobs_of(slotted)[0]["result"]["model"]


def test_a_load_that_is_called_off_ends_the_pull_that_nobody_else_wants(
    slotted: Daemon, load: Load, paced: PacedFile
) -> None:
    first, second = load(paced.url), load(paced.url)
    (job,) = until(lambda: jobs_of(slotted))
    first.leave()
    paced.allow(4 * MB)
    until(lambda: jobs_of(slotted)[0]["stage"] == "fetching")
    second.leave()
    assert until(lambda: jobs_of(slotted)[0]["state"] == "cancelled")
    assert job["job_id"] == jobs_of(slotted)[0]["job_id"]


def test_a_pull_that_was_asked_for_by_itself_outlives_a_load(slotted: Daemon, load: Load, paced: PacedFile) -> None:
    loading = load(paced.url)
    status, job = slotted.call("POST", "/admin/models/download", {"model": paced.url})
    assert (status, job["job_id"]) == (202, jobs_of(slotted)[0]["job_id"])
    loading.leave()
    paced.allow(2 * len(paced.content))
    assert until(lambda: jobs_of(slotted)[0]["state"] == "succeeded")


def test_a_load_tells_why_its_pull_failed(slotted: Daemon) -> None:
    told = slotted.call("POST", "/admin/slots/load", {"model": "nosuchmodel", "slot": "auto"})[1]
    assert '"model_not_found"' in told
    slots = slotted.call("GET", "/admin/slots")[1]["slots"]
    assert not any(slot["desired"] for slot in slots)
