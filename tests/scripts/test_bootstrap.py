"""The bootstrap: a machine with git, make and Python only."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "UV_FOLDER", tmp_path / "uv")
    monkeypatch.setenv("PATH", str(tmp_path))
    return module


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


@pytest.mark.requirement("R-U8")
def test_uv_comes_by_pip_when_it_is_not_on_the_path(bootstrap: ModuleType, tmp_path: Path) -> None:
    found = bootstrap.find_uv()
    assert Path(found).is_relative_to(tmp_path)
    pinned = re.search(r"^uv==(\S+)", (ROOT / "requirements" / "uv.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] in _version(found)


@pytest.mark.requirement("R-U8")
def test_pip_comes_out_of_python_itself_where_no_pip_is_installed(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([bootstrap.sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(bootstrap.sys, "executable", str(bare / "bin" / "python"))
    command = bootstrap.pip_command()
    assert command is not None
    assert ".whl" in command[1]
    assert "pip" in subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def index(bootstrap: ModuleType, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A package index on loopback with one `uv` wheel for this machine: its address and the wheel's SHA-256."""
    system = "macosx_11_0" if bootstrap.sys.platform == "darwin" else "manylinux_2_17"
    name = f"uv-9.9-py3-none-{system}_{bootstrap.platform.machine()}.whl"
    folder = tmp_path / "index"
    (folder / "uv").mkdir(parents=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("uv-9.9.data/scripts/uv", "#!/bin/sh\necho uv 9.9\n")
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    listing = {"files": [{"filename": name, "url": f"../{name}", "hashes": {"sha256": digest}}]}
    (folder / "uv" / "index.html").write_text(json.dumps(listing))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", digest
    server.shutdown()
    server.server_close()


@pytest.mark.requirement("R-U8", "R-S1")
def test_without_any_pip_the_wheel_comes_from_the_configured_index_by_its_pinned_hash(
    bootstrap: ModuleType, index: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "pip_command", lambda: None)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index[0])
    monkeypatch.setattr(bootstrap, "pinned_hashes", lambda: {"0" * 64})
    with pytest.raises(SystemExit):
        bootstrap.find_uv()
    assert not (tmp_path / "uv").exists()
    monkeypatch.setattr(bootstrap, "pinned_hashes", lambda: {index[1]})
    assert _version(bootstrap.find_uv()) == "uv 9.9\n"


@pytest.mark.requirement("R-U8")
def test_the_bootstrap_reads_on_python_3_9() -> None:
    source = (ROOT / "scripts" / "bootstrap.py").read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    assert "from __future__ import annotations" in source
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)]


@pytest.mark.requirement("R-U8")
def test_locks_carry_hashes_and_no_address() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        text = lock.read_text()
        pins = re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)
        assert pins, lock
        assert text.count("--hash=sha256:") >= len(pins), lock
        assert "://" not in text, lock
