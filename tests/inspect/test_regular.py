"""open_regular: only plain files, whatever lies at the path."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.errors import NotRegularFile
from homelab_llm.store.inspect.model import inspect_model
from homelab_llm.store.inspect.regular import open_regular


def test_a_plain_file_opens_for_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with open_regular(tmp_path / "a") as stream:
        assert stream.read() == b"content"


@pytest.mark.requirement("R-S1")
def test_a_fifo_is_refused_at_once_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(NotRegularFile, match="FIFO"):
        inspect_model({"model.gguf": tmp_path / "model.gguf"})


@pytest.mark.requirement("R-S1")
def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotRegularFile, match="symbolic link"):
        open_regular(tmp_path / "link")


def test_a_folder_a_device_a_socket_and_nothing_are_refused(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/s")
        for path in (tmp_path, Path("/dev/zero"), Path(short) / "s", tmp_path / "missing", Path("a\0b")):
            with pytest.raises(NotRegularFile):
                open_regular(path)
