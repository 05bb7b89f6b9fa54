"""API keys in a file that the daemon and the command line share."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from homelab_llm.core.errors import AlreadyExists, InvalidInput, InvalidName, InvalidSettings, KeyNotFound
from homelab_llm.gateway.keys import KeyFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


@pytest.mark.requirement("R-G6", "R-S1")
def test_a_key_is_shown_once_and_kept_as_a_hash(path: Path) -> None:
    keys = KeyFile(path)
    assert not keys.any()
    token = keys.create("my-laptop")
    assert token.startswith("hl-")
    assert len(token) == 46
    assert token not in path.read_text()
    assert token[3:] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    grant = keys.check(token)
    assert grant is not None
    assert (grant.name, grant.scopes) == ("my-laptop", frozenset({"inference"}))
    assert keys.any()


@pytest.mark.parametrize("token", ["", "hl-", "hl-x", "x" * 10_000, "hl-\udc80"])
def test_other_tokens_open_nothing(path: Path, token: str) -> None:
    keys = KeyFile(path)
    keys.create("a")
    assert keys.check(token) is None


def test_a_revoked_key_opens_nothing_in_another_process_too(path: Path) -> None:
    daemon, command_line = KeyFile(path), KeyFile(path)
    token = command_line.create("a")
    other = command_line.create("b", ("inference", "admin"))
    assert daemon.check(token) is not None
    command_line.revoke("a")
    daemon.list()  # what the daemon does twice a second
    assert daemon.check(token) is None
    assert daemon.check(other) is not None
    assert [(key.name, key.scopes) for key in daemon.list()] == [("b", ("inference", "admin"))]


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "x" * 64, "a\n"])
def test_a_key_has_a_slug_for_a_name(path: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        KeyFile(path).create(name)


def test_what_cannot_be_is_refused(path: Path) -> None:
    keys = KeyFile(path)
    keys.create("a")
    with pytest.raises(AlreadyExists):
        keys.create("a")
    with pytest.raises(InvalidInput):
        keys.create("b", ("root",))
    with pytest.raises(InvalidInput):
        keys.create("b", ())
    with pytest.raises(KeyNotFound):
        keys.revoke("b")
    assert [key.name for key in keys.list()] == ["a"]


def test_keys_made_at_once_are_all_there(path: Path) -> None:
    threads = [threading.Thread(target=KeyFile(path).create, args=(f"k{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyFile(path).list()) == sorted(f"k{number}" for number in range(12))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"version": 2, "keys": []}', '{"version":1,"keys":[{}]}']
)
def test_a_damaged_file_opens_nothing_and_is_not_overwritten(path: Path, content: str) -> None:
    keys = KeyFile(path)
    token = keys.create("a")
    path.write_text(content)
    with pytest.raises(InvalidSettings):
        keys.list()
    with pytest.raises(InvalidSettings):
        keys.create("b")
    assert KeyFile(path).check(token) is None
    assert path.read_text() == content


def test_the_command_line_pays_for_no_heavy_import() -> None:
    code = "import sys, homelab_llm.gateway.keys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"pydantic", "uvicorn", "starlette", "httptools", "orjson", "aiohttp", "httpx2", "yaml", "psutil"}
    assert not heavy & set(json.loads(out.replace("'", '"')))
