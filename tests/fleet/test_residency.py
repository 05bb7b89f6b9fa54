"""Who stays loaded and who runs: pins, stays, turns, limits, reserved slots, changes of daemons. Time is a number."""

from __future__ import annotations

import pytest
from tests.fleet.test_scheduler import LARGE, OTHER, SMALL, Play, refusal

from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.errors import WorkerCrashed
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import (
    Adopted,
    Demand,
    Drain,
    Grant,
    HandOver,
    LeaseEnd,
    Loaded,
    LoadFailed,
    Memory,
    Refuse,
    Resume,
    SetTerms,
    Start,
    Submit,
    Terms,
    Unload,
    WorkerExit,
)

WIDE = Demand("wide", "wide:3b", 20, 4)


def pin(play: Play, demand: Demand, *, pinned: bool = True) -> None:
    assert play.step(SetTerms(demand, Terms(pinned))) == []


# --- pins and terms -----------------------------------------------------------------------------------------


@pytest.mark.requirement("R-F5")
def test_a_pinned_model_is_not_unloaded_for_being_idle_nor_when_memory_shrinks() -> None:
    play = Play(limits=Limits(keep_alive_s=60))
    pin(play, SMALL)
    play.loaded()
    play.submit("once", keep_alive_s=0.0)
    assert play.step(LeaseEnd("once")) == []
    assert play.tick(10**6) == []
    assert play.step(Memory(5)) == []
    assert play.step(SetTerms(SMALL, Terms())) == [Drain("w1", "keep-alive is 0")]


@pytest.mark.requirement("R-F5", "B-3")
def test_a_model_that_fits_only_without_a_pinned_one_is_refused_at_once_with_what_is_pinned() -> None:
    play = Play()
    pin(play, OTHER)
    play.loaded(OTHER)
    error = refusal(play.submit("big", LARGE))
    assert (error.code, error.facts["pinned_bytes"], error.facts["needed_bytes"]) == ("insufficient_memory", 30, 80)
    pin(play, OTHER, pinned=False)
    play.tick(60.0)
    assert play.submit("again", LARGE) == [Drain("w1", "evicted for large:70b")]


def test_pinning_refuses_who_waits_for_that_memory() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    assert play.submit("big", LARGE) == []
    effects = play.step(SetTerms(OTHER, Terms(pinned=True)))
    assert [effect.error.code for effect in effects if isinstance(effect, Refuse)] == ["insufficient_memory"]


def test_the_operator_unloads_a_pinned_model_all_the_same() -> None:
    play = Play()
    pin(play, SMALL)
    play.loaded()
    assert play.step(Unload("small")) == [Drain("w1", "unloaded")]


@pytest.mark.requirement("R-F5")
def test_the_keep_alive_of_a_request_goes_before_that_of_its_model_and_that_before_the_default() -> None:
    play = Play(limits=Limits(keep_alive_s=300))
    play.step(SetTerms(SMALL, Terms(keep_alive_s=40.0)))
    play.loaded()
    assert play.scheduler.next_wake_s() == play.now_s + 40
    play.submit("own", keep_alive_s=7.0)
    play.step(LeaseEnd("own"))
    assert play.scheduler.workers()[0].expires_in_s == 7.0
    play.step(SetTerms(SMALL, Terms(keep_alive_s=90.0)))
    assert play.scheduler.workers()[0].expires_in_s == 90.0


# --- stays and turns ----------------------------------------------------------------------------------------


@pytest.mark.requirement("B-2")
def test_a_model_just_loaded_stays_as_long_as_its_load_took_but_no_longer_than_the_set_time() -> None:
    for load_s, stay_s in ((1.0, 1.0), (50.0, 2.0)):
        play = Play(limits=Limits(min_stay_s=2.0))
        play.submit("a", LARGE)
        play.step(Loaded("w1"), load_s)
        play.submit("b", OTHER)
        assert play.step(LeaseEnd("a")) == []  # idle, and somebody waits: more of its requests may come
        before_s = play.now_s
        assert play.wake() == [Drain("w1", "evicted for other:7b")]
        assert play.now_s - before_s == stay_s


