"""The small parts around the daemon: its record, the manager's datagram, its own log, the end of a log."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.paths import Home
from homelab_llm.ops.notify import notify
from homelab_llm.ops.own_log import KEPT_FILES, OwnLog, writes_to
from homelab_llm.ops.record import DaemonRecord, read_record, write_record
from homelab_llm.ops.tail import follow, last_lines

RECORD = DaemonRecord(
    pid=7,
    version="1.2",
    started_unix_s=3.5,
    socket="/x/daemon.sock",
    listeners=["127.0.0.1:1"],
    warnings=[{"text": "w", "hint": "h"}],
)


def test_the_record_is_read_back_as_written(home: Home) -> None:
    write_record(home, RECORD)
    assert read_record(home) == RECORD
    assert home.daemon_json.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"pid": 1}', b"\xff\xfe"])
def test_a_record_that_is_none_reads_as_none(home: Home, content: bytes) -> None:
    assert read_record(home) is None
    home.daemon_json.write_bytes(content)
    assert read_record(home) is None


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told(home: Home, abstract: bool) -> None:
    path = str(home.runtime / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(5)
        assert notify({"NOTIFY_SOCKET": ("@" + path) if abstract else path}, "READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_is_said_and_nothing_breaks() -> None:
    assert notify({}, "READY=1") is False
    assert notify({"NOTIFY_SOCKET": "relative"}, "READY=1") is False
    assert notify({"NOTIFY_SOCKET": "/nonexistent/socket"}, "READY=1") is False


@pytest.mark.requirement("R-U3")
def test_the_daemons_log_is_rotated_and_five_old_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = OwnLog(path, max_bytes=100, descriptors=(descriptor,))
    for number in range(40):
        log.write(f"line {number:02} {'x' * 30}\n")
    os.write(descriptor, b"printed by native code\n")
    os.close(descriptor)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["daemon.log", *(f"daemon.log.{n}" for n in range(1, KEPT_FILES + 1))]
    assert all(file.stat().st_size <= 100 + 30 for file in tmp_path.iterdir())
    assert path.read_text().endswith("printed by native code\n")
    kept = "".join((tmp_path / name).read_text() for name in [*names[:0:-1], names[0]])
    numbers = [int(line.split()[1]) for line in kept.splitlines() if line.startswith("line")]
    assert numbers == list(range(40 - len(numbers), 40)), "no line is lost or out of order"


def test_a_log_that_somebody_removed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = OwnLog(path, max_bytes=10, descriptors=(descriptor,))
    log.write("first line\n")
    path.unlink()
    log.write("second line\n")
    os.close(descriptor)
    assert path.read_text() == "second line\n"


def test_a_daemon_knows_whether_a_descriptor_is_its_log(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with path.open("a") as stream:
        assert writes_to(path, stream.fileno())
        assert not writes_to(tmp_path / "other.log", stream.fileno())


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")),
        max_size=30,
    ),
    st.integers(0, 12),
)
def test_the_last_lines_are_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int
) -> None:
    path = tmp_path_factory.mktemp("tail") / "x.log"
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    assert last_lines(path, count) == (lines[-count:] if count else [])


def test_the_tail_of_a_large_file_is_found_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"line {n} {'x' * 100}\n" for n in range(20_000)))
    assert [line.split()[1] for line in last_lines(path, 1000)] == [str(n) for n in range(19_000, 20_000)]
    assert last_lines(tmp_path / "none.log", 5) == []


def test_following_a_log_goes_over_to_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\n")
    seen: list[str] = []
    step = threading.Event()

    def read() -> None:
        for line in follow(path, poll_s=0.01):
            seen.append(line)
            step.set()
            if line == "end":
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    for number, line in enumerate(("one", "two", "three")):
        # The reader may not be there yet for the first line: say it until it was heard.
        while not step.is_set():
            with path.open("a") as stream:
                stream.write(f"{line}\n")
            step.wait(0.2)
        step.clear()
        if number == 1:
            path.rename(tmp_path / "x.log.1")
    with path.open("a") as stream:
        stream.write("end\n")
    thread.join(10)
    assert not thread.is_alive()
    assert list(dict.fromkeys(seen)) == ["one", "two", "three", "end"]
