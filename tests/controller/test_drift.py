from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.registry.slots import Slot
from homelab_llm.inference.controller.drift import Live, drift_of, state_of
from homelab_llm.inference.controller.reconcile import Action, actions
from homelab_llm.inference.controller.seams import Holder

SLOT = Slot(8101, "jerry-l")
SERVING = {"desired": "a", "actual": "a", "serves": "a", "loaded": True, "proven": True}
OLLAMA = Holder(4242, "ollama", ("llama3",))


def live(**more: object) -> Live:
    return Live(SLOT, **more)  # type: ignore[arg-type]


@pytest.mark.requirement("R-F3")
@pytest.mark.parametrize(
    ("now", "state", "words"),
    [
        (live(), "empty", ""),
        (live(**SERVING), "serving", ""),
        (live(desired="a", actual="a", serves="a", proven=True), "resting", ""),
        (live(desired="a", serves="a", failure="it crashed"), "failed", "shall serve a: it crashed"),
        (live(**SERVING, failure="a swap to b failed"), "serving", ""),
        (live(desired="b", actual="a", serves="a", loaded=True), "serving", "shall serve b, serves a"),
        (live(serves="a", loaded=True), "serving", "shall serve nothing, serves a"),
        (live(desired="a", stored="missing"), "resting", "a is not in the store"),
        (live(**SERVING, stored="newer"), "serving", "a was pulled again since: serves the older one"),
        (
            live(**SERVING, engine="mlx", wanted_engine="llama.cpp"),
            "serving",
            "engine changed: serves with mlx, shall be llama.cpp",
        ),
        (live(desired="b", serves="a", loaded=True, busy="swapping"), "swapping", ""),
        (live(desired="b", busy="loading"), "loading", ""),
        (live(bound=False), "unbound", "port 8101 is not open: mlxctl daemon restart"),
        (
            live(bound=False, holder=OLLAMA),
            "foreign",
            "port 8101 is held by process 4242 (ollama) serving llama3: mlxctl adopt 8101",
        ),
        (
            live(bound=False, holder=Holder(7, "nginx")),
            "foreign",
            "port 8101 is held by process 7 (nginx), which is no model server",
        ),
        (live(bound=False, holder=OLLAMA, foreign="llama3"), "foreign", ""),
        (live(bound=False, holder=OLLAMA, foreign="qwen"), "foreign", "adopted as qwen, serves llama3"),
        (live(bound=False, foreign="qwen"), "foreign", "the adopted server of qwen on port 8101 is gone"),
    ],
)
def test_a_slot_tells_its_state_and_what_is_not_as_the_registry_says(now: Live, state: str, words: str) -> None:
    assert (state_of(now), drift_of(now)) == (state, words)


SLUGS = st.sampled_from(["", "a", "b", "c"])


@st.composite
def some_live(draw: st.DrawFn, port: int) -> Live:
    serves, desired = draw(SLUGS), draw(SLUGS)
    return Live(
        Slot(port, f"slot-{port}"),
        desired=desired,
        actual=draw(SLUGS),
        serves=serves,
        loaded=bool(serves) and draw(st.booleans()),
        stored=draw(st.sampled_from(["missing", "same", "newer"])) if desired else "same",
        proven=draw(st.booleans()),
        failure=draw(st.sampled_from(["", "it crashed"])),
        engine=draw(st.sampled_from(["mlx", "llama.cpp"])),
        wanted_engine=draw(st.sampled_from(["", "mlx"])),
    )


def done(now: Live, action: Action) -> Live:
    """The slot after an action that succeeded, in a model of the world."""
    if action.kind == "unload":
        return Live(now.slot)
    if action.kind == "record":
        return replace(now, actual=action.model, failure="", proven=True)
    engine = now.wanted_engine or "mlx"
    return replace(now, actual=action.model, serves=action.model, loaded=True, stored="same", failure="", engine=engine)


@pytest.mark.requirement("R-F3", "R-F7")
@given(st.tuples(*(some_live(port) for port in (8100, 8101, 8102))))
def test_reconciling_always_ends_without_drift(slots: tuple[Live, ...]) -> None:
    world = {live.slot.port: live for live in slots}
    first = actions(world.values())
    assert [action.port for action in first] == sorted({action.port for action in first})
    for action in first:
        world[action.port] = done(world[action.port], action)
    assert [drift_of(live) for live in world.values()] == ["", "", ""]
    assert actions(world.values()) == []


@given(some_live(8100))
def test_a_slot_without_drift_is_not_disturbed(now: Live) -> None:
    kinds = {action.kind for action in actions([now])}
    assert drift_of(now) or kinds <= {"load", "record"}


def test_nothing_is_done_to_servers_of_another_origin_or_while_a_slot_is_changed() -> None:
    assert actions([live(foreign="llama3", bound=False), live(desired="a", busy="loading")]) == []
