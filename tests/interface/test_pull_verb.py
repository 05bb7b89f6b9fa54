"""``mlxctl pull`` against a hub on this machine: progress as data, Ctrl-C, resume, errors with the next command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.hub import FakeHub, Faults
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

FILE_BYTES = 400_000


@pytest.fixture
def hub(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and settings that point to it."""
    content = write_fake_model(tmp_path / "m.gguf", weights_bytes=FILE_BYTES).read_bytes()
    with FakeHub(repos={"org/tiny": {"tiny-F32.gguf": content}}) as hub:
        monkeypatch.setenv("HOMELAB_STORE__HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HOMELAB_STORE__ALLOW_PRIVATE_HOSTS", "true")
        monkeypatch.setenv("HOMELAB_STORE__FREE_FLOOR_BYTES", "0")
        yield hub


@pytest.mark.requirement("R-M3")
def test_pull_with_json_is_a_line_per_step_and_then_the_model(mlxctl: Mlxctl, hub: FakeHub) -> None:
    done = mlxctl("pull", "hf:org/tiny#tiny-F32.gguf", "mine:1", "--json")
    assert done.code == 0, done
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert lines[-1]["model"]["name"] == "mine:1"
    steps = lines[:-1]
    assert {"stage", "done_bytes", "total_bytes", "bytes_per_s", "eta_s"} <= set(steps[0])
    assert steps[-1]["done_bytes"] == steps[-1]["total_bytes"] >= FILE_BYTES
    assert done.err == ""


def test_pull_without_json_ends_with_the_next_command(mlxctl: Mlxctl, hub: FakeHub) -> None:
    done = mlxctl("pull", "hf:org/tiny#tiny-F32.gguf", "mine:1")
    assert "try: mlxctl run mine:1" in done.out
    assert "fetching 100 %" in done.err


@pytest.mark.requirement("R-S2")
def test_control_c_keeps_what_was_received_and_the_same_command_goes_on(
    mlxctl: Mlxctl, hub: FakeHub, home: Home
) -> None:
    hub.faults = Faults(times=-1, drop_after_bytes=100_000)
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "pull", "hf:org/tiny#tiny-F32.gguf", "mine:1"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line)["stage"] == "retrying":
                break
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(20) == 130
    error = json.loads(rest[rest.index('{\n  "error"') :])["error"]
    assert error["code"] == "cancelled"
    assert error["hint"].startswith("mlxctl pull hf:org/tiny#tiny-F32.gguf mine:1")
    assert mlxctl("list", "--json").json() == {"models": []}
    hub.faults = Faults(times=0)
    sent_before = hub.file_bytes_sent
    assert sent_before > 0
    assert mlxctl("pull", "hf:org/tiny#tiny-F32.gguf", "mine:1").code == 0
    assert hub.file_bytes_sent - sent_before < FILE_BYTES, "what was there is not fetched again"


@pytest.mark.requirement("R-F4")
@pytest.mark.parametrize(
    ("reference", "code", "slug"),
    [
        ("hf:org/none", 4, "source_not_found"),
        ("smollm2:136m", 4, "model_not_found"),
        ("ftp://host/x.gguf", 3, "invalid_input"),
        ("hf:../x", 3, "invalid_input"),
    ],
)
def test_a_pull_that_cannot_work_says_why(mlxctl: Mlxctl, hub: FakeHub, reference: str, code: int, slug: str) -> None:
    shown = mlxctl("pull", reference, "--json")
    last = shown.out[shown.out.index('{\n  "error"') :]
    assert (shown.code, json.loads(last)["error"]["code"]) == (code, slug)


def test_a_bad_name_is_refused_before_anything_is_fetched(mlxctl: Mlxctl, hub: FakeHub) -> None:
    assert mlxctl("pull", "hf:org/tiny#tiny-F32.gguf", "../x").code == 3
    assert hub.requests == []


def test_settings_that_are_wrong_name_the_variable(mlxctl: Mlxctl) -> None:
    environ = {**os.environ, "HOMELAB_STORE__FREE_FLOOR_BYTES": "many"}
    shown = mlxctl("pull", "smollm2:135m", environ=environ)
    assert shown.code == 3
    assert "HOMELAB_STORE__FREE_FLOOR_BYTES" in shown.err
