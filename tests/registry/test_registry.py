"""The kept registry, on SQLite and PostgreSQL: nothing is lost between processes, to a kill or to an edited file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from homelab_llm.core import failpoints
from homelab_llm.core.errors import HomelabError, SlotInUse
from homelab_llm.core.events import Event
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.document import Document, read_document, write_document
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.merge import merge, replace_all
from homelab_llm.core.registry.slots import ALIASES, SlotTable
from homelab_llm.core.registry.state import RegistryState, assign, clear, fail, forget, register, serve
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry
from homelab_llm.data.registry_file import next_step, registry_path
from homelab_llm.data.tables import slots

FULL = Entry(
    slug="full",
    model_id="org/full:latest",
    repo_id="Org/Full",
    cache_path="/m/full.gguf",
    format="mlx",
    source_path="/s",
    chat_template="{{ x }}",
    tool_call_parser="hermes",
    reasoning_parser="qwen3",
    context_length=32768,
    max_output_tokens=4096,
    request_params={"temperature": 0.5, "stop": ["a", "ä"]},
    draft_model="draft:1",
    engine="mlx",
    flags=("--a", "b c"),
    pinned=True,
    keep_alive_s=-1.0,
    extra={"og_path": "/o", "nested": {"a": [1, None, "ü"]}},
)


def an_entry(slug: str) -> Entry:
    return Entry(slug, f"{slug}:latest", cache_path="/m")


def registered(*slugs: str) -> Callable[[RegistryState], RegistryState]:
    def move(state: RegistryState) -> RegistryState:
        for slug in slugs:
            state = register(state, an_entry(slug))
        return state

    return move


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "registry.json"


@pytest.fixture
def told() -> list[Event]:
    """What the registry published."""
    return []


@pytest.fixture
def registry(database: Database, file: Path, told: list[Event]) -> Registry:
    return Registry(database, file, publish=told.append)


def exported(file: Path) -> Document:
    return read_document(file.read_bytes())


@pytest.mark.requirement("R-F2")
def test_every_field_is_kept_and_exported(registry: Registry, file: Path) -> None:
    state = registry.change(lambda state: serve(register(state, FULL), 8103, "full", 1.5))
    state = registry.change(lambda state: fail(state, 8103, "reason", 2.5))
    assert registry.read() == state
    assert state.entry("full") == FULL
    held = state.assignment(8103)
    assert (held.actual, held.last_good, held.last_failure, held.failed_unix_s) == ("full", "full", "reason", 2.5)
    assert exported(file) == Document({"full": FULL}, {"full": 8103})


@pytest.mark.requirement("R-F2")
def test_a_change_is_one_revision_and_no_change_is_none(registry: Registry, file: Path) -> None:
    assert registry.read().revision == 0
    assert registry.change(registered("a")).revision == 1
    before = file.stat()
    assert registry.change(registered("a")).revision == 1
    assert registry.revision() == 1
    assert file.stat() == before, "what did not change was not written"


def test_a_move_that_raises_changes_nothing(registry: Registry) -> None:
    state = registry.change(lambda state: serve(registered("a", "b")(state), 8100, "a", 1))
    with pytest.raises(SlotInUse):
        registry.change(lambda state: assign(register(state, FULL), 8100, "b", 2))
    assert registry.read() == state


def test_ports_swap_their_models_and_entries_go_in_one_change(registry: Registry) -> None:
    registry.change(registered("a", "b", "c"))
    registry.change(lambda state: serve(serve(state, 8100, "a", 1), 8101, "b", 1))
    swapped = registry.change(lambda state: merge(state, Document({}, {"a": 8101, "b": 8100}), 2))
    assert registry.read() == swapped
    assert (swapped.port_of("a"), swapped.port_of("b")) == (8101, 8100)
    registry.change(lambda state: forget(clear(clear(state, 8101, 3), 8100, 3), "a"))
    assert list(registry.read().entries) == ["b", "c"]
    replaced = registry.change(lambda state: replace_all(state, Document({"full": FULL}, {"full": 8109}), 4))
    assert registry.read() == replaced


def test_two_models_on_one_port_can_never_be_kept(registry: Registry) -> None:
    state = registry.change(lambda state: serve(registered("a")(state), 8100, "a", 1))
    broken = replace(state.assignment(8100), port=8101)
    with pytest.raises(HomelabError):
        registry.change(lambda state: replace(state, assignments={**state.assignments, 8101: broken}))
    assert registry.read() == state


@pytest.mark.requirement("R-F2")
def test_threads_at_once_lose_nothing(registry: Registry, file: Path) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            registry.change(registered(f"m{number}-{turn}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = registry.read()
    assert (len(state.entries), state.revision) == (20, 20)
    assert exported(file) == Document.of(state)


def test_a_thousand_entries_are_read_back(registry: Registry) -> None:
    state = registry.change(registered(*(f"m{number}" for number in range(1000))))
    assert registry.read() == state
    changed = registry.change(lambda state: serve(state, 8100, "m7", 1))
    assert registry.read() == changed


def test_the_slots_of_the_settings_are_noted(registry: Registry, database: Database) -> None:
    for ports, expected in (("8100-8109", 10), ("8105", 1), ("none", 0)):
        registry.heal(SlotTable.of(ports, ALIASES))
        with database.read() as connection:
            assert len(connection.execute(select(slots)).all()) == expected


_KILLED = """
import sys
from pathlib import Path
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import register, serve
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry
registry = Registry(Database.open(sys.argv[1], Path()), Path(sys.argv[2]))
registry.change(lambda state: serve(register(state, Entry("new", "new:latest")), 8101, "new", 2))
"""


@pytest.mark.requirement("R-S2", "R-F2")
@pytest.mark.parametrize("mended_by", ["a start", "the next change"])
@pytest.mark.parametrize(
    "point", ["registry.before_commit", "registry.after_commit", "registry.before_export", "atomic.before_rename"]
)
def test_killed_anywhere_in_a_change_both_sides_are_old_or_new_and_are_brought_in_line(
    point: str, mended_by: str, registry: Registry, database_url: str, file: Path, told: list[Event]
) -> None:
    old = registry.change(lambda state: serve(registered("a")(state), 8100, "a", 1))
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, database_url, str(file)],
        env=os.environ | {"HOMELAB_FAILPOINTS": f"{point}=kill"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    found = registry.read()
    assert found == old if point == "registry.before_commit" else set(found.entries) == {"a", "new"}
    assert exported(file) == Document.of(old), "the file was not reached yet"
    assert registry.file_drift() == "", "nobody edited it"
    if mended_by == "a start":
        registry.heal()
    else:
        found = registry.change(registered("later"))
    assert exported(file) == Document.of(found)
    assert told == []
    assert sorted(path.name for path in file.parent.iterdir()) == [".registry.json.lock", "registry.json"]


@pytest.mark.requirement("R-F2")
def test_an_edited_file_is_reported_and_kept_aside_at_the_next_change(
    registry: Registry, file: Path, told: list[Event]
) -> None:
    registry.change(lambda state: serve(registered("a")(state), 8100, "a", 1))
    edited = json.loads(file.read_bytes())
    edited["models"]["a"]["port"] = 8105
    edited["models"]["theirs"] = {"repo_id": "Org/Theirs", "format": "gguf"}
    content = json.dumps(edited).encode()
    file.write_bytes(content)
    words = f"{file} was edited: a is on port 8105 in place of 8100; theirs is new"
    assert registry.file_drift() == words
    registry.change(lambda state: fail(state, 8100, "reason", 2))
    registry.heal()
    assert file.read_bytes() == content, "while there is nothing new to export it stays"
    state = registry.change(registered("b"))
    assert exported(file) == Document.of(state)
    assert registry.file_drift() == ""
    (aside,) = file.parent.glob("registry.json.edited-*")
    assert aside.read_bytes() == content
    (event,) = told
    assert (event.kind, event.level) == ("drift", "warning")
    assert str(aside) in event.text


def test_many_edits_are_said_in_few_words(registry: Registry, file: Path) -> None:
    registry.change(registered("a"))
    file.write_bytes(write_document(Document({f"b{number}": an_entry(f"b{number}") for number in range(1000)})))
    assert (
        registry.file_drift()
        == f"{file} was edited: a is gone; b0 is new; b1 is new; b10 is new; b100 is new; and 996 more"
    )


@pytest.mark.requirement("R-F2")
def test_an_edited_file_that_is_imported_is_replaced_without_a_copy(
    registry: Registry, file: Path, told: list[Event]
) -> None:
    registry.change(registered("a"))
    content = b'{"version": 1, "models": {"b": {"model_id": "b", "format": "gguf", "port": 8101}}}'
    file.write_bytes(content)
    document = read_document(content)
    state = registry.change(lambda state: merge(state, document, 1), taken=content)
    assert exported(file) == Document.of(state)
    assert state.port_of("b") == 8101
    assert (told, list(file.parent.glob("*edited*"))) == ([], [])


@pytest.mark.parametrize("content", [b"", bytes(300), b'{"version": 1, "mod', b'{"version": 9, "models": {}}'])
def test_a_damaged_file_is_reported_kept_and_replaced(
    content: bytes, registry: Registry, file: Path, told: list[Event]
) -> None:
    registry.change(registered("a"))
    file.write_bytes(content)
    assert "cannot be read: " in registry.file_drift()
    state = registry.change(registered("b"))
    assert exported(file) == Document.of(state)
    assert next(file.parent.glob("registry.json.edited-*")).read_bytes() == content
    assert len(told) == 1


def test_a_deleted_file_is_written_again_at_the_next_start(registry: Registry, file: Path) -> None:
    registry.change(registered("a"))
    file.unlink()
    assert registry.file_drift() == ""
    registry.heal()
    assert list(exported(file).entries) == ["a"]


def test_another_way_to_write_the_same_is_no_drift(registry: Registry, file: Path, told: list[Event]) -> None:
    registry.change(registered("a"))
    file.write_text(json.dumps(json.loads(file.read_bytes())))
    assert registry.file_drift() == ""


@pytest.mark.requirement("R-F2")
def test_a_registry_of_another_origin_waits_to_be_imported(registry: Registry, file: Path, told: list[Event]) -> None:
    file.parent.mkdir()
    content = b'{"version": 1, "models": {"theirs": {"repo_id": "Org/Theirs", "format": "mlx", "port": 8100}}}'
    file.write_bytes(content)
    registry.heal()
    assert file.read_bytes() == content
    assert registry.file_drift() == f"{file} is of another origin: theirs is new, on port 8100"


def test_a_folder_that_cannot_be_written_costs_the_export_only(
    database: Database, tmp_path: Path, told: list[Event]
) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry(database, tmp_path / "file" / "registry.json", publish=told.append)
    state = registry.change(registered("a"))
    assert registry.read() == state
    assert [event.kind for event in told] == ["drift"]
    with pytest.raises(OSError):
        registry.export()
    assert "cannot be read" in registry.file_drift()


@pytest.fixture
def armed() -> Iterator[Callable[[str], None]]:
    """Makes this process fail at a place; nowhere any more when the test ends."""
    yield failpoints.arm
    failpoints.arm("")


@pytest.mark.requirement("R-S2")
def test_a_full_disk_costs_the_export_only_and_the_next_change_makes_it_good(
    registry: Registry, file: Path, told: list[Event], armed: Callable[[str], None]
) -> None:
    old = registry.change(registered("a"))
    armed("atomic.before_rename=enospc")
    registry.change(registered("b"))
    assert exported(file) == Document.of(old)
    assert "could not be written" in told[0].text
    assert registry.file_drift() == ""
    state = registry.change(registered("c"))
    assert exported(file) == Document.of(state)
    assert sorted(state.entries) == ["a", "b", "c"]
    assert len(told) == 1


@pytest.mark.requirement("R-S2")
def test_a_failure_before_the_commit_changes_nothing(registry: Registry, armed: Callable[[str], None]) -> None:
    armed("registry.before_commit=raise")
    with pytest.raises(OSError, match="before_commit"):
        registry.change(registered("a"))
    assert registry.read() == RegistryState()


def test_a_second_place_is_known_apart_from_the_first(
    registry: Registry, database: Database, file: Path, tmp_path: Path, told: list[Event]
) -> None:
    other = Registry(database, tmp_path / "other" / "registry.json", publish=told.append)
    for number in range(3):
        registry.change(registered(f"a{number}"))
        other.change(registered(f"b{number}"))
        assert (registry.file_drift(), other.file_drift()) == ("", "")
    registry.heal()
    assert file.read_bytes() == (tmp_path / "other" / "registry.json").read_bytes()
    assert told == []


def test_what_is_no_plain_file_is_neither_read_nor_replaced(registry: Registry, file: Path, told: list[Event]) -> None:
    file.parent.mkdir()
    os.mkfifo(file)
    registry.change(registered("a"))
    assert "no plain file" in registry.file_drift()
    assert file.is_fifo()
    assert len(told) == 1


def test_a_linked_file_stays_a_link(registry: Registry, file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    (tmp_path / "real.json").touch()
    file.symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").unlink()
    registry.change(registered("a"))
    assert file.is_symlink()
    assert list(exported(tmp_path / "real.json").entries) == ["a"]


def test_without_a_place_nothing_is_exported(database: Database) -> None:
    registry = Registry(database)
    registry.change(registered("a"))
    registry.export()
    assert registry.file_drift() == ""


@pytest.mark.requirement("R-F2")
def test_the_export_goes_to_the_hub_cache_of_the_default_home_only(tmp_path: Path) -> None:
    def place(setting: str, **environ: str) -> Path:
        environ |= {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_RUNTIME_DIR": str(tmp_path)}
        return registry_path(setting, Home.at(environ=environ), environ)

    usual = Path.home() / ".cache" / "huggingface" / "hub" / "registry.json"
    if sys.platform != "darwin":
        assert place("") == usual
        assert place("", HF_HOME=str(tmp_path)) == tmp_path / "hub" / "registry.json"
        assert place("", HF_HUB_CACHE=str(tmp_path / "c")) == tmp_path / "c" / "registry.json"
    assert place("", HOMELAB_HOME=str(tmp_path / "other")) == tmp_path / "other" / "registry.json"
    assert place(str(tmp_path / "x.json")) == tmp_path / "x.json"


@pytest.mark.parametrize(
    ("found", "exported_last", "step"),
    [
        ("", "old", "write"),
        ("old", "old", "write"),
        ("new", "old", "nothing"),
        ("edited", "old", "set aside and write"),
        ("edited", "new", "nothing"),
        ("", "new", "write"),
    ],
)
def test_what_happens_to_the_file_follows_from_four_digests(found: str, exported_last: str, step: str) -> None:
    assert next_step(found=found, ours={exported_last, ""}, exported=exported_last, new="new") == step


def test_equal_states_are_exported_as_equal_bytes(registry: Registry) -> None:
    one = registry.change(registered("b", "a"))
    other: Any = RegistryState({"a": an_entry("a"), "b": an_entry("b")})
    assert write_document(Document.of(one)) == write_document(Document.of(other))