def test_a_stay_does_not_hinder_the_operator_nor_a_smaller_budget() -> None:
    play = Play(limits=Limits(min_stay_s=100.0))
    play.loaded(LARGE)
    assert play.step(Unload("large")) == [Drain("w1", "unloaded")]
    play = Play(limits=Limits(min_stay_s=100.0))
    play.loaded(LARGE)
    assert play.step(Memory(50)) == [Drain("w1", "evicted: less memory may be used")]


# --- priorities and limits ----------------------------------------------------------------------------------


@pytest.mark.requirement("B-10")
def test_batch_fills_all_slots_but_the_reserved_ones_and_interactive_requests_fill_those() -> None:
    play = Play(limits=Limits(reserved_slots=1))
    play.loaded(WIDE)
    granted = [bool(play.submit(f"b{n}", WIDE, priority=10)) for n in range(5)]
    assert granted == [True, True, True, False, False]
    assert play.submit("i", WIDE) == [Grant("i", "w1")]
    assert play.step(LeaseEnd("i")) == []  # the slot stays free for the next interactive one
    assert play.step(LeaseEnd("b0")) == [Grant("b3", "w1")]


@pytest.mark.requirement("B-10")
def test_a_worker_with_one_slot_reserves_none_and_batch_progresses() -> None:
    play = Play(limits=Limits(reserved_slots=4))
    play.loaded(OTHER)
    assert play.submit("b", OTHER, priority=10) == [Grant("b", "w1")]


@pytest.mark.requirement("B-10")
def test_batch_cannot_fill_the_queue_for_interactive_requests() -> None:
    play = Play(limits=Limits(queue_limit=4))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    waits = [play.submit(f"b{n}", OTHER, priority=10) == [] for n in range(4)]
    assert waits == [True, True, True, False]
    assert play.submit("i", OTHER) == []
    assert play.step(LeaseEnd("runs")) == [Grant("i", "w1")]


@pytest.mark.requirement("R-F6")
def test_the_number_of_running_requests_is_limited_over_all_models_and_the_oldest_goes_first() -> None:
    play = Play(limits=Limits(max_running=2))
    play.loaded(WIDE, "one")
    play.loaded(SMALL, "two")
    assert play.submit("w0", WIDE) == [Grant("w0", "w1")]
    assert play.submit("w1", WIDE) == [Grant("w1", "w1")]
    assert play.step(Submit("s", SMALL), 1.0) == []
    assert play.step(Submit("w2", WIDE), 1.0) == []
    assert play.step(LeaseEnd("w0")) == [Grant("s", "w2")]
    assert play.step(LeaseEnd("s")) == [Grant("w2", "w1")]


@pytest.mark.requirement("R-F6")
def test_a_model_whose_requests_wait_only_for_the_limit_makes_room_when_its_turn_is_over() -> None:
    play = Play(limits=Limits(max_running=1, turn_s=10.0))
    play.loaded(LARGE)
    play.loaded(SMALL)
    play.submit("long", SMALL)
    play.submit("capped", LARGE)
    play.submit("third", OTHER)
    assert play.wake() == [Drain("w1", "evicted for other:7b")]
    assert play.step(WorkerExit("w1", None), 100.0) == [Start("w3", OTHER)]  # not the one that had its turn


def test_the_death_of_a_worker_frees_its_places_under_the_limit() -> None:
    play = Play(limits=Limits(max_running=1))
    play.loaded(WIDE, "one")
    play.loaded(SMALL, "two")
    play.submit("w", WIDE)
    assert play.submit("s", SMALL) == []
    assert play.step(WorkerExit("w1", WorkerCrashed("gone"))) == [Grant("s", "w2")]


# --- adoption and changes of daemons ------------------------------------------------------------------------


