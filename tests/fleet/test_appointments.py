"""Appointments: a client that is sent away and obeys ``Retry-After`` to the second finds room when it comes again."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.inference.fleet.appointments import LATEST_S, Appointments
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import Demand, Grant, LeaseEnd, Loaded, Refuse, Start, Submit

MODEL = Demand("m", "m", 10, 4)


class Crowd:
    """Clients that come together, and again exactly when they were told; the scheduler is the real one.

    Args:
        service_s: how long a request takes that begins at this second.
    """

    def __init__(self, clients: int, queue_limit: int, service_s: Callable[[float], float], *, warm: bool = True):
        self.random = Random(clients)  # noqa: S311 - chance for tests, not for secrets
        self.scheduler = Scheduler(100, lambda: "w1", Limits(queue_limit=queue_limit, keep_alive_s=-1.0))
        self.service_s = service_s
        self.agenda: list[tuple[float, int, object]] = []
        self.now_s = 0.0
        self.order = 0
        self.tries: Counter[str] = Counter()
        self.served: dict[str, int] = {}
        self.told_s: list[int] = []
        self.longest_queue = 0
        self.clients = clients
        if warm:
            self.at(0.0, Submit("warm", MODEL))
        for n in range(clients):
            self.at((60.0 if warm else 0.0) + 0.001 * n, Submit(f"c{n}", MODEL))

    def at(self, time_s: float, event: object) -> None:
        self.order += 1
        heapq.heappush(self.agenda, (time_s, self.order, event))

    def run(self) -> Crowd:
        while self.agenda:
            self.now_s, _, event = heapq.heappop(self.agenda)
            if isinstance(event, Submit):
                self.tries[event.request_id] += 1
            for effect in self.scheduler.step(event, self.now_s):  # type: ignore[arg-type]
                if isinstance(effect, Start):
                    self.at(self.now_s + 2.0, Loaded(effect.worker_id))
                elif isinstance(effect, Grant):
                    self.served[effect.request_id] = self.tries[effect.request_id]
                    service_s = self.service_s(self.now_s) * (0.5 + self.random.random())
                    self.at(self.now_s + service_s, LeaseEnd(effect.request_id))
                elif isinstance(effect, Refuse):
                    seconds = effect.error.facts["retry_after_s"]
                    assert isinstance(seconds, int)
                    self.told_s.append(seconds)
                    self.at(self.now_s + seconds + 0.02 * self.random.random(), Submit(effect.request_id, MODEL))
            self.longest_queue = max(self.longest_queue, self.scheduler.waiting)
        return self

    def part_served_by(self, tries: int) -> float:
        return sum(1 for n in range(self.clients) if self.served.get(f"c{n}", 99) <= tries) / self.clients


@pytest.mark.requirement("B-6")
@pytest.mark.parametrize("service_s", [0.05, 0.4, 3.0, 20.0])
def test_of_300_clients_at_a_queue_of_32_those_that_obey_are_served_at_the_first_or_second_try(
    service_s: float,
) -> None:
    crowd = Crowd(300, 32, lambda _: service_s).run()
    assert len(crowd.served) == 301
    assert crowd.longest_queue <= 32
    assert crowd.part_served_by(2) >= 0.95


@pytest.mark.requirement("B-6")
def test_nobody_is_told_to_wait_much_longer_than_the_queue_takes() -> None:
    crowd = Crowd(300, 32, lambda _: 0.4).run()
    assert max(crowd.told_s) <= 2 * 300 * 0.4 / MODEL.parallel


@pytest.mark.requirement("B-6")
@pytest.mark.parametrize("change", [0.25, 1.5, 3.0])
def test_when_requests_suddenly_take_another_time_one_more_try_is_enough(change: float) -> None:
    crowd = Crowd(300, 32, lambda now_s: 0.4 if now_s < 65 else 0.4 * change).run()
    assert len(crowd.served) == 301
    assert crowd.part_served_by(3) >= 0.95


@pytest.mark.requirement("B-6")
def test_clients_of_a_model_that_is_not_loaded_yet_are_told_to_come_when_it_is() -> None:
    crowd = Crowd(300, 32, lambda _: 1.0, warm=False).run()
    assert crowd.part_served_by(2) >= 0.95


@given(
    lengths=st.lists(st.integers(0, 64), min_size=1, max_size=40),
    room=st.integers(1, 64),
    rate=st.floats(0.001, 500),
    now_s=st.floats(0, 1e6),
    starts_in_s=st.floats(0, 100),
)
def test_an_appointment_is_a_whole_second_within_bounds_and_never_more_than_the_queue_holds_at_once(
    lengths: list[int], room: int, rate: float, now_s: float, starts_in_s: float
) -> None:
    appointments = Appointments()
    told = [
        appointments.book(now_s, length=length, room=room, rate=rate, starts_in_s=starts_in_s) for length in lengths
    ]
    assert all(1 <= seconds <= LATEST_S for seconds in told)
    within = Counter(math.floor(now_s + seconds) for seconds in told if seconds < LATEST_S)
    assert all(count <= room for count in within.values())


def test_appointments_that_are_over_are_forgotten() -> None:
    appointments = Appointments()
    for _ in range(5):
        appointments.book(100.0, length=4, room=4, rate=1.0)
    assert appointments.sent_away == 5
    assert appointments.book(200.0, length=4, room=4, rate=1.0) == 2
    assert appointments.sent_away == 1
