from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from homelab_llm.core.jobs import JobState
from homelab_llm.inference.controller.board import Kind
from homelab_llm.inference.fleet.vocabulary import NotifyKind

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "events.md"


def test_every_kind_of_event_is_described() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    described = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    jobs = {"job_started", *(f"job_{state}" for state in get_args(JobState) if state != "running")}
    assert described == {*get_args(Kind), *get_args(NotifyKind), *jobs, "unproven"}
