"""The verbs on a real fleet: what a slot serves afterwards, what the registry says, which processes are left."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from homelab_llm.core import failpoints
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import Assignment, register, serve
from homelab_llm.inference.controller.seams import Holder, PullProgress
from homelab_llm.testing.controller import FIRST, Rig, last
from homelab_llm.testing.events import eventually


async def refused(rig: Rig, model: str, slot: int | str) -> HomelabError:
    with pytest.raises(HomelabError) as caught:
        await rig.load(model, slot)
    return caught.value


@pytest.mark.requirement("R-F1", "R-F3")
async def test_a_loaded_model_answers_by_port_and_alias_and_the_registry_says_so(rig: Rig) -> None:
    model = rig.model("one")
    result = await rig.load(model.name, FIRST)
    assert (result["stage"], result["port"], result["alias"]) == ("ready", FIRST, "jerry-xl")
    assert await rig.ask(port=FIRST, name="whatever") == await rig.ask("jerry-xl") == await rig.ask(model.name)
    held = rig.state.assignment(FIRST)
    assert (held.desired, held.actual, held.last_good) == ("one-latest",) * 3
    assert rig.state.entries["one-latest"].model_id == model.name
    row = await rig.row()
    assert (row["state"], row["drift"], row["model"], row["pid"] is not None) == ("serving", "", model.name, True)
    assert rig.controller.listed() == [("jerry-xl", model)]


@pytest.mark.requirement("R-F1")
async def test_an_empty_slot_says_how_to_fill_it(rig: Rig) -> None:
    for name, port in (("jerry-l", 0), ("whatever", FIRST + 1)):
        with pytest.raises(HomelabError) as caught:
            rig.controller.route(name, port)
        assert caught.value.code == "slot_empty"
        assert caught.value.hint == f"mlxctl load MODEL {FIRST + 1}"


@pytest.mark.parametrize("rig", [{"default": "one:latest"}], indirect=True)
@pytest.mark.requirement("R-F7")
async def test_a_slot_without_a_model_serves_the_default_one(rig: Rig) -> None:
    model = rig.model("one")
    await rig.controller.refresh()
    assert await rig.ask("bench-xl") == model.name
    assert (await rig.row(FIRST + 4))["drift"] == ""


@pytest.mark.requirement("R-F3")
async def test_a_used_port_and_a_model_elsewhere_are_refused_without_force(rig: Rig) -> None:
    one, two = rig.model("one"), rig.model("two")
    await rig.load(one.name, FIRST)
    error = await refused(rig, two.name, FIRST)
    assert (error.code, error.facts["model"]) == ("slot_in_use", "one-latest")
    assert (await refused(rig, one.name, FIRST + 1)).code == "slot_in_use"
    assert (await refused(rig, "not-pulled-yet", FIRST)).code == "slot_in_use"  # before anything is fetched
    assert (await refused(rig, one.name, 9999)).code == "slot_not_found"
    assert rig.loaded() == {one.name}


@pytest.mark.requirement("R-F3")
async def test_force_moves_a_model_from_another_slot(rig: Rig) -> None:
    one = rig.model("one")
    await rig.load(one.name, FIRST)
    pid = (await rig.row())["pid"]
    await rig.load(one.name, "jerry-l", force=True)
    rows = (await rig.controller.slots())["slots"]
    assert [(row["desired"], row["drift"]) for row in rows[:2]] == [("", ""), ("one-latest", "")]
    assert rows[1]["pid"] == pid
    assert await rig.ask("jerry-l") == one.name


@pytest.mark.requirement("R-F3")
async def test_auto_takes_the_first_free_slot_and_two_at_once_get_two(rig: Rig) -> None:
    one, two = rig.model("one"), rig.model("two")
    results = await asyncio.gather(rig.load(one.name, "auto"), rig.load(two.name, "auto"))
    assert sorted(result["port"] for result in results) == [FIRST, FIRST + 1]
    again = await rig.load(one.name, "auto")
    assert (again["port"], again["changed"]) == (results[0]["port"], False)


@pytest.mark.requirement("R-F3")
async def test_a_missing_model_is_pulled_and_registered(rig: Rig) -> None:
    rig.shelf.remote["hf:org/one"] = rig.model("one", stored=False)
    steps = [step async for step in rig.controller.load("hf:org/one", str(FIRST))]
    assert steps[0]["stage"] == "pulling"
    assert steps[-1]["stage"] == "ready"
    assert rig.state.entries["one-latest"].cache_path
    assert (await refused(rig, "hf:org/none", "auto")).code == "model_not_found"


@pytest.mark.requirement("R-F1", "R-F3")
async def test_an_intent_is_pulled_from_where_it_comes_and_completed(rig: Rig) -> None:
    intent = Entry("big", "org/big:latest", repo_id="hf:org/big")
    rig.registry.change(lambda state: register(state, intent))
    await rig.controller.refresh()
    rig.shelf.remote["hf:org/big"] = rig.model("big", stored=False)
    await rig.load("big", FIRST)
    entry = rig.state.entries["big"]
    assert (entry.model_id, entry.is_intent, rig.state.assignment(FIRST).desired) == ("big:latest", False, "big")


@pytest.mark.requirement("R-F3")
async def test_a_model_that_does_not_load_leaves_the_slot_as_it_was(rig: Rig) -> None:
    good, bad = rig.model("good"), rig.model("bad", load="crash")
    await rig.load(good.name, FIRST)
    before = rig.state.assignment(FIRST)
    with pytest.raises(HomelabError) as caught:
        await rig.load(bad.name, FIRST, force=True)
    assert caught.value.code == "load_failed"
    held = rig.state.assignment(FIRST)
    assert (held.desired, held.actual) == (before.desired, before.actual)
    assert held.last_failure
    assert await rig.ask() == good.name
    assert (await rig.row())["drift"] == ""
    assert await refused(rig, bad.name, FIRST + 1)
    assert rig.state.assignment(FIRST + 1).desired == ""


@pytest.mark.requirement("R-F3", "R-F6")
async def test_unload_proves_the_process_ended_and_clears_also_when_nothing_ran(rig: Rig) -> None:
    one = rig.model("one")
    await rig.load(one.name, FIRST)
    pid = (await rig.row())["pid"]
    result = await rig.controller.unload("jerry-xl")
    assert (result["unloaded"], result["cleared"]) == (True, "one-latest")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    rig.registry.change(lambda state: serve(state, FIRST + 3, "one-latest", 1.0))
    await rig.controller.refresh()
    assert (await rig.controller.unload(str(FIRST + 3)))["unloaded"] is False
    assert rig.state.assignment(FIRST + 3).desired == ""
    assert {row["state"] for row in (await rig.controller.slots())["slots"]} == {"empty"}


@pytest.mark.requirement("R-F3")
async def test_unload_all_clears_every_port_even_one_that_is_no_slot_any_more(rig: Rig) -> None:
    one, two = rig.model("one"), rig.model("two")
    await rig.load(one.name, FIRST)
    rig.registry.change(lambda state: register(state, Entry("two", two.name)))
    rig.registry.change(lambda state: serve(state, 17000, "two", 1.0))
    await rig.controller.refresh()
    result = await rig.controller.unload_all()
    assert ([row["port"] for row in result["slots"]], result["cleared_ports"]) == ([FIRST], [17000])
    assert not any(held.desired for held in rig.state.assignments.values())
    assert rig.loaded() == set()


@pytest.mark.requirement("R-F3")
async def test_a_port_that_is_no_slot_any_more_can_be_cleared_by_its_number(rig: Rig) -> None:
    one = rig.model("one")
    rig.registry.change(lambda state: serve(register(state, Entry("one", one.name)), 17000, "one", 1.0))
    await rig.controller.refresh()
    error = await refused(rig, one.name, FIRST)
    assert (error.code, error.hint) == ("slot_in_use", "mlxctl unload 17000")
    assert (await rig.controller.unload("17000"))["cleared"] == "one"
    assert (await rig.load(one.name, FIRST))["stage"] == "ready"


@pytest.mark.requirement("R-F5")
async def test_a_model_that_shall_not_stay_is_proven_all_the_same_and_leaves_after_a_request(rig: Rig) -> None:
    one = rig.model("one")
    rig.registry.change(lambda state: register(state, Entry("one", one.name, keep_alive_s=0.0)))
    await rig.controller.refresh()
    await rig.load("one", FIRST)
    assert await rig.ask() == one.name
    await eventually(lambda: not rig.loaded(), what="the worker")
    assert ((await rig.row())["state"], (await rig.row())["drift"]) == ("resting", "")


@pytest.mark.requirement("R-F3")
async def test_a_load_whose_caller_leaves_is_called_off(rig: Rig) -> None:
    slow = rig.model("slow", load="hang")
    steps = rig.controller.load(slow.name, str(FIRST))
    async for step in steps:
        if step["stage"] not in ("loading", "queued") or not rig.fleet.status()["workers"]:
            continue
        break
    await steps.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: not rig.fleet.status()["workers"], what="the worker")
    assert rig.state.assignment(FIRST) == Assignment(FIRST)
    assert await rig.load(rig.model("one").name, FIRST)


@pytest.mark.requirement("R-F3")
async def test_a_pull_whose_caller_leaves_stops(rig: Rig) -> None:
    asked, stopped = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(reference: str, progress: PullProgress) -> None:
        loop.call_soon_threadsafe(asked.set)
        with contextlib.suppress(HomelabError):
            while True:
                progress("downloading", 0.5)
        loop.call_soon_threadsafe(stopped.set)

    rig.shelf.remote["hf:org/one"] = rig.model("one", stored=False)
    rig.shelf.pulled = endless
    steps = rig.controller.load("hf:org/one", str(FIRST))
    assert (await anext(steps))["stage"] == "pulling"
    await asyncio.wait_for(asked.wait(), 10)
    await steps.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(stopped.wait(), 10)


@pytest.mark.requirement("R-F1")
async def test_fifty_loads_and_unloads_at_once_end_in_one_truth(rig: Rig) -> None:
    names = [rig.model(name).name for name in ("one", "two")]

    async def turn(number: int) -> None:
        slot = FIRST + number % 3
        with contextlib.suppress(HomelabError):
            if number % 5 == 4:
                await rig.controller.unload(str(slot))
            else:
                await rig.load(names[number % 2], "auto" if number % 7 == 0 else slot, force=number % 3 == 0)

    await asyncio.gather(*(turn(number) for number in range(50)))
    desired = [held.desired for held in rig.state.assignments.values() if held.desired]
    assert len(desired) == len(set(desired))
    await last(rig.controller.reconcile(apply=True))
    told = await rig.controller.slots()
    assert not told["drift"], told
    for row in told["slots"]:
        if row["desired"]:
            assert await rig.ask(row["alias"]) == row["model"]


@pytest.mark.parametrize(
    "point",
    [
        *("before_pull", "after_pull", "before_load", "after_load", "before_flip", "before_serve", "after_serve"),
        *("before_unload", "after_unload"),
    ],
)
@pytest.mark.requirement("R-F3")
async def test_a_swap_that_breaks_anywhere_leaves_a_slot_that_answers(rig: Rig, point: str) -> None:
    one = rig.model("one")
    rig.shelf.remote["two:latest"] = two = rig.model("two", stored=False)
    await rig.load(one.name, FIRST)
    failpoints.arm(f"controller.{point}=raise")
    try:
        with pytest.raises((HomelabError, OSError)):
            await rig.load(two.name, FIRST, force=True)
    finally:
        failpoints.arm("")
    served = await rig.ask()
    assert served in (one.name, two.name)
    await last(rig.controller.reconcile(apply=True))
    row = await rig.row()
    assert (row["drift"], row["model"], row["state"]) == ("", served, "serving")


@pytest.mark.requirement("R-F3")
async def test_a_lost_database_refuses_a_load_and_requests_go_on(rig: Rig) -> None:
    one, two = rig.model("one"), rig.model("two")
    await rig.load(one.name, FIRST)
    rig.memory.broken = True
    with pytest.raises(HomelabError) as caught:
        await rig.load(two.name, FIRST, force=True)
    assert caught.value.code == "database_unavailable"
    assert await rig.ask() == one.name


@pytest.mark.requirement("R-F3")
async def test_a_server_of_another_origin_is_told_and_can_be_adopted(rig: Rig) -> None:
    rig.ports.foreign[FIRST] = Holder(4242, "ollama", ("llama3",))
    row = await rig.row()
    assert (row["state"], row["foreign"]) == ("foreign", {"pid": 4242, "name": "ollama", "model": "llama3"})
    assert row["drift"].endswith(f"mlxctl adopt {FIRST}")
    one = rig.model("one")
    assert (await refused(rig, one.name, FIRST)).code == "slot_in_use"
    await rig.controller.adopt("jerry-xl")
    target = rig.controller.route("jerry-xl")
    assert (target.foreign, target.model.name) == (("127.0.0.1", FIRST), "llama3")
    assert ((await rig.row())["drift"], (await rig.controller.verify())["ok"]) == ("", True)
    held = rig.ports.foreign.pop(FIRST)  # it ended, and the port is ours now
    assert (await rig.row())["drift"].endswith("is gone")
    with pytest.raises(HomelabError) as caught:
        rig.controller.route("whatever", FIRST)
    assert (caught.value.code, caught.value.hint) == ("slot_empty", f"mlxctl unload {FIRST}")
    rig.ports.foreign[FIRST] = held
    assert (await rig.controller.unload("jerry-xl"))["unloaded"] is False
    assert rig.state.assignment(FIRST).foreign == ""
    with pytest.raises(HomelabError) as caught:
        await rig.controller.adopt("jerry-l")
    assert caught.value.code == "conflict"
