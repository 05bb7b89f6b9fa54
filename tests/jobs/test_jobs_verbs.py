"""``mlxctl jobs``, ``pull --detach``, ``--slot`` and ``--wanted``: against a real daemon, and without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.paced import PacedFile

MB = 10**6
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mlxctl(home: Home, environ: dict[str, str]) -> Run:
    """Runs ``mlxctl`` as a person would."""

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "homelab_llm.interface.cli.main", *words],
            env={**os.environ, **environ, **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def ordered(mlxctl: Run, *words: str) -> str:
    told = mlxctl("pull", "--detach", *words)
    assert told.returncode == 0, told.stderr
    found = re.match(r"(job-[0-9a-f]{8}) is (queued|running); mlxctl jobs wait \1", told.stdout)
    assert found, told.stdout
    return found[1]


@pytest.mark.requirement("R-M2")
def test_a_detached_pull_is_listed_shown_and_waited_for(daemon: Daemon, mlxctl: Run, paced: PacedFile) -> None:
    job_id = ordered(mlxctl, paced.url, "far")
    assert job_id in mlxctl("jobs").stdout
    assert [job["job_id"] for job in json.loads(mlxctl("jobs", "--json").stdout)["jobs"]] == [job_id]
    shown = mlxctl("jobs", "show", job_id).stdout
    assert "running" in shown
    assert paced.url in shown
    paced.allow(2 * len(paced.content))
    waited = mlxctl("jobs", "wait", job_id)
    assert waited.returncode == 0, waited.stderr
    assert "far:latest" in waited.stdout
    lines = [json.loads(line) for line in mlxctl("jobs", "wait", job_id, "--json").stdout.splitlines()]
    assert lines[-1]["state"] == "succeeded"
    assert job_id not in mlxctl("jobs").stdout
    assert job_id in mlxctl("jobs", "--all").stdout
    assert "far:latest" in mlxctl("list").stdout


def test_the_exit_code_of_a_wait_is_that_of_the_jobs_error(daemon: Daemon, mlxctl: Run) -> None:
    waited = mlxctl("jobs", "wait", ordered(mlxctl, "nosuchmodel"))
    assert waited.returncode == 4
    assert "nosuchmodel" in waited.stderr
    unknown = mlxctl("jobs", "wait", "job-00000000", "--json")
    assert (unknown.returncode, json.loads(unknown.stdout)["error"]["code"]) == (4, "job_not_found")


def test_a_cancelled_job_says_so_to_who_waits(daemon: Daemon, mlxctl: Run, paced: PacedFile) -> None:
    job_id = ordered(mlxctl, paced.url)
    assert mlxctl("jobs", "cancel", job_id).stdout == f"{job_id} is cancelled\n"
    assert mlxctl("jobs", "cancel", job_id).returncode == 0
    assert mlxctl("jobs", "wait", job_id).returncode == 130


@pytest.mark.requirement("B-5")
def test_who_waits_does_not_mind_a_restart(daemon: Daemon, mlxctl: Run, paced: PacedFile) -> None:
    job_id = ordered(mlxctl, paced.url, "far")
    with subprocess.Popen(
        [sys.executable, "-m", "homelab_llm.interface.cli.main", "jobs", "wait", job_id, "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stdout is not None
        assert json.loads(waiting.stdout.readline())["state"] in ("queued", "running")
        daemon.restart()
        paced.allow(3 * len(paced.content))
        assert json.loads(waiting.stdout.readlines()[-1])["state"] == "succeeded"
        assert waiting.wait(30) == 0


def test_ids_are_completed(daemon: Daemon, mlxctl: Run, paced: PacedFile) -> None:
    job_id = ordered(mlxctl, paced.url)
    told = mlxctl(
        **{"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl jobs wait job-", "COMP_CWORD": "3"}
    ).stdout
    assert job_id in told


def wish(home: Home, mlxctl: Run, **entries: object) -> None:
    """Take entries into the registry."""
    path = home.root / "wishes.json"
    path.write_text(json.dumps({"version": 1, "models": entries}))
    told = mlxctl("registry", "import", str(path))
    assert told.returncode == 0, told.stderr


@pytest.mark.requirement("R-D3")
def test_a_slots_intent_is_pulled_and_complete(home: Home, mlxctl: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_fake_model(tmp_path / f"{name}.gguf", name=name)
    wishes = {
        name: {
            "model_id": f"{name}:latest",
            "repo_id": f"file:{tmp_path}/{name}.gguf",
            "port": port,
            "format": "gguf",
            "cache_path": "",
        }
        for name, port in (("one", 8100), ("two", None))
    }
    slots = {"HOMELAB_SLOTS__PORTS": "8100-8103"}
    wish(home, lambda *words: mlxctl(*words, **slots), **wishes)
    assert mlxctl("pull", "--slot", "jerry-l", **slots).returncode == 4
    pulled = mlxctl("pull", "--slot", "8100", **slots)
    assert pulled.returncode == 0, pulled.stderr
    states = {row["name"]: row["state"] for row in json.loads(mlxctl("list", "--json").stdout)["models"]}
    assert {name: state == "wanted" for name, state in states.items()} == {"one:f32": False, "two:latest": True}
    assert mlxctl("pull", "--wanted").returncode == 0
    exported = json.loads(mlxctl("registry", "export", "-").stdout)
    assert "wanted" not in mlxctl("list").stdout
    assert mlxctl("pull", "--wanted").stdout == "every model of the registry is stored\n"
    assert json.dumps(exported).count(str(home.store)) >= 2


@pytest.mark.requirement("R-D3")
def test_a_job_completes_the_intent_it_fulfils(daemon: Daemon, home: Home, mlxctl: Run, paced: PacedFile) -> None:
    paced.allow(2 * len(paced.content))
    wish(
        home,
        mlxctl,
        far={"model_id": "far:latest", "repo_id": paced.url, "port": None, "format": "gguf", "cache_path": ""},
    )
    told = json.loads(mlxctl("pull", "--wanted", "--detach", "--json").stdout)
    assert mlxctl("jobs", "wait", told["jobs"][0]["job_id"]).returncode == 0
    assert "wanted" not in mlxctl("list").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("pull",),
        ("pull", "a", "--wanted"),
        ("pull", "--slot", "8100", "--wanted"),
        ("pull", "--wanted", "--include", "x"),
    ],
)
def test_contradictory_wishes_are_usage_errors(mlxctl: Run, words: tuple[str, ...]) -> None:
    assert mlxctl(*words).returncode == 2
