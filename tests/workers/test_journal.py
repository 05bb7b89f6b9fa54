"""The journal of a worker's output, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab_llm.inference.workers.host.journal import TAIL_BYTES, Journal

OUTPUT = (
    b'loading\n@progress {"stage": "load", "done": 0.5}\n@progress nonsense\n@progress {"stage": "load"}\nhalf a line'
)


def test_output_split_at_every_byte_gives_the_same_log_and_progress(tmp_path: Path) -> None:
    kept = b'loading\n@progress nonsense\n@progress {"stage": "load"}\nhalf a line'
    told: list[tuple[str, float]] = []
    for cut in range(len(OUTPUT) + 1):
        journal = Journal(str(tmp_path / f"{cut}.log"), 1000, 2, lambda stage, done: told.append((stage, done)))
        journal.feed(OUTPUT[:cut])
        journal.feed(OUTPUT[cut:])
        journal.close()
        assert told == [("load", 0.5)] * (cut + 1)
        assert (tmp_path / f"{cut}.log").read_bytes() == kept
        assert journal.tail == kept.decode()


def test_progress_stays_between_none_and_all(tmp_path: Path) -> None:
    told: list[float] = []
    journal = Journal(str(tmp_path / "log"), 1000, 2, lambda _, done: told.append(done))
    journal.feed(b'@progress {"stage": "load", "done": 7}\n@progress {"stage": "load", "done": -1}\n')
    journal.close()
    assert told == [1.0, 0.0]


def test_the_tail_and_a_line_without_end_are_bounded(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "log"), 1_000_000, 2, lambda *_: None)
    for _ in range(100):
        journal.feed(b"x" * 1000)
    assert len(journal.tail) <= TAIL_BYTES
    journal.close()
    assert (tmp_path / "log").stat().st_size == 100_000


@pytest.mark.parametrize("burst", [1, 7, 100, 5000])
def test_parts_never_grow_beyond_their_size_and_lines_stay_whole(tmp_path: Path, burst: int) -> None:
    path = tmp_path / "log"
    journal = Journal(str(path), 100, 4, lambda *_: None)
    content = b"".join(b"line %d\n" % number for number in range(200))
    for at in range(0, len(content), burst):
        journal.feed(content[at : at + burst])
    journal.close()
    parts = [path.with_name(name).read_bytes() for name in ("log.3", "log.2", "log.1", "log")]
    assert all(0 < len(part) <= 100 and part.endswith(b"\n") for part in parts)
    assert content.endswith(b"".join(parts))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_log_is_continued_after_a_restart(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        journal = Journal(str(tmp_path / "log"), 1000, 2, lambda *_: None)
        journal.feed(text)
        journal.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_folder_that_goes_away_costs_the_log_and_not_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    journal = Journal(str(folder / "log"), 100, 2, lambda *_: None)
    journal.feed(b"before\n")
    (folder / "log").unlink()
    folder.rmdir()
    for _ in range(50):
        journal.feed(b"a line of text\n")
    journal.close()
    assert journal.tail.endswith("a line of text\n")
    assert not folder.exists()


def test_a_part_that_cannot_be_moved_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "in the way").touch()
    journal = Journal(str(tmp_path / "log"), 100, 2, lambda *_: None)
    for _ in range(50):
        journal.feed(b"a line of text\n")
    journal.close()
    assert 0 < (tmp_path / "log").stat().st_size <= 100
