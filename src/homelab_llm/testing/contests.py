"""Contests: clients that never stop asking for models that do not fit together; every wait must stay within a bound.

``run_contest(seed)`` is deterministic and plays several rounds of swaps in simulated time, about 100 a second.
"""

from __future__ import annotations

import math

from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import Demand, Grant, Submit
from homelab_llm.testing.histories import History, World, run_history
from homelab_llm.testing.witness import Report


def run_contest(seed: int) -> Report:
    """Play one contest to its end; ``violations`` must be empty."""
    return Contest(seed).run()


def play(first: int, count: int) -> tuple[list[str], int, float]:
    """The histories of ``count`` seeds and a contest for every fiftieth: violations, requests, the longest wait (s).

    In a module of the package, so that other processes can be given it.
    """
    reports = [run_history(seed) for seed in range(first, first + count)]
    reports += [run_contest(seed) for seed in range(first, first + count // 50)]
    violations = [text for report in reports for text in report.violations]
    return violations, sum(r.requests for r in reports), max(r.longest_wait_s for r in reports)


class Contest(History):
    """Two to four clients for each of two to four models, of which one or two fit at a time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 0)
        self.until_s = 12 * (self.world.limits.turn_s + 3 * self.world.load_s)
        self.clients = self.random.randint(2, 4) * len(self.world.models)
        for n in range(self.clients):
            model = self.world.models[n % len(self.world.models)]
            self.at(0.1 * n, lambda model=model: self.wish(model))  # type: ignore[misc]

    def make_world(self) -> World:
        chance = self.random
        count = chance.randint(2, 4)
        models = tuple(Demand(f"m{n}", f"model-{n}", chance.randint(6, 16), chance.randint(1, 3)) for n in range(count))
        limits = Limits(
            keep_alive_s=chance.choice((0.0, 5.0, -1.0)),
            queue_limit=100,
            max_wait_s=math.inf,
            turn_s=chance.choice((1.0, 5.0)),
            min_stay_s=chance.choice((0.0, 2.0)),
            max_running=chance.choice((0, 0, 2, 4)),
            reserved_slots=chance.choice((0, 1, 2)),
            aging_s=0.5,
        )
        return World(models, 16, limits, True, chance.choice((0.1, 2.0)), chance.choice((0.3, 1.0)), 0.2)

    def wish(self, model: Demand) -> None:
        if self.now_s > self.until_s:
            return
        self.ask(Submit("", model, priority=self.random.choice((0, 0, 0, 10))))

    def grant(self, effect: Grant) -> None:
        request, _ = self.seen.waiting[effect.request_id]
        super().grant(effect)
        # Asked again a moment before the answer ends: its model is never idle by itself.
        self.at(self.now_s + 0.4 * self.world.service_s, lambda: self.wish(request.demand))

    def most_waiting(self) -> int:
        return 2 * self.clients
