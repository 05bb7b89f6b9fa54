"""``mlxctl handles`` on a real registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-D3")


def test_handles_are_written_checked_and_taken_in(
    mlxctl: Mlxctl, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMELAB_SLOTS__PORTS", "8100-8101")
    entry = {"repo_id": "hf:org/tiny", "model_id": "tiny:1", "cache_path": "/m/t.gguf", "format": "gguf"}
    models = {"tiny-1": {**entry, "port": 8100}, "other-1": {**entry, "model_id": "other:1", "port": None}}
    registry = tmp_path / "registry.json"
    registry.write_text(json.dumps({"version": 1, "models": models}))
    assert mlxctl("registry", "import", str(registry)).code == 0
    done = mlxctl("handles", "export", "--json").json()
    file = home.root / "handles.jsonl"
    assert (done["handles"], Path(done["path"])) == (1, file)
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["endpoint_ref"], line["selector"], line["managed_by"]) == (
        "ep_mlx_slot_8100",
        {"model": "tiny-1"},
        "manual",
    )
    assert mlxctl("handles", "export", "-").out == file.read_text()
    line["selector"] = {"model": "other-1"}
    changed = tmp_path / "changed.jsonl"
    changed.write_text(json.dumps(line))
    assert mlxctl("handles", "validate", str(changed)).code == 0
    assert mlxctl("handles", "import", str(changed)).code == 0
    assert '"other-1"' in mlxctl("handles", "export", "-").out
    changed.write_text("{}")
    assert mlxctl("handles", "validate", str(changed)).code == 3
    assert mlxctl("handles", "validate", str(tmp_path / "none")).code != 0
