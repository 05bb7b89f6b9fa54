"""Many processes change one registry at once, and a large registry is read: nothing is lost, and it stays quick."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.core.registry.document import Document, read_document
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState, duplicates, fail, serve
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry

if TYPE_CHECKING:
    from tests.bars.conftest import Note

_SLOTS = {"HOMELAB_SLOTS__PORTS": "8100-8109"}
_IMPORT = [sys.executable, "-m", "homelab_llm.interface.cli.main", "registry", "import", "-", "--json"]

# What the daemon writes for a load and an unload, ten times each, against whoever else wants the port.
_LOADS = """
import sys, time
from pathlib import Path
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import clear, register, serve
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry
url, path, export, number = sys.argv[1:]
registry = Registry(Database.open(url, Path(path)), Path(export))
slug, port = f"loaded-{number}", 8100 + int(number) % 10
for turn in range(10):
    registry.change(lambda state: serve(register(state, Entry(f"{slug}-{turn}", f"{slug}-{turn}:latest")),
                                        port, f"{slug}-{turn}", time.time()))
    if turn % 3 == 0:
        registry.change(lambda state: clear(state, port, time.time()))
    registry.change(lambda state: register(state, Entry(slug, f"{slug}:latest", context_length=turn + 1)))
"""


def an_import(number: int) -> bytes:
    """A document with one model; every second one wants a port that others want too."""
    port = {"port": 8100 + number % 10} if number % 2 else {}
    entry = {"model_id": f"imported-{number}", "format": "gguf", **port}
    return json.dumps({"version": 1, "models": {f"imported-{number}": entry}}).encode()


@pytest.mark.requirement("R-F2", "R-S2")
def test_many_processes_at_once_lose_no_change_and_agree_with_the_file(
    home: Home, database_url: str, full: bool, figure: Note
) -> None:
    half = 25 if full else 6
    export = home.root / "registry.json"
    environ = {**os.environ, **_SLOTS, "HOMELAB_DATA__URL": database_url}
    subprocess.run(_IMPORT, input=an_import(0), env=environ, check=True, capture_output=True)
    loading = [sys.executable, "-c", _LOADS, database_url, str(home.database), str(export)]

    def begun(argv: list[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe, stderr=pipe)

    began = time.monotonic()
    loads = {number: begun([*loading, str(number)]) for number in range(1, half + 1)}
    imports = {number: begun(_IMPORT) for number in range(1, half + 1)}
    said = {number: process.communicate(an_import(number)) for number, process in imports.items()}
    errors = {number: process.communicate()[1] for number, process in loads.items()}
    spent_s = time.monotonic() - began
    database = Database.open(database_url, home.database)
    state = Registry(database).read()
    database.close()

    refused = {number for number, process in imports.items() if process.returncode}
    assert {json.loads(said[number][0])["error"]["code"] for number in refused} <= {"slot_in_use"}
    assert {f"imported-{number}" for number in {0, *imports} - refused} <= set(state.entries)
    assert [process.returncode for process in loads.values()] == [0] * half, errors
    assert {f"loaded-{number}-{turn}" for number in loads for turn in range(10)} <= set(state.entries)
    assert {state.entry(f"loaded-{number}").context_length for number in loads} == {10}
    assert state.revision >= 1 + len(imports) - len(refused) + 20 * half, "every change that was made is counted"
    assert duplicates(state.assignments.values()) == []
    answering = [held.actual for held in state.assignments.values() if held.actual]
    assert len(set(answering)) == len(answering)
    assert read_document(export.read_bytes()) == Document.of(state)
    assert list(home.root.glob("registry.json.edited-*")) == []
    dialect = "sqlite" if database_url.startswith("sqlite") else "postgresql"
    spread = f"{2 * half} processes, {state.revision} changes, {len(refused)} refused a used port"
    figure(f"registry.at_once.{dialect}", spent_s, "s", spread=spread)


def timed_ms(action: Callable[[], object], times: int) -> list[float]:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        spent.append((time.perf_counter() - began) * 1000)
    return spent


@pytest.mark.requirement("R-F2")
def test_a_thousand_models_are_read_and_found_quickly(
    database: Database, tmp_path: Path, full: bool, figure: Note
) -> None:
    registry = Registry(database, tmp_path / "registry.json")
    plain = Entry("", "", "Org/Model", "/m", request_params={"temperature": 0.5}, flags=("--x",))
    names = {f"m-{number}": f"org/m-{number}:1" for number in range(1000)}
    entries = {slug: replace(plain, slug=slug, model_id=model_id) for slug, model_id in names.items()}
    state = registry.change(lambda _: RegistryState(entries))
    assert registry.read() == state
    times = 50 if full else 5
    dialect = database.dialect
    read_ms = statistics.median(timed_ms(registry.read, times))
    figure(f"registry.read_1000.{dialect}", read_ms, "ms", goal="<= 15")
    turns = iter(range(10**6))
    changed = timed_ms(lambda: registry.change(lambda state: serve(state, 8100, f"m-{next(turns)}", 1)), times)
    figure(f"registry.change_1000.{dialect}", statistics.median(changed), "ms")
    noted = timed_ms(lambda: registry.change(lambda state: fail(state, 8100, "x", next(turns))), times)
    figure(f"registry.note_1000.{dialect}", statistics.median(noted), "ms")
    found = statistics.median(timed_ms(lambda: state.by_model("org/m-999:1"), 1000)) * 1000
    figure(f"registry.look_up_1000.{dialect}", found, "us")
