from __future__ import annotations

import os
from pathlib import Path

import pytest

from homelab_llm.store.clone import clone_into

CONTENT = b"to be cloned" * 5000


@pytest.mark.parametrize("place", ["disk", "tmp_path"])
def test_a_clone_has_the_same_content_or_the_target_is_as_it_was(request: pytest.FixtureRequest, place: str) -> None:
    folder: Path = request.getfixturevalue(place)
    (folder / "source").write_bytes(CONTENT)
    target = folder / "target"
    with (folder / "source").open("rb") as source, target.open("wb") as opened:
        cloned = clone_into(source.fileno(), opened.fileno(), target, folder / "beside")
    assert target.read_bytes() == (CONTENT if cloned else b"")
    assert not (folder / "beside").exists()
    assert (folder / "source").read_bytes() == CONTENT


def test_a_pipe_cannot_be_cloned(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with (tmp_path / "target").open("wb") as target:
            assert not clone_into(reader, target.fileno(), tmp_path / "target", tmp_path / "beside")
    finally:
        os.close(reader)
        os.close(writer)
