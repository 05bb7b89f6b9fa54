"""Who must go, by examples and by chance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.inference.fleet.eviction import Resident, Want, evictions_for, make_room

sizes = st.integers(1, 40)
residents = st.lists(
    st.tuples(sizes, st.floats(0, 100), st.sampled_from(["leaving", "idle", "busy", "turn_over"])), max_size=8
).map(
    lambda rows: [
        Resident(f"w{n}", size, used, kind == "leaving", kind == "idle", kind == "turn_over")
        for n, (size, used, kind) in enumerate(rows)
    ]
)


def ids(workers: list[Resident] | None) -> list[str] | None:
    return None if workers is None else [worker.worker_id for worker in workers]


@pytest.mark.requirement("R-F5")
def test_the_longest_unused_goes_first() -> None:
    workers = [Resident("new", 30, 9.0, idle=True), Resident("old", 30, 1.0, idle=True)]
    assert ids(evictions_for(50, workers, 100)) == ["old"]


@pytest.mark.requirement("R-F5")
def test_a_busy_worker_is_not_chosen_and_then_nobody_is() -> None:
    workers = [Resident("busy", 60, 0.0), Resident("idle", 20, 1.0, idle=True)]
    assert evictions_for(50, workers, 100) is None


def test_what_is_leaving_needs_no_further_decision() -> None:
    assert evictions_for(50, [Resident("going", 80, 0.0, leaving=True)], 100) == []


def test_small_ones_stay_when_a_later_large_one_must_go_anyway() -> None:
    workers = [Resident("s1", 5, 1.0, idle=True), Resident("s2", 5, 2.0, idle=True), Resident("l", 80, 3.0, idle=True)]
    assert ids(evictions_for(85, workers, 100)) == ["l"]


def test_an_overdue_model_may_take_busy_ones_whose_turn_is_over_after_all_idle_ones() -> None:
    workers = [Resident("busy", 50, 0.0, turn_over=True), Resident("idle", 50, 9.0, idle=True)]
    assert ids(evictions_for(40, workers, 100, overdue=True)) == ["idle"]
    assert ids(evictions_for(90, workers, 100, overdue=True)) == ["idle", "busy"]
    assert evictions_for(90, workers, 100) is None


@given(needed=sizes, workers=residents, overdue=st.booleans())
def test_a_choice_makes_room_and_every_chosen_one_is_needed(
    needed: int, workers: list[Resident], overdue: bool
) -> None:
    chosen = evictions_for(needed, workers, 100, overdue=overdue)
    staying = sum(worker.reserved_bytes for worker in workers if not worker.leaving)
    candidates = [w for w in workers if not w.leaving and (w.idle or (overdue and w.turn_over))]
    most = sum(worker.reserved_bytes for worker in candidates)
    if chosen is None:
        assert staying - most + needed > 100
        return
    assert all(worker in candidates for worker in chosen)
    freed = sum(worker.reserved_bytes for worker in chosen)
    assert staying - freed + needed <= 100
    assert all(staying - freed + worker.reserved_bytes + needed > 100 for worker in chosen)


@given(
    wants=st.lists(st.tuples(sizes, st.booleans()), max_size=5).map(
        lambda rows: [Want(f"m{n}", size, overdue) for n, (size, overdue) in enumerate(rows)]
    ),
    workers=residents,
)
def test_what_is_started_fits_into_what_is_free_now(wants: list[Want], workers: list[Resident]) -> None:
    room = make_room(wants, workers, 100)
    taken = sum(worker.reserved_bytes for worker in workers)
    needs = {want.key: want.needed_bytes for want in wants}
    started = sum(needs[key] for key in room.start)
    assert not started or taken + started <= 100
    state = {worker.worker_id: worker for worker in workers}
    assert all(state[worker_id].idle for worker_id, _ in room.end)
    overdue = {want.key for want in wants if want.overdue}
    assert all(state[worker_id].turn_over and key in overdue for worker_id, key in room.hold)
    touched = [worker_id for worker_id, _ in room.end + room.hold]
    assert len(touched) == len(set(touched))


@pytest.mark.requirement("B-2")
def test_a_later_model_does_not_take_the_room_that_is_being_made_for_an_earlier_one() -> None:
    workers = [Resident("idle", 60, 0.0, idle=True)]
    room = make_room([Want("first", 80), Want("second", 30)], workers, 100)
    assert room.end == [("idle", "first")]
    assert room.start == []  # 30 would fit beside 60, but then the first would not fit


def test_a_later_model_starts_in_what_is_left_beyond_the_claims() -> None:
    workers = [Resident("idle", 60, 0.0, idle=True)]
    room = make_room([Want("first", 80), Want("second", 20)], workers, 100)
    assert (room.end, room.start) == ([("idle", "first")], ["second"])
