"""A daemon starts on what the registry says, and notices what others change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState, assign, register, serve
from homelab_llm.testing.controller import FIRST, Rig, last


def assigned(rig: Rig, *names: str) -> None:
    """The registry of an earlier life: these models on the first slots."""

    def earlier(state: RegistryState) -> RegistryState:
        for number, name in enumerate(names):
            state = register(state, Entry(name, f"{name}:latest", cache_path="x"))
            state = serve(state, FIRST + number, name, 1.0)
        return state

    rig.registry.change(earlier)


@pytest.mark.requirement("R-F7")
async def test_the_registry_alone_decides_what_starts(rig: Rig) -> None:
    rig.model("one"), rig.model("two"), rig.model("three")
    assigned(rig, "one", "two")
    await rig.controller.start()
    await rig.controller.boot()
    assert rig.loaded() == {"one:latest", "two:latest"}
    kinds = [event.kind for event in rig.events if event.kind in ("loading", "loaded")]
    assert kinds == ["loading", "loaded"] * 2  # never two at once
    assert [step async for step in rig.controller.reconcile(apply=False)][-1]["actions"] == []


@pytest.mark.parametrize("rig", [{"grace_s": 60.0}], indirect=True)
@pytest.mark.requirement("R-F7", "B-5")
async def test_workers_of_the_daemon_before_are_found_on_their_slots(rig: Rig) -> None:
    rig.model("one")
    await rig.load("one:latest", FIRST)
    before, revision = await rig.row(), rig.state.revision
    await rig.stop(leave_workers=True)
    rig.events.clear()
    await rig.start()
    await rig.controller.boot()
    row = await rig.row()
    assert (row["pid"], row["state"], row["drift"]) == (before["pid"], "serving", "")
    assert await rig.ask() == "one:latest"
    assert rig.state.revision == revision
    assert "loading" not in [event.kind for event in rig.events]


@pytest.mark.parametrize("rig", [{"auto_load": False}], indirect=True)
@pytest.mark.requirement("R-F7")
async def test_without_auto_load_a_slot_loads_at_its_first_request(rig: Rig) -> None:
    rig.model("one")
    assigned(rig, "one")
    await rig.controller.start()
    await rig.controller.boot()
    assert rig.loaded() == set()
    assert ((await rig.row())["state"], (await rig.row())["drift"]) == ("resting", "")
    assert await rig.ask() == "one:latest"


@pytest.mark.parametrize("rig", [{"room": 1}], indirect=True)
@pytest.mark.requirement("R-F7")
async def test_at_boot_no_slot_takes_another_ones_memory(rig: Rig) -> None:
    rig.model("one"), rig.model("two")
    assigned(rig, "one", "two")
    await rig.controller.start()
    await rig.controller.boot()
    assert rig.loaded() == {"one:latest"}
    assert await rig.ask("jerry-l") == "two:latest"  # rests until it is asked


@pytest.mark.requirement("R-F7")
async def test_a_model_that_fails_at_boot_stops_no_other(rig: Rig) -> None:
    rig.model("bad", load="crash"), rig.model("two")
    assigned(rig, "bad", "gone", "two")
    await rig.controller.start()
    await rig.controller.boot()
    assert rig.loaded() == {"two:latest"}
    rows = (await rig.controller.slots())["slots"]
    assert [row["state"] for row in rows[:3]] == ["failed", "resting", "serving"]
    assert rows[0]["drift"].startswith("shall serve bad: ")
    assert rows[1]["drift"] == "gone is not in the store"
    with pytest.raises(HomelabError) as caught:
        rig.controller.route("jerry-l")
    assert (caught.value.code, caught.value.hint) == ("slot_empty", "mlxctl reconcile --apply")
    problems = (await rig.controller.verify())["problems"]
    assert [problem["port"] for problem in problems] == [FIRST, FIRST + 1]


async def test_without_its_database_a_daemon_serves_models_by_their_names(rig: Rig) -> None:
    rig.model("one")
    assigned(rig, "one")
    rig.memory.broken = True
    await rig.controller.start()
    await rig.controller.boot()
    assert await rig.ask("one:latest") == "one:latest"
    assert (await rig.controller.slots())["registry_drift"] == "the registry cannot be read: the database is away"
    assert "registry_unreadable" in [event.kind for event in rig.events]
    rig.memory.broken = False
    await rig.controller.refresh()
    assert await rig.ask("jerry-xl") == "one:latest"


@pytest.mark.requirement("R-F3")
async def test_another_process_changes_the_registry_and_reconcile_follows(rig: Rig) -> None:
    rig.model("one"), rig.model("two")
    await rig.load("one:latest", FIRST)
    rig.registry.change(lambda state: register(state, Entry("two", "two:latest")))
    rig.registry.change(lambda state: assign(state, FIRST, "two", 1.0, force=True))
    await rig.controller.refresh()
    assert await rig.ask() == "one:latest"
    assert (await rig.row())["drift"] == "shall serve two, serves one-latest"
    assert "drift" in [event.kind for event in rig.events]
    dry = [step async for step in rig.controller.reconcile(apply=False)]
    assert [step["stage"] for step in dry] == ["would", "done"]
    assert [(row["port"], row["action"], row["model"]) for row in dry[-1]["actions"]] == [(FIRST, "swap", "two")]
    assert rig.loaded() == {"one:latest"}
    done = await last(rig.controller.reconcile(apply=True))
    assert (done["failed"], done["left"]) == (0, 0)
    assert (await rig.ask(), rig.loaded()) == ("two:latest", {"two:latest"})
    assert (await rig.row())["drift"] == ""


@pytest.mark.requirement("R-F3")
async def test_another_engine_in_the_registry_is_drift_until_the_model_is_started_anew(rig: Rig) -> None:
    rig.model("one")
    await rig.load("one:latest", FIRST)
    pid = (await rig.row())["pid"]
    entry = replace(rig.state.entries["one-latest"], engine="other")
    rig.registry.change(lambda state: register(state, entry))
    await rig.controller.refresh()
    assert (await rig.row())["drift"] == "engine changed: serves with fake, shall be other"
    assert (await last(rig.controller.reconcile(apply=True)))["left"] == 0
    row = await rig.row()
    assert (row["drift"], row["engine"], row["pid"] == pid) == ("", "other", False)


@pytest.mark.requirement("R-F3")
async def test_hand_edits_of_the_exported_file_are_drift(rig: Rig) -> None:
    rig.memory.edited = "registry.json was edited by hand: one is on port 8101"
    told = await rig.controller.slots()
    assert (told["drift"], told["registry_drift"]) == (True, rig.memory.edited)
    assert not (await rig.controller.verify())["ok"]


@pytest.mark.requirement("R-F5")
async def test_pins_and_lifetimes_reach_the_fleet(rig: Rig) -> None:
    rig.model("one")
    await rig.load("one:latest", FIRST)
    assert (await rig.row())["keep_alive_s"] == -1.0
    assert rig.fleet.status()["workers"][0]["expires_in_s"] is None
    assert await rig.controller.pin("one-latest", pinned=True) == {
        "model": "one:latest",
        "slug": "one-latest",
        "pinned": True,
    }
    assert rig.fleet.status()["workers"][0]["pinned"]
    assert (await rig.row())["pinned"]
    await rig.controller.pin("one:latest", pinned=False)
    assert not rig.fleet.status()["workers"][0]["pinned"]


@pytest.mark.requirement("R-F1")
async def test_what_the_registry_says_of_a_model_goes_with_its_requests(rig: Rig) -> None:
    model = rig.model("one")
    entry = Entry("one", model.name, request_params={"temperature": 0.2}, max_output_tokens=64, keep_alive_s=7.0)
    rig.registry.change(lambda state: register(state, entry))
    await rig.controller.refresh()
    for target in (rig.controller.route(model.name), rig.controller.route(model.name)):
        assert (target.params, target.max_output_tokens) == ({"temperature": 0.2}, 64)
        assert (target.keep_alive_s, target.alias) == (7.0, "")
    before = rig.controller.stamp()
    rig.registry.change(lambda state: register(state, replace(entry, max_output_tokens=8)))
    await rig.controller.refresh()
    assert rig.controller.stamp() != before
    assert rig.controller.route(model.name).max_output_tokens == 8


@pytest.mark.requirement("R-F3")
async def test_explain_tells_where_a_request_goes_and_fit_whether_it_would(rig: Rig) -> None:
    model = rig.model("one")
    await rig.load(model.name, FIRST)
    told = await rig.controller.explain({"model": "jerry-xl", "temperature": 1.0})
    assert (told["model"], told["alias"], told["port"], told["loaded"]) == (model.name, "jerry-xl", FIRST, True)
    assert told["params"] == {"temperature": 1.0}
    assert told["why"][0] == f"jerry-xl (port {FIRST}) serves one-latest"
    two = rig.model("two")
    assert (await rig.controller.explain({"model": two.name}))["fit"]["fits"]
    assert (await rig.controller.fit(two.name))["needed_bytes"] == 900_000_000
    assert (await rig.controller.fit("jerry-xl"))["model"] == model.name


@pytest.mark.requirement("R-F6")
async def test_a_quarantined_model_is_tried_again_when_the_operator_says_so(rig: Rig) -> None:
    model = rig.model("bad", load="crash")
    assert await rig.controller.unquarantine(model.name) == {"model": model.name, "released": False}
