"""The way of a newcomer, on the real model: import, run, look, stop; the daemon comes and goes by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.ops.launch import owner_pid

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture
def small(home: Home, mlxctl: Mlxctl, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """SmolLM2 in the store, by name; the daemon that verbs start takes a free port, and is gone at the end."""
    monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
    assert mlxctl("import", str(smollm2_gguf), "smollm2:135m").code == 0
    yield "smollm2:135m"
    assert mlxctl("daemon", "stop").code == 0
    assert owner_pid(home) is None


@pytest.mark.requirement("R-U1")
def test_one_command_starts_everything_and_the_real_model_answers(mlxctl: Mlxctl, home: Home, small: str) -> None:
    assert owner_pid(home) is None
    shown = mlxctl("run", small, QUESTION, "--temperature", "0")
    assert shown.code == 0, shown
    assert "Paris" in shown.out
    (loaded,) = mlxctl("ps", "--json").json()["models"]
    assert (loaded["model"], loaded["state"], loaded["engine"]) == (small, "ready", "llama.cpp")
    assert loaded["memory_bytes"] > 50_000_000
    assert mlxctl("rm", small).code == 6
    assert mlxctl("stop", small).out == f"stopped {small}\n"
    assert mlxctl("ps", "--json").json()["models"] == []


@pytest.mark.requirement("B-11")
def test_a_gpu_that_the_engine_leaves_idle_is_said_aloud_by_run_ps_and_doctor(
    mlxctl: Mlxctl, small: str, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H200, 143771"\n')
    program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = mlxctl("run", small, "Hi", "--max-tokens", "2", environ=environ)
    assert shown.code == 0
    for said in (shown.err, mlxctl("ps").err):
        assert "warning: NVIDIA H200 is here, but" in said
    (found,) = [c for c in mlxctl("doctor", "--json", environ=environ).json()["checks"] if c["name"] == "accelerator"]
    assert found["status"] == "warn"
    assert "NVIDIA H200" in found["why"]
    assert found["step"] in shown.err, "the same command mends it wherever it is said"


def test_an_answer_follows_a_schema(mlxctl: Mlxctl, small: str, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    (tmp_path / "city.json").write_text(json.dumps(schema))
    argv = ["run", small, QUESTION, "--format", str(tmp_path / "city.json"), "--temperature", "0", "--json"]
    answer = json.loads(mlxctl(*argv).json()["answer"])
    assert answer in ({"city": "Paris"}, {"city": "Rome"})


@pytest.mark.requirement("R-U4")
def test_doctor_finds_a_working_installation(mlxctl: Mlxctl, small: str) -> None:
    mlxctl("daemon", "start")
    found = mlxctl("doctor", "--json")
    checks = {check["name"]: check for check in found.json()["checks"]}
    assert (found.code, found.json()["ok"]) == (0, True)
    assert checks["daemon"]["status"] == "ok"
    assert checks["models"]["why"] == "1 stored, none damaged"
    assert "xllamacpp" in checks["engine llama.cpp"]["why"]
    assert {"python", "home", "disk", "settings", "ports", "memory", "accelerator", "runtime folder"} <= set(checks)
