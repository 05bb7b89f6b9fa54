"""How quickly a name points to another model that is loaded already, and what a client waits meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.controller import CLIENTS, FIRST, Clients, Rig

Note = Callable[..., None]


@pytest.mark.requirement("B-4")
async def test_the_flip_to_a_loaded_model_is_seen_at_once(home: Home, tmp_path: Path, figure: Note, full: bool) -> None:
    rig = Rig(home, tmp_path)
    await rig.start()
    flips_s: list[float] = []
    try:
        names = [rig.model(name).name for name in ("one", "two")]
        await rig.load(names[0], FIRST)
        async with Clients(rig) as clients:
            for number in range(50 if full else 2):
                wanted = names[1 - number % 2]
                swap = rig.controller.swap("jerry-xl", wanted)
                flips_s += [await seen(rig, wanted) async for step in swap if step["stage"] == "loaded"]
                await clients.more(CLIENTS)
    finally:
        await rig.stop()
    assert clients.failures == []
    took_s = sorted(seconds for _, _, seconds in clients.answers)
    told = ", ".join(f"p{part} {took_s[int(len(took_s) * part / 100)] * 1000:.0f} ms" for part in (50, 95, 99))
    figure("swap.both_fit.flip", max(flips_s), "s", "<= 0.2", f"median {statistics.median(flips_s):.4f} s")
    figure("swap.both_fit.request_longest", took_s[-1], "s", "", told)


async def seen(rig: Rig, wanted: str) -> float:
    """Seconds until the name leads to the new model and that answers."""
    started_s = time.monotonic()
    while await rig.ask() != wanted:
        pass
    return time.monotonic() - started_s
