"""API keys in the database that the daemon and the command line share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from homelab_llm.core.errors import AlreadyExists, InvalidInput, InvalidName, InvalidSettings, KeyNotFound
from homelab_llm.data.database import Database
from homelab_llm.data.keys import KeyRing
from homelab_llm.data.tables import keys as table

OLD = {"name": "old", "scopes": ["inference", "admin"], "sha256": "0" * 64, "hint": "abcd", "created_unix_s": 5.0}


@pytest.fixture
def ring(database: Database) -> Iterator[KeyRing]:
    opened = KeyRing(database)
    yield opened
    opened.close()


@pytest.mark.requirement("R-G6", "R-S1")
def test_a_key_is_shown_once_and_kept_as_a_hash(ring: KeyRing, database: Database) -> None:
    assert not ring.any()
    token = ring.create("my-laptop")
    assert token.startswith("hl-")
    assert len(token) == 46
    with database.read() as connection:
        (row,) = connection.execute(select(table)).all()
    assert token not in str(row)
    assert token[3:] not in str(row)
    grant = ring.check(token)
    assert grant is not None
    assert (grant.name, grant.scopes, grant.priority) == ("my-laptop", frozenset({"inference"}), "interactive")
    assert ring.any()


@pytest.mark.requirement("B-10")
def test_a_key_may_be_for_batches(ring: KeyRing) -> None:
    grant = ring.check(ring.create("night", priority="batch"))
    assert grant is not None
    assert grant.priority == "batch"
    assert [key.priority for key in ring.list()] == ["batch"]


@pytest.mark.parametrize("token", ["", "hl-", "hl-x", "x" * 10_000, "hl-\udc80"])
def test_other_tokens_open_nothing(ring: KeyRing, token: str) -> None:
    ring.create("a")
    assert ring.check(token) is None


def test_a_revoked_key_opens_nothing_in_another_process_too(ring: KeyRing, database: Database) -> None:
    command_line = KeyRing(database)
    token = command_line.create("a")
    other = command_line.create("b", ("inference", "admin"))
    ring.list()  # what the daemon does twice a second
    assert ring.check(token) is not None
    command_line.revoke("a")
    ring.list()
    assert ring.check(token) is None
    assert ring.check(other) is not None
    assert [(key.name, key.scopes) for key in ring.list()] == [("b", ("inference", "admin"))]


def test_an_open_ring_sees_by_itself_what_others_change(ring: KeyRing, database: Database) -> None:
    ring.open()
    token = KeyRing(database).create("a")
    deadline = time.monotonic() + 20
    while ring.check(token) is None and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert ring.check(token) is not None


def test_a_database_that_is_lost_takes_no_key_away(tmp_path: Path, database: Database) -> None:
    ring = KeyRing(database)
    token = ring.create("a")
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE key_meta RENAME TO gone")
    ring._looked_s = float("-inf")
    assert ring.check(token) is not None
    assert ring.any()


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "x" * 64, "a\n"])
def test_a_key_has_a_slug_for_a_name(ring: KeyRing, name: str) -> None:
    with pytest.raises(InvalidName):
        ring.create(name)


def test_what_cannot_be_is_refused(ring: KeyRing) -> None:
    ring.create("a")
    with pytest.raises(AlreadyExists):
        ring.create("a")
    for scopes in (("root",), ()):
        with pytest.raises(InvalidInput):
            ring.create("b", scopes)
    wrong: Any = "urgent"
    with pytest.raises(InvalidInput):
        ring.create("b", priority=wrong)
    with pytest.raises(KeyNotFound):
        ring.revoke("b")
    assert [key.name for key in ring.list()] == ["a"]


def test_keys_made_at_once_are_all_there(database: Database) -> None:
    threads = [threading.Thread(target=KeyRing(database).create, args=(f"k{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyRing(database).list()) == sorted(f"k{number}" for number in range(12))


@pytest.mark.requirement("R-G6")
def test_the_file_of_an_earlier_version_is_taken_over_once(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"version": 1, "keys": [OLD, {**OLD, "name": "mine"}]}))
    token = ring.create("mine")
    assert ring.import_file(path) == 1
    assert not path.exists()
    assert (tmp_path / "keys.json.imported").exists()
    assert next((key.name, key.scopes) for key in ring.list()) == ("old", ("inference", "admin"))
    assert ring.check(token) is not None
    ring.revoke("old")
    assert ring.import_file(path) == 0
    assert [key.name for key in ring.list()] == ["mine"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"version": 2, "keys": []}', '{"version":1,"keys":[{}]}']
)
def test_a_damaged_file_of_an_earlier_version_is_told_and_kept(ring: KeyRing, tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(InvalidSettings):
        ring.import_file(path)
    assert path.read_text() == content
    assert ring.list() == ()
