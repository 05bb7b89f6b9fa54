"""The same command on another machine: over a real ssh and a real sshd on loopback, with a home of its own there."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil
import pytest

import homelab_llm
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.reach import REACH, reach_of, verb_path
from homelab_llm.interface.cli.reference import verbs
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.slotted import slotted
from homelab_llm.testing.sshd import NAME, running_sshd, sshd_installed

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-F4")

TELL = """
import json, os, sys
told = {"argv": sys.argv[1:], "stdin": sys.stdin.buffer.read().decode() if not os.isatty(0) else "",
        "terminals": [os.isatty(0), os.isatty(1), os.isatty(2)]}
print(json.dumps(told))
sys.exit(3)
"""
OTHER_VERSION = """
import sys, homelab_llm
homelab_llm.__version__ = "99.0"
from homelab_llm.interface.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def ssh_options() -> Iterator[Path]:
    if not sshd_installed():  # continuous integration installs it, and takes a skipped test for a failed one
        pytest.skip("OpenSSH's server is missing: apt-get install openssh-client openssh-server")
    with TemporaryDirectory(prefix="hl-ssh-", dir="/tmp") as folder, running_sshd(Path(folder)) as options:
        yield options


@pytest.fixture
def far(home: Home, ssh_options: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home on the far side; the environment here names that machine as the inference host."""
    place = tmp_path / "far home"
    monkeypatch.setenv("HOMELAB_REMOTE__SSH_CONFIG", str(ssh_options))
    monkeypatch.setenv("HOMELAB_REMOTE__INFERENCE_HOST", NAME)
    runs(monkeypatch, place, "-m", "homelab_llm.interface.cli.main")
    return place


def runs(monkeypatch: pytest.MonkeyPatch, place: Path, *python: str) -> None:
    """Let the far side run this Python with these arguments; nothing of our environment goes there by itself."""
    given = {"HOMELAB_HOME": str(place), "PYTHONPATH": os.pathsep.join(sys.path), "HOMELAB_SLOTS__PORTS": "none"}
    words = ["env", *(f"{name}={value}" for name, value in given.items()), sys.executable, *python]
    monkeypatch.setenv("HOMELAB_REMOTE__COMMAND", shlex.join(words))


def test_the_plain_command_works_on_the_inference_host(mlxctl: Mlxctl, far: Path, tmp_path: Path) -> None:
    model = write_fake_model(tmp_path / "tiny.gguf")
    assert mlxctl("import", str(model), "tiny:1").code == 0
    assert (far / "store" / "index.json").exists()
    assert [m["name"] for m in mlxctl("list", "--json").json()["models"]] == ["tiny:1"]
    assert mlxctl("--local", "list", "--json").json() == {"models": []}
    assert mlxctl("--json", "show", "tiny:1").json()["name"] == "tiny:1"


def test_a_slot_over_there_is_filled_from_here(mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slotted() as daemon:
        runs(monkeypatch, daemon.home.root, "-m", "homelab_llm.interface.cli.main")
        done = mlxctl("load", "a", "jerry-xl")
        assert done.out.startswith("a:latest answers on "), done
        assert mlxctl("status", "--json").json()["slots"][0]["model"] == "a:latest"
        assert mlxctl("run", "jerry-xl", stdin=b"fake: tokens=2").out == "tok0 tok1\n"
        assert mlxctl("load", "b", "jerry-xl").code == 6
    assert mlxctl("--local", "status", "--json").json()["running"] is False


def test_exit_codes_and_both_streams_come_back(mlxctl: Mlxctl, far: Path) -> None:
    missing = mlxctl("show", "nothing")
    assert (missing.code, missing.out) == (4, "")
    assert missing.err.startswith("error: no model nothing:latest")
    assert missing.err.count("error:") == 1
    wrong = mlxctl("list", "--nonsense")
    assert wrong.code == 2
    assert "No such option" in wrong.err
    assert mlxctl("show", "nothing", "--json").json()["error"]["exit_code"] == 4


def test_every_argument_and_standard_input_arrive_as_they_are(
    mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, far, "-c", TELL)
    nasty = [
        "two words",
        "it's",
        '"',
        "$HOME `id` \\",
        "a\nb\n",
        "",
        "-",
        "--",
        "-x",
        "*",
        "~",
        "ünï→😀",
        "\t",
        "!!",
        ";",
    ]
    told = mlxctl("--host", NAME, "--home", "/a b", "-v", "show", *nasty, stdin=b"line 1\nline 2")
    assert told.code == 3
    version = ["--expect-version", homelab_llm.__version__]
    assert told.json()["argv"] == [*version, "--home", "/a b", "-v", "show", *nasty]
    assert told.json()["stdin"] == "line 1\nline 2"
    assert told.json()["terminals"] == [False, False, False]


def test_a_terminal_here_is_a_terminal_there(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, far, "-c", TELL)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "list"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as running:
        os.close(slave)
        shown = b""
        while b"}" not in shown:
            shown += os.read(master, 65536)
        assert running.wait(20) == 3
    os.close(master)
    assert json.loads(shown.decode())["terminals"] == [True, True, True]


def test_a_host_that_cannot_be_reached_is_a_typed_error_with_the_next_step(mlxctl: Mlxctl, far: Path) -> None:
    shown = mlxctl("--host", "gone", "list", "--json")
    assert shown.code == 10
    error = shown.json()["error"]
    assert (error["code"], error["facts"]) == ("host_unavailable", {"host": "gone"})
    assert error["hint"].startswith("ssh gone true")
    assert "refused" in shown.err, "ssh says why"


def test_a_command_that_is_not_there_names_the_setting(
    mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMELAB_REMOTE__COMMAND", "no-such-program-anywhere")
    shown = mlxctl("list")
    assert shown.code == 4
    assert "remote.command" in shown.err


def test_another_version_is_refused_where_something_may_change_and_warned_of_where_not(
    mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, far, "-c", OTHER_VERSION)
    refused = mlxctl("prune", "--json")
    assert refused.code == 6
    error = refused.json()["error"]
    assert error["code"] == "version_mismatch"
    assert error["facts"] == {"here": "99.0", "there": homelab_llm.__version__}
    assert not (far / "store").exists()
    read = mlxctl("list")
    assert read.code == 0
    assert f"warning: mlxctl is {homelab_llm.__version__} on the machine it was typed on and 99.0 here" in read.err


def test_a_program_too_old_to_compare_versions_is_another_version(
    mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, far, "-c", "import sys; sys.exit('error: No such option' if 0 else 2)")
    shown = mlxctl("prune")
    assert shown.code == 6
    assert "too old" in shown.err


def test_a_forwarded_call_is_not_forwarded_again(mlxctl: Mlxctl, far: Path) -> None:
    far.mkdir()
    (far / "config.yaml").write_text("remote:\n  inference_host: gone\n")
    assert mlxctl("list", "--json").json() == {"models": []}


def test_the_settings_file_names_the_host_and_an_empty_variable_overrides_it(
    mlxctl: Mlxctl, far: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMELAB_REMOTE__INFERENCE_HOST")
    (home.root / "config.yaml").write_text("remote:\n  inference_host: gone\n")
    assert mlxctl("list").code == 10
    assert mlxctl("--host", NAME, "list").code == 0
    assert mlxctl("list", environ={"HOMELAB_REMOTE__INFERENCE_HOST": ""}).code == 0
    (home.root / "config.yaml").write_text("# remote.inference_host: gone\n")
    assert mlxctl("list", "--json").json() == {"models": []}


def test_verbs_that_concern_this_machine_stay_here(mlxctl: Mlxctl, far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMELAB_REMOTE__INFERENCE_HOST", "gone")
    assert mlxctl("completion", "bash").code == 0
    assert mlxctl("load", "--help").code == 0
    assert mlxctl("service", "install", "--print").code == 0
    refused = mlxctl("--host", "gone", "service", "status")
    assert refused.code == 3
    assert "ssh -t gone mlxctl service status" in refused.err
    assert mlxctl("--host", "-oProxyCommand=x", "list").code == 3
    assert mlxctl("--host", "a", "--local", "list").code == 2


def test_control_c_here_ends_the_command_there(far: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (far / "logs").mkdir(parents=True)
    (far / "logs" / "daemon.log").write_text("one line\n")
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    program = f"import os, sys; os.open({str(alive)!r}, os.O_WRONLY)\n"
    program += "from homelab_llm.interface.cli.main import main\nsys.exit(main())"
    runs(monkeypatch, far, "-c", program)
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "logs", "-f"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        with alive.open("rb") as held_open:
            assert running.stdout is not None
            assert running.stdout.readline() == b"one line\n"
            # A terminal sends Ctrl-C to the whole group; this group is the test's, so both are told one by one.
            (ssh,) = psutil.Process(running.pid).children()
            running.send_signal(signal.SIGINT)
            ssh.send_signal(signal.SIGINT)
            assert running.wait(20) == 130
            readable, _, _ = select.select([held_open], [], [], 20)
            assert readable, "the far command goes on"
            assert held_open.read() == b""


def test_the_table_of_reach_covers_the_tree_and_nothing_else() -> None:
    paths = [path.removeprefix("mlxctl ").split() for path, _ in verbs()]
    assert set(REACH) == {" ".join(path) for path in paths}
    assert verb_path(["key", "--json", "list"]) == "key list"
    assert reach_of(["nonsense"]).changes, "what is unknown counts as changing something"
    assert not reach_of(["status", "--json"]).changes


def test_a_settings_file_without_a_host_is_not_parsed(home: Home) -> None:
    (home.root / "config.yaml").write_text("fleet:\n  queue_limit: 5\n")
    code = "import sys; from homelab_llm.interface.cli.main import main; main(); print('yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
