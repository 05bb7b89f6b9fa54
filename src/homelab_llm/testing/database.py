"""A system database for tests of parts that find one ready."""

from __future__ import annotations

from pathlib import Path

from homelab_llm.data.address import Address
from homelab_llm.data.creation import created


def ready_database(path: Path) -> Path:
    """Put an empty database of the newest schema at ``path``, if nothing is there."""
    created(Address("sqlite", path))
    return path
