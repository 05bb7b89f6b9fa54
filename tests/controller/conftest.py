from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.controller import Rig


@pytest.fixture
async def rig(home: Home, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A started controller with room for two models, or what ``indirect`` parametrisation says."""
    made = Rig(home, tmp_path, **getattr(request, "param", {}))
    await made.start()
    yield made
    await made.stop()
