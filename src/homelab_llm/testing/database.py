"""A ready-made system database for tests: migrated once for each version of the migrations, then copied."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import homelab_llm.data.migrations
from homelab_llm.core.locks import locked
from homelab_llm.data.upgrade import upgraded


def ready_database(path: Path) -> Path:
    """Put an empty database of the newest schema at ``path``, if nothing is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(_template(), path)
    return path


@cache
def _template() -> Path:
    """The migrated file; made by the real migration, kept in the system's temporary folder."""
    seen = hashlib.sha256()
    for script in sorted(Path(homelab_llm.data.migrations.__file__).parent.rglob("*.py")):
        seen.update(script.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"homelab-llm-database-{os.getuid()}-{seen.hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with locked(folder / "lock"):
        upgraded(folder, "")
    return folder / "system.db"
