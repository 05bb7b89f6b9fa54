"""Many operators at once: commands that load, unload and import in processes of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.slotted import rows, slotted

Note = Callable[..., None]
NAMES = "abcd"
MLXCTL = Path(sys.executable).with_name("mlxctl")
EXPECTED_CODES = {0, 6}  # done, or refused because the slot or the model was in use just then


def _command(number: int, ports: list[int], folder: Path) -> list[str]:
    chance = random.Random(number)  # noqa: S311 — the same commands in every run
    if number % 3 == 0:
        document = {"version": 1, "models": {f"import-{number}": _entry(f"import-{number}:latest")}}
        file = folder / f"{number}.json"
        file.write_text(json.dumps(document))
        return ["registry", "import", str(file)]
    port = str(chance.choice(ports))
    if number % 3 == 1:
        return ["load", chance.choice(NAMES), port, "--force"]
    return ["unload", port]


def _entry(model_id: str) -> dict[str, object]:
    return {"repo_id": "", "model_id": model_id, "cache_path": "", "format": "gguf", "port": None}


@pytest.mark.requirement("R-F2")
@pytest.mark.requirement("R-F3")
def test_commands_at_once_lose_nothing_and_agree_at_the_end(figure: Note, full: bool, tmp_path: Path) -> None:
    count = 50 if full else 9
    with slotted(slots=4, names=NAMES) as daemon:
        ports = [row["port"] for row in rows(daemon)]
        started = time.perf_counter()
        running = [_start(daemon, _command(number, ports, tmp_path)) for number in range(count)]
        ended = [(process, process.communicate(timeout=120)[0]) for process in running]
        taken_s = time.perf_counter() - started
        codes = Counter(process.returncode for process, _ in ended)
        said = [text for process, text in ended if process.returncode not in EXPECTED_CODES]
        assert set(codes) <= EXPECTED_CODES, (codes, said[:3])
        _agree(daemon, imports={f"import-{number}" for number in range(0, count, 3)})
    figure("contention.commands", taken_s, "s", "", f"{count} at once; exit codes {dict(codes)}")


def _start(daemon: Daemon, command: list[str]) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "HOMELAB_HOME": str(daemon.home.root),
        "XDG_RUNTIME_DIR": str(daemon.home.runtime.parent),
    }
    return subprocess.Popen(
        [str(MLXCTL), *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _agree(daemon: Daemon, imports: set[str]) -> None:
    """Database, export and what is served say the same; nothing that was imported is missing."""
    found = rows(daemon)
    assert [row["drift"] for row in found] == [""] * len(found)
    assigned = {row["port"]: row["desired"] for row in found if row["desired"]}
    assert len(set(assigned.values())) == len(assigned)
    assert all(row["model"] == row["desired"].replace("-latest", ":latest") for row in found)
    models = json.loads((daemon.home.root / "registry.json").read_text())["models"]
    assert imports <= set(models)
    assert {entry["port"]: slug for slug, entry in models.items() if entry["port"] is not None} == assigned