@pytest.mark.requirement("B-5")
def test_a_worker_that_still_loads_is_adopted_and_no_second_one_is_started() -> None:
    play = Play()
    assert play.step(Adopted("old01", SMALL, ready=False)) == []
    assert play.submit("a") == []
    assert play.step(Loaded("old01", 15)) == [Grant("a", "old01")]
    assert play.scheduler.reserved_bytes == 15


@pytest.mark.requirement("B-5")
def test_an_adopted_worker_nobody_wants_is_drained_and_its_memory_counts_until_it_is_gone() -> None:
    play = Play()
    assert play.step(Adopted("old01", LARGE, unwanted="its model is gone")) == [Drain("old01", "its model is gone")]
    assert play.submit("a", OTHER) == []
    assert play.step(WorkerExit("old01", None)) == [Start("w1", OTHER)]


@pytest.mark.requirement("B-5")
def test_a_held_slot_is_used_until_it_is_let_go_and_teaches_nothing() -> None:
    play = Play()
    play.step(Adopted("old01", OTHER, held=("held",)))
    assert play.submit("a", OTHER) == []
    assert play.step(LeaseEnd("held", well=False), 100.0) == [Grant("a", "old01")]


@pytest.mark.requirement("B-5")
def test_a_worker_in_which_the_old_daemon_still_answers_is_not_ended_before_those_are_over() -> None:
    play = Play(limits=Limits(keep_alive_s=0.0))
    assert play.step(Adopted("old01", SMALL, unwanted="its model is gone", held=("one", "two"))) == []
    assert play.step(Adopted("old02", OTHER, held=("three",))) == []
    assert play.step(Memory(1)) == []
    assert play.step(LeaseEnd("one", well=False)) == []
    assert play.step(LeaseEnd("two", well=False)) == [Drain("old01", "unloaded")]
    assert play.step(LeaseEnd("three", well=False)) == [Drain("old02", "keep-alive is 0")]


@pytest.mark.requirement("B-5")
def test_a_daemon_that_hands_over_refuses_all_and_moves_nothing_until_it_resumes() -> None:
    play = Play(limits=Limits(keep_alive_s=5.0, turn_s=1.0))
    play.loaded(LARGE)
    play.submit("runs", LARGE)
    play.submit("waits", LARGE)
    play.submit("other", OTHER)
    effects = play.step(HandOver())
    assert [(e.request_id, e.error.code) for e in effects if isinstance(e, Refuse)] == [
        ("waits", "handed_over"),
        ("other", "handed_over"),
    ]
    assert len(effects) == 2
    assert refusal(play.submit("late", LARGE)).code == "handed_over"
    assert play.step(LeaseEnd("runs")) == []
    assert play.tick(100.0) == []
    assert play.step(Memory(10)) == []
    assert play.scheduler.next_wake_s() is None
    assert play.step(Resume()) == [Drain("w1", "evicted: less memory may be used")]


@pytest.mark.requirement("R-F6")
def test_a_model_whose_requests_wait_only_for_the_limit_is_not_unloaded_for_being_idle() -> None:
    play = Play(limits=Limits(max_running=1, keep_alive_s=5.0))
    play.loaded(WIDE, "one")
    play.loaded(SMALL, "two")
    play.submit("long", WIDE)
    play.submit("waits", SMALL)
    assert play.tick(60.0) == []
    assert play.step(LeaseEnd("long")) == [Grant("waits", "w2")]


def test_a_quarantined_model_of_which_a_worker_was_adopted_serves_but_is_not_started_again() -> None:
    play = Play(limits=Limits(quarantine_after=1))
    play.submit("a")
    play.step(LoadFailed("w1", LoadError("bad file")))
    play.step(WorkerExit("w1", None))
    play.step(Adopted("old01", SMALL))
    assert play.submit("b") == [Grant("b", "old01")]
    assert play.submit("c") == [Grant("c", "old01")]
    assert play.submit("waits") == []
    assert refusal(play.step(Unload("small"))).code == "model_quarantined"
