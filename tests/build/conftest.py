"""A store with a tiny model, and what is built from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.models import write_fake_model


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a spec and what it names lie."""
    with TemporaryDirectory(prefix="hl-build-") as name:
        yield Path(name)


@pytest.fixture
def store(folder: Path) -> ModelStore:
    """With the model ``tiny:1``, whose file is ``tiny.gguf`` in ``folder``."""
    store = ModelStore(folder / "store")
    store.import_path(write_fake_model(folder / "tiny.gguf"), ModelRef.parse("tiny:1"))
    return store
