"""Detached: a verb whose work the daemon does as a job, while the command returns at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from homelab_llm.interface.cli.invocation import Invocation

detach = click.option(
    "--detach", is_flag=True, help="Let the daemon do it as a job and return at once; see: mlxctl jobs."
)
"""The option; a verb that has it calls ``submit`` when it is set."""


def submit(invocation: Invocation, kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the daemon for a job, started when none runs; parameters that are None or empty are left out.

    Raises:
        InvalidInput: the kind does not take them.
    """
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
    given = {name: value for name, value in given.items() if value not in (None, "", [])}
    return dict(invocation.daemon().post("/admin/jobs", {"kind": kind, "parameters": given}))


def order(invocation: Invocation, kind: str, parameters: Mapping[str, Any]) -> None:
    """As ``submit``, and say so: what ``--detach`` does."""
    job = submit(invocation, kind, parameters)
    invocation.output.result({"job": job}, f"{job['job_id']} is {job['state']}; mlxctl jobs wait {job['job_id']}")
