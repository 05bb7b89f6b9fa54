from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from homelab_llm.core import failpoints
from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.errors import Denied, StoreBusy
from homelab_llm.core.locks import holder_pid, locked, try_lock
from homelab_llm.core.paths import Home, runtime_folder


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("action", ["kill", "raise", "enospc"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, action: str) -> None:
    target = tmp_path / "state.json"
    target.write_bytes(b"old")
    program = (
        "from pathlib import Path; from homelab_llm.core.atomic import write_atomic;"
        f"write_atomic(Path({str(target)!r}), b'new')"
    )
    environ = os.environ | {"HOMELAB_FAILPOINTS": f"atomic.before_rename={action}"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=False)
    assert done.returncode != 0
    assert target.read_bytes() == b"old"


def test_a_write_replaces_the_content_and_keeps_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "keys.json"
    write_atomic(target, b"1", mode=0o600)
    write_atomic(target, b"2", mode=0o600)
    assert target.read_bytes() == b"2"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import sys; from pathlib import Path; from homelab_llm.core.locks import try_lock;"
        f"assert try_lock(Path({str(lock)!r})); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert try_lock(lock) is None
        assert holder_pid(lock) == other.pid
        with pytest.raises(StoreBusy), locked(lock, wait_s=0.05):
            raise AssertionError("two holders")
        other.kill()
    with locked(lock, wait_s=5):
        assert holder_pid(lock) == os.getpid()


@pytest.mark.requirement("R-S1")
def test_the_runtime_folder_must_be_private(home: Home) -> None:
    home.runtime.chmod(0o755)
    with pytest.raises(Denied):
        home.ensure()
    home.runtime.chmod(0o700)
    assert home.ensure() == home


def test_socket_paths_stay_short_for_any_home() -> None:
    long_home = Path("/" + "h" * 200)
    for environ in ({}, {"XDG_RUNTIME_DIR": "/" + "r" * 90}, {"XDG_RUNTIME_DIR": "/tmp"}):
        assert len(os.fsencode(runtime_folder(long_home, environ) / "abcde.http")) <= 104


def test_failpoints_are_off_unless_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoints.failpoint("nowhere")
    failpoints.arm("here=raise@2")
    try:
        failpoints.failpoint("here")
        with pytest.raises(OSError, match="failpoint here"):
            failpoints.failpoint("here")
    finally:
        failpoints.arm("")
    with pytest.raises(ValueError, match="not a failpoint"):
        failpoints.arm("here=explode")
