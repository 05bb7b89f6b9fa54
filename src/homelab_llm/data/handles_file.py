"""The exported handles: where ``handles.jsonl`` lies, and how it is kept up to date by the daemon."""

from __future__ import annotations

from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.handles import Handle, write_handles

FILE_NAME = "handles.jsonl"


def handles_path(registry: Path | None, home: Home) -> Path:
    """Beside the exported registry, which lies at ``registry``; in the home when that is not exported."""
    return (registry.parent if registry is not None else home.root) / FILE_NAME


def export_handles(path: Path, handles: list[Handle]) -> bool:
    """Write the file if it says something else, in one step; whether it did. None is written for no handle at all."""
    content = write_handles(handles)
    try:
        before = path.read_bytes()
    except OSError:
        before = b""
    if content == before:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return True
