"""Every call of the command line: clean errors, exit codes, JSON, no traceback, no prompt, click speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon

HEAVY = ("pydantic", "sqlalchemy", "rich", "httpx2", "aiohttp", "httpcore2", "starlette", "uvicorn", "yaml", "asyncio")
LOADED = """
import sys
from homelab_llm.interface.cli.main import main
code = main()
print(",".join(sys.modules))
sys.exit(code)
"""


@pytest.mark.requirement("R-U1")
@pytest.mark.parametrize("verb", ["version", "list", "ps"])
def test_the_verbs_typed_most_import_nothing_heavy(home: Home, verb: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, verb], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split(","))
    assert "homelab_llm.interface.cli.guard" in loaded
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.requirement("R-F4")
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["nonsense"], 2),
        (["list", "--nonsense"], 2),
        (["show"], 2),
        (["show", "../etc"], 3),
        (["show", "no-such-model"], 4),
        (["rm", "no-such-model"], 4),
        (["cp", "no-such-model", "other"], 4),
        (["daemon", "status"], 10),
        (["stop"], 2),
        (["import", "/nonexistent.gguf", "x"], 3),
        (["logs", "no-such-worker"], 4),
        (["completion", "tcsh"], 2),
        (["serve", "--slots", "70000"], 3),
        (["serve", "--config", "/nonexistent.yaml"], 3),
        (["run", "smollm2:135m", "hi", "--keep-alive", "soon"], 2),
    ],
)
def test_a_failing_call_ends_with_its_code_a_reason_and_no_traceback(
    mlxctl: Mlxctl, argv: list[str], code: int
) -> None:
    plain = mlxctl(*argv)
    assert plain.code == code, plain
    assert plain.err.startswith("error: ")
    assert "Traceback" not in plain.err
    assert plain.out == ""
    as_data = mlxctl(*argv, "--json")
    assert as_data.code == code
    error = as_data.json()["error"]
    assert error["exit_code"] == code
    assert error["message"]
    assert as_data.err == ""


@pytest.mark.requirement("R-U1")
def test_a_wrong_verb_names_the_command_that_helps(mlxctl: Mlxctl) -> None:
    assert "try: mlxctl --help" in mlxctl("nonsense").err


@pytest.mark.parametrize("argv", [[], ["daemon"]])
def test_without_a_verb_the_verbs_are_listed(mlxctl: Mlxctl, argv: list[str]) -> None:
    shown = mlxctl(*argv)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("Usage: mlxctl")
    assert mlxctl(*argv, "--json").json()["error"]["message"] == "Missing command."


def test_help_lists_every_verb_and_prints_on_standard_output(mlxctl: Mlxctl) -> None:
    shown = mlxctl("--help")
    assert shown.code == 0
    for verb in ("run", "chat", "pull", "import", "list", "show", "cp", "rm", "prune", "ps", "stop", "status", "logs"):
        assert f"\n  {verb} " in shown.out
    assert mlxctl("daemon", "--help").out.count("\n  ") >= 4


def test_the_home_option_wins_over_the_environment(mlxctl: Mlxctl, home: Home) -> None:
    elsewhere = home.root / "other"
    assert mlxctl("--home", str(elsewhere), "status", "--json").json()["home"] == str(elsewhere)
    assert mlxctl("status", "--json").json()["home"] == str(home.root)


def test_a_home_path_of_two_hundred_characters_works(mlxctl: Mlxctl, home: Home) -> None:
    deep = home.root / ("x" * 100) / ("y" * 100)
    listed = mlxctl("--home", str(deep), "list", "--json")
    assert listed.json() == {"models": []}


def test_version_says_this_programs_version(mlxctl: Mlxctl) -> None:
    import homelab_llm

    assert mlxctl("version").out.startswith(f"mlxctl {homelab_llm.__version__} ")
    assert mlxctl("version", "--json").json()["daemon"] is None


def test_a_reader_that_goes_away_is_no_error_message(home: Home, daemon: ScriptedDaemon) -> None:
    (home.logs / "daemon.log").write_text("x" * 200 + "\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "logs"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.requirement("R-F4")
def test_control_c_ends_a_call_with_130_and_a_word(home: Home) -> None:
    (home.logs / "daemon.log").write_text("one line\n")
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "logs", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"one line\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        shown = running.stderr.read().decode()
    assert "interrupted" in shown
    assert "Traceback" not in shown


def test_a_defect_is_a_typed_error_and_only_v_shows_where(home: Home, mlxctl: Mlxctl) -> None:
    home.store.mkdir()
    (home.store / "index.json").mkdir()  # nothing expects a folder here
    (home.store / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    shown = mlxctl("list")
    assert shown.code != 0
    assert "Traceback" not in shown.err
