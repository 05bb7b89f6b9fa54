"""Swaps under load: a model behind an alias is exchanged, and no client's request fails."""

from __future__ import annotations

import os

import pytest

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.engines.base import Footprint
from homelab_llm.testing.controller import CLIENTS, FIRST, MB, Clients, Rig, last

FULL = os.environ.get("HOMELAB_SIZE") == "full"
SWAPS = 100 if FULL else 6


@pytest.mark.parametrize("rig", [{"room": 2}, {"room": 1}], indirect=True, ids=["both fit", "one fits"])
@pytest.mark.requirement("B-4")
@pytest.mark.timeout(900 if FULL else 180)
async def test_no_request_fails_while_an_alias_is_swapped_back_and_forth(rig: Rig) -> None:
    names = [rig.model(name).name for name in ("one", "two")]
    await rig.load(names[0], FIRST)
    async with Clients(rig) as clients:
        await clients.more(CLIENTS)
        for number in range(SWAPS):
            wanted = names[1 - number % 2]
            result = await last(rig.controller.swap("jerry-xl", wanted))
            assert (result["stage"], result["model"]) == ("ready", wanted)
            await clients.more(CLIENTS)
    assert clients.failures == []
    assert {model for model, _, _ in clients.answers} == set(names)
    assert rig.loaded() == {names[SWAPS % 2]}
    row = await rig.row()
    assert (row["drift"], row["desired"], row["actual"]) == ("", *[f"{names[SWAPS % 2].partition(':')[0]}-latest"] * 2)
    kinds = [event.kind for event in rig.events]
    assert kinds.count("swap_started") == kinds.count("swapped") == SWAPS


@pytest.mark.parametrize("rig", [{"room": 2}, {"room": 1}], indirect=True, ids=["both fit", "one fits"])
@pytest.mark.requirement("B-4", "R-F3")
async def test_no_request_fails_when_the_new_model_does_not_load(rig: Rig) -> None:
    good, bad = rig.model("good"), rig.model("bad", load="crash", load_s=0.2)
    await rig.load(good.name, FIRST)
    async with Clients(rig) as clients:
        await clients.more(CLIENTS)
        with pytest.raises(HomelabError) as caught:
            await last(rig.controller.swap("jerry-xl", bad.name))
        await clients.more(CLIENTS)
    assert caught.value.code == "load_failed"
    assert clients.failures == []
    assert {model for model, _, _ in clients.answers} == {good.name}
    held = rig.state.assignment(FIRST)
    assert (held.desired, held.actual, bool(held.last_failure)) == ("good-latest", "good-latest", True)
    assert "swap_failed" in [event.kind for event in rig.events]


@pytest.mark.parametrize("rig", [{"room": 1}], indirect=True)
@pytest.mark.requirement("B-4", "R-F5")
async def test_a_model_too_large_for_an_empty_machine_is_refused_with_numbers_before_anything_moves(
    rig: Rig,
) -> None:
    one, two = rig.model("one"), rig.model("two")
    await rig.load(one.name, FIRST)
    pid = (await rig.row())["pid"]
    rig.footprints[two.name] = Footprint(weights_bytes=5000 * MB, kv_bytes=0, overhead_bytes=0)
    with pytest.raises(HomelabError) as caught:
        await last(rig.controller.swap("jerry-xl", two.name))
    assert caught.value.code == "insufficient_memory"
    assert caught.value.facts["needed_bytes"] == 5000 * MB
    assert (await rig.row())["pid"] == pid


@pytest.mark.requirement("R-F3")
async def test_a_swap_to_the_same_model_changes_nothing_and_one_from_another_slot_is_refused(rig: Rig) -> None:
    one, two = rig.model("one"), rig.model("two")
    await rig.load(one.name, FIRST)
    await rig.load(two.name, FIRST + 1)
    revision = rig.state.revision
    result = await last(rig.controller.swap("jerry-xl", one.name))
    assert (result["changed"], rig.state.revision) == (False, revision)
    with pytest.raises(HomelabError) as caught:
        await last(rig.controller.swap("jerry-xl", two.name))
    assert caught.value.code == "slot_in_use"


@pytest.mark.requirement("B-4")
async def test_a_model_pulled_again_is_drift_until_it_is_loaded_again(rig: Rig) -> None:
    rig.model("one")
    await rig.load("one:latest", FIRST)
    newer = rig.model("one", weights_bytes=4096)
    assert newer.digest != rig.controller.route("jerry-xl").model.digest
    assert "pulled again" in (await rig.row())["drift"]
    await rig.load("one:latest", FIRST)
    assert rig.controller.route("jerry-xl").model.digest == newer.digest
    assert (await rig.row())["drift"] == ""
    assert len(rig.fleet.status()["workers"]) == 1
