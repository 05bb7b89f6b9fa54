"""The scheduler's transitions, one by one. Time is a number; workers do what the test says."""

from __future__ import annotations

import pytest

from homelab_llm.core.errors import HomelabError, WorkerCrashed
from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import (
    Adopted,
    Cancel,
    Condemn,
    Demand,
    Drain,
    Effect,
    Event,
    Grant,
    Kill,
    LeaseEnd,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Memory,
    Notify,
    Refuse,
    Start,
    Submit,
    Tick,
    Unload,
    Unquarantine,
    WorkerExit,
)

SMALL = Demand("small", "small:1b", 10, 2)
LARGE = Demand("large", "large:70b", 80, 1)
OTHER = Demand("other", "other:7b", 30, 1)


class Play:
    """A scheduler, its time, and everything it answered."""

    def __init__(self, budget_bytes: int = 100, limits: Limits | None = None) -> None:
        self.ids = 0
        self.now_s = 0.0
        self.scheduler = Scheduler(budget_bytes, self._new_id, limits)

    def _new_id(self) -> str:
        self.ids += 1
        return f"w{self.ids}"

    def step(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        """The effects, without the notices."""
        return [effect for effect in self.all(event, after_s) if not isinstance(effect, Notify)]

    def all(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        """Everything answered until ``after_s`` from now, and then to the event; ticks come when they are due."""
        until_s = self.now_s + after_s
        effects: list[Effect] = []
        while (wake_s := self.scheduler.next_wake_s()) is not None and wake_s <= until_s:
            self.now_s = wake_s
            effects += self.scheduler.step(Tick(), wake_s)
        self.now_s = until_s
        return effects + self.scheduler.step(event, until_s)

    def submit(self, request_id: str, demand: Demand = SMALL, **more: float | bool) -> list[Effect]:
        return self.step(Submit(request_id, demand, **more))  # type: ignore[arg-type]

    def loaded(self, demand: Demand = SMALL, request_id: str = "first") -> str:
        """Load a model with one request, end that, and tell the worker's id."""
        (start,) = self.submit(request_id, demand)
        assert isinstance(start, Start)
        assert self.step(Loaded(start.worker_id), 1.0) == [Grant(request_id, start.worker_id)]
        assert self.step(LeaseEnd(request_id)) == []
        return start.worker_id

    def tick(self, after_s: float = 0.0) -> list[Effect]:
        return self.step(Tick(), after_s)

    def wake(self) -> list[Effect]:
        """Go to the next moment at which time alone changes something."""
        while True:
            wake_s = self.scheduler.next_wake_s()
            assert wake_s is not None
            effects = self.tick(max(0.0, wake_s - self.now_s))
            if effects:
                return effects


def refusal(effects: list[Effect]) -> HomelabError:
    (effect,) = effects
    assert isinstance(effect, Refuse)
    return effect.error


# --- load on demand, joining, leases ------------------------------------------------------------------------


@pytest.mark.requirement("R-F6")
def test_the_first_request_starts_a_worker_and_gets_it_when_it_is_loaded() -> None:
    play = Play()
    assert play.submit("a") == [Start("w1", SMALL)]
    assert play.step(Loaded("w1"), 2.0) == [Grant("a", "w1")]


@pytest.mark.requirement("R-F6")
def test_requests_for_a_model_that_loads_join_that_load() -> None:
    play = Play()
    play.submit("a")
    assert play.submit("b") == []
    assert play.step(Loaded("w1"), 2.0) == [Grant("a", "w1"), Grant("b", "w1")]


def test_a_loaded_model_grants_at_once_and_says_nothing_else() -> None:
    play = Play()
    play.loaded()
    assert play.all(Submit("b", SMALL)) == [Grant("b", "w1")]


@pytest.mark.requirement("R-F6")
def test_no_worker_gets_more_leases_than_it_has_slots() -> None:
    play = Play()
    play.loaded()
    assert play.submit("b") == [Grant("b", "w1")]
    assert play.submit("c") == [Grant("c", "w1")]
    assert play.submit("d") == []
    assert play.step(LeaseEnd("b")) == [Grant("d", "w1")]


def test_a_request_id_in_use_is_a_programming_error() -> None:
    play = Play()
    play.submit("a")
    with pytest.raises(ValueError, match="has not ended"):
        play.submit("a")


def test_the_end_of_an_unknown_lease_is_harmless() -> None:
    play = Play()
    play.loaded()
    assert play.step(LeaseEnd("nobody")) == []
    assert play.step(LeaseEnd("first")) == []
    assert play.submit("b") == [Grant("b", "w1")]


def test_time_that_goes_back_counts_as_standing_still() -> None:
    play = Play(limits=Limits(keep_alive_s=10))
    play.loaded()
    play.step(Tick(), -0.5)
    assert play.scheduler.next_wake_s() == 11.0


# --- keep-alive ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("R-F5")
def test_an_idle_worker_is_drained_after_its_keep_alive_and_not_before() -> None:
    play = Play(limits=Limits(keep_alive_s=300))
    play.loaded()
    assert play.tick(299.0) == []
    assert play.tick(1.0) == [Drain("w1", "idle")]
    assert play.scheduler.reserved_bytes == 10
    play.step(WorkerExit("w1", None))
    assert play.scheduler.reserved_bytes == 0


@pytest.mark.requirement("R-F5")
def test_each_request_sets_the_keep_alive_anew_and_the_timer_starts_at_its_end() -> None:
    play = Play(limits=Limits(keep_alive_s=300))
    play.loaded()
    play.submit("b", keep_alive_s=5.0)
    assert play.tick(400.0) == []
    play.step(LeaseEnd("b"))
    assert play.wake() == [Drain("w1", "idle")]
    assert play.now_s == 406.0


@pytest.mark.requirement("R-F5")
def test_keep_alive_zero_unloads_right_after_the_last_request() -> None:
    play = Play()
    play.submit("a", keep_alive_s=0.0)
    play.submit("b", keep_alive_s=0.0)
    play.step(Loaded("w1"))
    assert play.step(LeaseEnd("a")) == []
    assert play.step(LeaseEnd("b")) == [Drain("w1", "keep-alive is 0")]


@pytest.mark.requirement("R-F5")
def test_a_negative_keep_alive_never_ends() -> None:
    play = Play()
    play.submit("a", keep_alive_s=-1.0)
    play.step(Loaded("w1"))
    play.step(LeaseEnd("a"))
    assert play.tick(10**9) == []
    assert play.scheduler.next_wake_s() is None
    (view,) = play.scheduler.workers()
    assert view.expires_in_s is None


def test_a_preload_is_granted_when_loaded_takes_no_slot_and_sets_the_standing_keep_alive() -> None:
    play = Play()
    assert play.submit("load", LARGE, keep_alive_s=-1.0, preload=True) == [Start("w1", LARGE)]
    play.submit("a", LARGE)
    assert play.step(Loaded("w1")) == [Grant("load", "w1"), Grant("a", "w1")]
    assert play.submit("again", LARGE, preload=True) == [Grant("again", "w1")]
    play.step(LeaseEnd("a"))
    assert play.tick(10**6) == []


def test_a_preload_with_keep_alive_zero_unloads_an_idle_model() -> None:
    play = Play()
    play.loaded()
    assert play.submit("load", keep_alive_s=0.0, preload=True) == [Grant("load", "w1"), Drain("w1", "keep-alive is 0")]


# --- queue --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("B-6")
def test_a_full_queue_refuses_with_its_length_and_a_time_from_the_measured_drain_rate() -> None:
    play = Play(limits=Limits(queue_limit=4))
    play.loaded(OTHER)
    for n in range(3):  # three requests of 20 s each teach the rate: one slot, about 20 s per request
        play.submit(f"t{n}", OTHER)
        play.step(LeaseEnd(f"t{n}"), 20.0)
    play.submit("runs", OTHER)
    for n in range(4):
        assert play.submit(f"q{n}", OTHER) == []
    error = refusal(play.submit("late", OTHER))
    assert error.code == "queue_full"
    assert error.facts["queue_length"] == 4
    assert error.facts["place"] == 5
    assert error.facts["retry_after_s"] == 2 * 20  # then two wait, and three quarters of the queue are filled
    assert refusal(play.submit("later", OTHER)).facts == {**error.facts, "place": 6, "retry_after_s": 3 * 20}


@pytest.mark.requirement("B-6")
def test_retry_after_grows_with_the_place_and_shrinks_with_the_slots() -> None:
    def told(parallel: int, waiting: int) -> int:
        play = Play(limits=Limits(queue_limit=waiting))
        demand = Demand("m", "m", 10, parallel)
        play.submit("t", demand)
        play.step(Loaded("w1"))
        play.step(LeaseEnd("t"), 8.0)
        for n in range(parallel + waiting):
            play.submit(f"q{n}", demand)
        seconds = refusal(play.submit("late", demand)).facts["retry_after_s"]
        assert isinstance(seconds, int)
        return seconds

    assert told(1, 4) == 2 * 8
    assert told(1, 9) == 4 * 8
    assert told(4, 4) == 2 * 8 // 4


def test_retry_after_counts_the_rest_of_a_load() -> None:
    play = Play(limits=Limits(queue_limit=1))
    play.submit("a")
    play.step(Loaded("w1"), 60.0)
    play.step(LeaseEnd("a"), 4.0)
    play.step(Unload("small"))
    play.step(WorkerExit("w1", None))
    play.submit("b")
    error = refusal(play.step(Submit("c", SMALL), 20.0))
    assert error.facts["retry_after_s"] == 40 + 2  # 40 s of the load are left, then 2 s for one place in two slots


@pytest.mark.requirement("B-6")
def test_a_request_that_waits_too_long_is_refused_with_limit_and_place() -> None:
    play = Play(limits=Limits(max_wait_s=60))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("b", OTHER)
    play.step(Submit("c", OTHER), 5.0)
    assert play.scheduler.wait("c") == Wait("queued", 0.0, 2)
    error = refusal(play.wake())
    assert (error.code, error.facts["limit_s"], error.facts["place"]) == ("deadline_exceeded", 60, 1)
    assert play.now_s == 61.0
    assert play.scheduler.wait("c") == Wait("queued", 0.0, 1)
    assert play.step(LeaseEnd("runs")) == [Grant("c", "w1")]


def test_a_cancelled_request_is_not_granted_and_the_next_one_is() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("b", OTHER)
    play.submit("c", OTHER)
    assert play.step(Cancel("b")) == []
    assert play.step(Cancel("b")) == []
    assert play.step(LeaseEnd("runs")) == [Grant("c", "w1")]


def test_cancelling_a_running_request_keeps_its_slot_until_the_lease_ends() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("b", OTHER)
    assert play.step(Cancel("runs")) == []
    assert play.step(LeaseEnd("runs")) == [Grant("b", "w1")]


def test_many_cancelled_requests_leave_nothing_behind() -> None:
    play = Play(limits=Limits(queue_limit=10))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    for n in range(5000):
        assert play.submit(f"q{n}", OTHER) == []
        play.step(Cancel(f"q{n}"))
    play.submit("last", OTHER)
    assert play.scheduler.waiting == 1
    assert play.step(LeaseEnd("runs")) == [Grant("last", "w1")]


def test_smaller_priorities_go_first_and_equal_ones_in_order() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    for request_id, priority in (("batch", 10), ("one", 0), ("two", 0), ("urgent", -1)):
        play.submit(request_id, OTHER, priority=priority)
    order = []
    running = "runs"
    for _ in range(4):
        (grant,) = play.step(LeaseEnd(running))
        assert isinstance(grant, Grant)
        running = grant.request_id
        order.append(running)
    assert order == ["urgent", "one", "two", "batch"]


def test_a_batch_request_grows_old_and_passes_later_interactive_ones() -> None:
    play = Play(limits=Limits(aging_s=3.0))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("batch", OTHER, priority=10)
    play.step(Submit("soon", OTHER), 29.0)
    play.step(Submit("late", OTHER), 2.0)
    assert play.step(LeaseEnd("runs")) == [Grant("soon", "w1")]
    assert play.step(LeaseEnd("soon")) == [Grant("batch", "w1")]


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R-F5", "B-3")
def test_a_model_larger_than_the_whole_budget_is_refused_with_all_numbers() -> None:
    play = Play(budget_bytes=70)
    play.loaded()
    error = refusal(play.submit("big", LARGE))
    assert error.code == "insufficient_memory"
    assert error.facts == {
        "model": "large:70b",
        "needed_bytes": 80,
        "free_bytes": 60,
        "evictable_bytes": 10,
        "pinned_bytes": 0,
        "budget_bytes": 70,
    }


@pytest.mark.requirement("R-F5")
def test_the_least_recently_used_idle_worker_makes_room_and_the_start_waits_for_its_death() -> None:
    play = Play()
    play.loaded(SMALL, "one")
    play.loaded(OTHER, "two")
    third = Demand("third", "third:13b", 60, 1)
    play.step(Submit("use", SMALL), 1.0)
    play.step(LeaseEnd("use"))
    reason = "evicted for third:13b"
    notices = play.all(Submit("three", third))
    assert Notify("evicted", "other:7b", reason) not in notices  # 10 + 30 + 60 fit exactly
    play.step(Loaded("w3"))
    play.step(LeaseEnd("three"))
    fourth = Demand("fourth", "fourth:7b", 30, 1)
    assert play.submit("four", fourth) == [Drain("w2", "evicted for fourth:7b")]
    assert play.scheduler.reserved_bytes == 100
    assert play.step(WorkerExit("w2", None)) == [Start("w4", fourth)]


@pytest.mark.requirement("R-F5")
def test_a_busy_worker_is_never_evicted() -> None:
    play = Play(limits=Limits(turn_s=5))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    assert play.submit("big", LARGE) == []
    assert play.tick(500.0) == []
    assert play.step(LeaseEnd("runs")) == [Drain("w1", "evicted for large:70b")]
    assert play.step(WorkerExit("w1", None)) == [Start("w2", LARGE)]


def test_nobody_is_evicted_in_vain() -> None:
    play = Play()
    play.loaded(SMALL, "one")
    play.loaded(OTHER, "two")
    play.submit("runs", OTHER)
    assert play.submit("big", LARGE) == []  # even without the idle small one 80 do not fit beside 30
    assert play.submit("again", SMALL) == [Grant("again", "w1")]


@pytest.mark.requirement("B-2")
def test_two_models_that_do_not_fit_together_are_both_answered() -> None:
    play = Play()
    assert play.submit("a1", LARGE) == [Start("w1", LARGE)]
    assert play.submit("b1", OTHER) == []
    assert play.submit("a2", LARGE) == []
    assert play.step(Loaded("w1"), 3.0) == [Grant("a1", "w1")]
    assert play.step(LeaseEnd("a1"), 2.0) == [Grant("a2", "w1")]  # grouped: no swap between a1 and a2
    assert play.step(LeaseEnd("a2"), 2.0) == [Drain("w1", "evicted for other:7b")]
    assert play.step(WorkerExit("w1", None)) == [Start("w2", OTHER)]
    assert play.step(Loaded("w2")) == [Grant("b1", "w2")]


@pytest.mark.requirement("B-2")
def test_a_model_that_is_always_busy_must_make_room_when_its_turn_is_over() -> None:
    play = Play(limits=Limits(turn_s=30))
    play.loaded(LARGE)
    play.submit("a0", LARGE)
    play.submit("b", OTHER)
    served = 0
    while True:  # someone always asks for the large model again before the last answer ends
        play.submit(f"a{served + 1}", LARGE)
        effects = play.step(LeaseEnd(f"a{served}"), 1.0)
        if effects != [Grant(f"a{served + 1}", "w1")]:
            break
        served += 1
    assert effects == [Drain("w1", "evicted for other:7b")]
    assert 29 <= served <= 31
    assert play.step(WorkerExit("w1", None)) == [Start("w2", OTHER)]
    assert play.step(Loaded("w2")) == [Grant("b", "w2")]
    assert play.step(LeaseEnd("b")) == [Drain("w2", "evicted for large:70b")]
    assert play.step(WorkerExit("w2", None)) == [Start("w3", LARGE)]
    assert play.step(Loaded("w3")) == [Grant(f"a{served + 1}", "w3")]


@pytest.mark.requirement("B-2")
def test_a_worker_that_is_held_grants_again_when_the_overdue_request_is_withdrawn() -> None:
    play = Play(limits=Limits(turn_s=30))
    play.loaded(Demand("large", "large:70b", 80, 2))
    play.submit("a", LARGE)
    play.submit("b", OTHER)
    assert play.tick(31.0) == []
    assert play.submit("held", LARGE) == []
    assert play.step(Cancel("b")) == [Grant("held", "w1")]


@pytest.mark.requirement("B-2")
def test_a_newly_loaded_model_has_its_turn_before_it_must_make_room_again() -> None:
    play = Play(limits=Limits(turn_s=30))
    play.submit("a0", LARGE)
    play.submit("b0", OTHER)
    play.step(Loaded("w1"), 100.0)  # the other one is overdue by far
    play.submit("a1", LARGE)
    assert play.step(LeaseEnd("a0"), 50.0) == [Grant("a1", "w1")]  # a load of 100 s gives a turn of 100 s
    play.submit("a2", LARGE)
    assert play.step(LeaseEnd("a1"), 51.0) == [Drain("w1", "evicted for other:7b")]


def test_a_small_model_may_pass_a_large_one_that_waits_but_not_when_that_is_overdue() -> None:
    play = Play(limits=Limits(turn_s=30))
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    assert play.submit("big", LARGE) == []
    assert play.submit("small", SMALL) == [Start("w2", SMALL)]
    play.step(Loaded("w2"))
    play.step(LeaseEnd("small"))
    play.tick(31.0)
    tiny = Demand("tiny", "tiny", 25, 1)
    assert play.submit("tiny", tiny) == []  # its 25 would fit now, beside 30, but the large one's turn has come
    ended = play.step(LeaseEnd("runs"))
    assert Drain("w1", "evicted for large:70b") in ended


def test_a_load_for_which_nobody_waits_any_more_makes_room() -> None:
    play = Play()
    play.submit("a", LARGE)
    play.step(Cancel("a"))
    assert play.submit("b", OTHER) == [Drain("w1", "evicted for other:7b")]
    assert play.step(LoadFailed("w1", LoadError("ended"))) == []
    assert play.step(WorkerExit("w1", None)) == [Start("w2", OTHER)]


def test_a_load_goes_on_when_its_only_request_is_cancelled_and_the_model_stays_for_its_keep_alive() -> None:
    play = Play(limits=Limits(keep_alive_s=60))
    play.submit("a")
    assert play.step(Cancel("a")) == []
    assert play.step(Loaded("w1"), 5.0) == []
    assert play.tick(59.0) == []
    assert play.submit("b") == [Grant("b", "w1")]


@pytest.mark.requirement("R-F5")
def test_memory_stays_reserved_until_the_proof_of_death() -> None:
    play = Play()
    play.submit("a", LARGE)
    play.step(LoadFailed("w1", LoadError("no")))
    assert play.scheduler.reserved_bytes == 80
    assert play.submit("b", OTHER) == []
    assert play.step(WorkerExit("w1", LoadError("no"))) == [Start("w2", OTHER)]


@pytest.mark.requirement("B-3")
def test_the_measured_footprint_replaces_the_estimate_now_and_for_the_next_load() -> None:
    play = Play()
    play.submit("a", OTHER)
    play.step(Loaded("w1", 50))
    assert play.scheduler.reserved_bytes == 50
    play.step(LeaseEnd("a"))
    play.step(Unload("other"))
    play.step(WorkerExit("w1", None))
    play.submit("b", OTHER)
    assert play.scheduler.reserved_bytes == 50


@pytest.mark.requirement("B-3")
def test_a_worker_that_grows_pushes_idle_ones_out() -> None:
    play = Play()
    play.loaded(SMALL, "one")
    play.loaded(LARGE, "two")
    play.submit("runs", LARGE)
    assert play.step(Measured("w2", 85)) == []
    assert play.step(Measured("w2", 84)) == []
    assert play.scheduler.reserved_bytes == 95
    assert play.step(Measured("w2", 95)) == [Drain("w1", "evicted: less memory may be used")]


def test_a_model_that_once_ran_is_not_refused_for_a_measurement_beyond_the_budget() -> None:
    play = Play()
    play.submit("a", LARGE)
    play.step(Loaded("w1", 120))
    play.step(LeaseEnd("a"))
    play.step(Unload("large"))
    play.step(WorkerExit("w1", None))
    assert play.submit("b", LARGE) == [Start("w2", LARGE)]
    assert play.scheduler.reserved_bytes == 100


@pytest.mark.requirement("R-F5")
def test_when_memory_shrinks_idle_workers_go_the_longest_unused_first() -> None:
    play = Play()
    play.loaded(SMALL, "one")
    play.loaded(OTHER, "two")
    play.step(Submit("use", SMALL), 1.0)
    play.step(LeaseEnd("use"))
    assert play.step(Memory(20)) == [Drain("w2", "evicted: less memory may be used")]


def test_when_memory_shrinks_busy_workers_go_when_they_become_idle() -> None:
    play = Play()
    play.loaded(LARGE)
    play.submit("runs", LARGE)
    assert play.step(Memory(50)) == []
    assert play.step(LeaseEnd("runs")) == [Drain("w1", "evicted: less memory may be used")]


def test_when_memory_shrinks_below_what_a_waiting_model_needs_it_is_refused_with_numbers() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("big", LARGE)
    error = refusal(play.step(Memory(60)))
    assert (error.code, error.facts["budget_bytes"]) == ("insufficient_memory", 60)


def test_when_memory_grows_a_waiting_model_starts() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("big", LARGE)
    assert play.step(Memory(120)) == [Start("w2", LARGE)]


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R-F6")
def test_a_failed_load_refuses_all_that_wait_for_it_each_with_its_own_error() -> None:
    play = Play()
    play.submit("a")
    play.submit("b")
    error = LoadError("bad tensor", exit_code=1)
    effects = play.step(LoadFailed("w1", error))
    refused = [effect for effect in effects if isinstance(effect, Refuse)]
    assert [effect.request_id for effect in refused] == ["a", "b"]
    assert {effect.error.code for effect in refused} == {"load_failed"}
    assert refused[0].error.facts["exit_code"] == 1
    assert refused[0].error is not refused[1].error


def test_a_worker_that_ends_while_loading_without_a_word_is_a_failed_load() -> None:
    play = Play()
    play.submit("a")
    assert refusal(play.step(WorkerExit("w1", None))).code == "load_failed"
    assert play.scheduler.reserved_bytes == 0


@pytest.mark.requirement("R-F6")
def test_after_three_failures_in_a_row_a_model_is_quarantined_until_the_operator_says_otherwise() -> None:
    play = Play(limits=Limits(quarantine_after=3, backoff_s=5.0))
    failure = LoadError("bad file", log="w.log")
    assert play.submit("r1") == [Start("w1", SMALL)]
    assert "retry_after_s" not in refusal(play.step(LoadFailed("w1", failure))).facts
    play.step(WorkerExit("w1", None))
    assert play.submit("r2") == [Start("w2", SMALL)]
    assert refusal(play.step(LoadFailed("w2", failure))).facts["retry_after_s"] == 5
    play.step(WorkerExit("w2", None))
    assert play.submit("r3") == []  # it waits out the pause
    assert play.wake() == [Start("w3", SMALL)]
    last = refusal(play.step(LoadFailed("w3", failure)))
    assert (last.code, last.facts["quarantined"], last.facts.get("retry_after_s")) == ("load_failed", True, None)
    play.step(WorkerExit("w3", None))
    error = refusal(play.submit("r4"))
    assert (error.code, error.facts["failures"], error.facts["reason"]) == ("model_quarantined", 3, "bad file")
    assert [view.demand for view in play.scheduler.quarantined()] == [SMALL]
    play.tick(10**6)
    assert refusal(play.submit("r5", preload=True)).code == "model_quarantined"
    play.step(Unquarantine("small"))
    assert play.scheduler.quarantined() == []
    assert play.submit("r6") == [Start("w4", SMALL)]


def test_crashes_while_serving_count_and_a_request_that_ended_well_starts_the_count_anew() -> None:
    play = Play(limits=Limits(quarantine_after=2, backoff_s=1.0))
    play.loaded()
    play.step(WorkerExit("w1", WorkerCrashed("gone")))
    assert play.submit("a") == [Start("w2", SMALL)]  # the first failure delays nothing
    play.step(Loaded("w2"))
    play.step(LeaseEnd("a"))
    play.step(WorkerExit("w2", WorkerCrashed("gone")))
    assert play.submit("b") == [Start("w3", SMALL)]
    play.step(Loaded("w3"))
    play.step(LeaseEnd("b", well=False))
    play.submit("c"), play.submit("d"), play.submit("waits")
    effects = play.step(WorkerExit("w3", WorkerCrashed("gone")))
    assert [(e.request_id, e.error.code) for e in effects if isinstance(e, Refuse)] == [("waits", "model_quarantined")]
    assert refusal(play.submit("late")).code == "model_quarantined"


@pytest.mark.requirement("R-F6")
def test_when_a_worker_dies_waiting_requests_get_a_new_one_and_late_lease_ends_are_harmless() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("waits", OTHER)
    assert play.step(WorkerExit("w1", WorkerCrashed("killed"))) == [Start("w2", OTHER)]
    assert play.step(Loaded("w2")) == [Grant("waits", "w2")]
    assert play.step(LeaseEnd("runs")) == []
    (view,) = play.scheduler.workers()
    assert (view.worker_id, view.leases) == ("w2", 1)


def test_a_worker_that_does_not_answer_is_killed_and_those_that_wait_get_another() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("waits", OTHER)
    assert play.step(Condemn("w1")) == [Kill("w1", "it does not answer"), Start("w2", OTHER)]
    assert play.step(Condemn("w1")) == []
    assert play.step(LeaseEnd("runs")) == []
    assert play.step(WorkerExit("w1", WorkerCrashed("killed"))) == []


def test_news_of_unknown_workers_are_harmless() -> None:
    play = Play()
    news: list[Event] = [
        Loaded("x"),
        LoadFailed("x", LoadError("")),
        WorkerExit("x", None),
        LoadProgress("x", "a", 0.1),
    ]
    for event in [*news, Measured("x", 1), Condemn("x"), Unload("x"), Cancel("x"), Tick()]:
        assert play.all(event) == []


# --- unload, adoption, aliases, views -----------------------------------------------------------------------


@pytest.mark.requirement("R-F6")
def test_unload_ends_an_idle_worker_at_once() -> None:
    play = Play()
    play.loaded()
    assert play.step(Unload("small")) == [Drain("w1", "unloaded")]
    assert play.step(Unload("small")) == []


def test_unload_lets_running_requests_end_while_new_ones_wait_for_a_new_worker() -> None:
    play = Play()
    play.loaded(LARGE)
    play.submit("runs", LARGE)
    assert play.step(Unload("large")) == []
    assert play.submit("new", LARGE) == []
    assert play.step(LeaseEnd("runs")) == [Drain("w1", "unloaded")]
    assert play.step(WorkerExit("w1", None)) == [Start("w2", LARGE)]
    assert play.step(Loaded("w2")) == [Grant("new", "w2")]


def test_unload_by_force_kills_and_refuses_those_that_wait() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("waits", OTHER)
    effects = play.step(Unload("other", force=True))
    assert Kill("w1", "unloaded") in effects
    assert [effect.error.code for effect in effects if isinstance(effect, Refuse)] == ["cancelled"]
    assert play.step(LeaseEnd("runs")) == []
    assert play.step(WorkerExit("w1", None)) == []


def test_unload_by_force_kills_a_worker_that_is_being_drained() -> None:
    play = Play()
    play.loaded()
    play.step(Unload("small"))
    assert play.step(Unload("small", force=True)) == [Kill("w1", "unloaded")]


def test_unload_calls_a_load_off_and_that_counts_as_no_failure() -> None:
    play = Play(limits=Limits(quarantine_after=1))
    play.submit("a")
    effects = play.step(Unload("small"))
    assert Drain("w1", "unloaded") in effects
    assert [effect.error.code for effect in effects if isinstance(effect, Refuse)] == ["cancelled"]
    assert play.step(Loaded("w1")) == []
    assert play.step(WorkerExit("w1", WorkerCrashed("terminated"))) == []
    assert play.submit("b") == [Start("w2", SMALL)]


def test_an_adopted_worker_serves_and_counts() -> None:
    play = Play()
    assert play.step(Adopted("old01", LARGE)) == []
    assert play.scheduler.reserved_bytes == 80
    assert play.submit("a", LARGE) == [Grant("a", "old01")]


def test_a_second_worker_of_the_same_model_is_not_adopted_but_drained() -> None:
    play = Play()
    play.loaded()
    assert play.step(Adopted("old01", SMALL)) == [Drain("old01", "another worker serves this model")]
    assert play.scheduler.reserved_bytes == 20


def test_progress_of_a_load_is_told_and_shown() -> None:
    play = Play()
    play.submit("a")
    play.submit("b")
    assert play.all(LoadProgress("w1", "convert", 0.25)) == [
        Notify("progress", "small:1b", "convert", 0.25, worker_id="w1")
    ]
    assert play.scheduler.wait("b") == Wait("convert", 0.25, 2)
    (view,) = play.scheduler.workers()
    assert (view.state, view.stage, view.done, view.waiting) == ("loading", "convert", 0.25, 2)


def test_models_that_wait_for_memory_are_shown_the_most_urgent_first() -> None:
    play = Play()
    play.loaded(OTHER)
    play.submit("runs", OTHER)
    play.submit("batch", LARGE, priority=10)
    play.submit("more", Demand("x", "x", 90, 1))
    assert [(view.demand.name, view.waiting) for view in play.scheduler.queues()] == [("x", 1), ("large:70b", 1)]
