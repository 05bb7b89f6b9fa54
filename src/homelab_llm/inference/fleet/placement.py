"""Placement: after an event, bring memory in order and start what can start. Decisions are in ``eviction``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from homelab_llm.core.errors import InsufficientMemory
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.eviction import Resident, Want, evictions_for, make_room
from homelab_llm.inference.fleet.ledger import Ledger
from homelab_llm.inference.fleet.state import ModelQueue
from homelab_llm.inference.fleet.vocabulary import Start


def settle(book: Ledger, new_id: Callable[[], str]) -> None:
    """Evict what is too much, refuse what can never fit, start what fits; know when time alone may change that."""
    if book.reserved_bytes > book.budget_bytes:
        _relieve(book)
    for queue in list(book.hungry.values()):
        if queue.needed_bytes(book.budget_bytes) > book.budget_bytes:
            book.refuse_waiting(queue, too_large(book, queue))
    if book.hungry:
        _start_hungry(book, new_id)
        book.wake_s = min(book.wake_s, _fairness_wake_s(book))
    book.unsettled = False


def too_large(book: Ledger, queue: ModelQueue) -> InsufficientMemory:
    """The refusal of a model that does not fit even alone, with all numbers."""
    free_bytes = max(0, book.budget_bytes - book.reserved_bytes)
    needed_bytes = queue.needed_bytes(book.budget_bytes)
    return refusals.too_large(queue.demand.name, needed_bytes, free_bytes, book.budget_bytes)


def _relieve(book: Ledger) -> None:
    """Idle workers go, the longest unused first, until the rest is within the budget or all idle ones went.

    Busy workers that will leave do not count: it is now that too much is taken.
    """
    workers = book.workers
    residents = [
        dataclasses.replace(resident, leaving=workers[resident.worker_id].state == "ending")
        for resident in _residents(book)
    ]
    victims = evictions_for(0, residents, book.budget_bytes)
    if victims is None:
        victims = [resident for resident in residents if resident.idle]
    for victim in victims:
        book.evict(book.workers[victim.worker_id], None)


def _start_hungry(book: Ledger, new_id: Callable[[], str]) -> None:
    wants = [
        Want(queue.demand.key, queue.needed_bytes(book.budget_bytes), _overdue_at_s(book, queue) <= book.now_s)
        for queue in sorted(book.hungry.values(), key=ModelQueue.rank)
    ]
    room = make_room(wants, _residents(book), book.budget_bytes)
    for worker_id, key in room.end:
        book.evict(book.workers[worker_id], book.queues[key])
    for worker_id, key in room.hold:
        book.workers[worker_id].held_for = book.queues[key]
    for key in room.start:
        queue = book.queues[key]
        needed_bytes = queue.needed_bytes(book.budget_bytes)
        queue.worker = book.add_worker(new_id(), queue, queue.demand, needed_bytes)
        book.out.append(Start(queue.worker.worker_id, queue.demand))
        book.notify("loading", queue)
        book.appetite(queue)


def _residents(book: Ledger) -> list[Resident]:
    fairness_s, now_s = book.limits.fairness_s, book.now_s
    return [
        Resident(
            worker.worker_id,
            worker.reserved_bytes,
            worker.last_used_s,
            leaving=worker.leaving,
            idle=worker.idle,
            turn_over=worker.turn_ends_s(fairness_s) <= now_s,
        )
        for worker in book.workers.values()
    ]


def _overdue_at_s(book: Ledger, queue: ModelQueue) -> float:
    since_s = book.now_s if queue.hungry_since_s is None else queue.hungry_since_s
    return since_s + book.limits.fairness_s


def _fairness_wake_s(book: Ledger) -> float:
    """When the next model becomes overdue or the next turn ends."""
    times = [_overdue_at_s(book, queue) for queue in book.hungry.values()]
    times += [worker.turn_ends_s(book.limits.fairness_s) for worker in book.workers.values()]
    return min((time_s for time_s in times if time_s > book.now_s), default=math.inf)
