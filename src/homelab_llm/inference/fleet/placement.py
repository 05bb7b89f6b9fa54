"""Placement: after an event, bring memory in order and start what can start. Decisions are in ``eviction``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from homelab_llm.core.errors import HomelabError, InsufficientMemory
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.eviction import Resident, Want, evictions_for, make_room
from homelab_llm.inference.fleet.ledger import Ledger
from homelab_llm.inference.fleet.state import ModelQueue, Outlook, Worker
from homelab_llm.inference.fleet.vocabulary import Demand, Start


def settle(book: Ledger, new_id: Callable[[], str]) -> None:
    """Evict what is too much, refuse what can never fit, start what fits; know when time alone may change that."""
    if book.reserved_bytes > book.budget_bytes:
        _relieve(book)
    for queue in list(book.hungry.values()):
        if (error := hopeless(book, queue)) is not None:
            book.refuse_waiting(queue, error)
    if book.hungry:
        _start_hungry(book, new_id)
        book.wake_s = min(book.wake_s, _next_moment_s(book))
    if book.limits.max_running:
        book.grant_most_urgent()
    book.unsettled = False


def hopeless(book: Ledger, queue: ModelQueue) -> HomelabError | None:
    """The refusal of requests for which no worker will be started; None when one will."""
    if queue.quarantined:
        return refusals.quarantined(queue.demand.name, queue.failures, queue.last_error)
    return _unfit(book, queue)


def _unfit(book: Ledger, queue: ModelQueue) -> InsufficientMemory | None:
    """The refusal, with all numbers, of a model for which no waiting makes room; None when it can be loaded."""
    needed_bytes = queue.needed_bytes(book.budget_bytes)
    if needed_bytes <= book.budget_bytes - sum(w.reserved_bytes for w in _pinned(book, queue.demand.key)):
        return None
    return refusals.no_room(queue.demand.name, needed_bytes, outlook(book, queue.demand))


def outlook(book: Ledger, demand: Demand) -> Outlook:
    """Memory as it stands for a model that might be loaded, its own workers left out."""
    queue = book.queues.get(demand.key) or ModelQueue(demand)
    own = {worker.worker_id for worker in book.workers.values() if worker.demand.key == demand.key}
    others = [_unhurried(book.workers[r.worker_id], r) for r in _residents(book) if r.worker_id not in own]
    pinned_bytes = sum(worker.reserved_bytes for worker in _pinned(book, demand.key))
    needed_bytes = queue.needed_bytes(book.budget_bytes)
    victims = evictions_for(needed_bytes, others, book.budget_bytes, overdue=True) or []
    return Outlook(
        budget_bytes=book.budget_bytes,
        free_bytes=max(0, book.budget_bytes - sum(resident.reserved_bytes for resident in others)),
        evictable_bytes=sum(resident.reserved_bytes for resident in others if resident.idle),
        pinned_bytes=pinned_bytes,
        reachable_bytes=max(0, book.budget_bytes - pinned_bytes),
        loaded=queue.worker is not None and queue.worker.state == "ready",
        evicts=tuple(book.workers[r.worker_id].demand.name for r in victims if r.idle),
        waits_for=tuple(book.workers[r.worker_id].demand.name for r in victims if not r.idle),
    )


def _unhurried(worker: Worker, resident: Resident) -> Resident:
    """As it will be when its stay and its turn are over."""
    can_go = not (worker.pinned or resident.leaving)
    return dataclasses.replace(resident, idle=worker.idle and can_go, turn_over=not worker.idle and can_go)


def _pinned(book: Ledger, key: str) -> list[Worker]:
    """Workers of other models that will not go."""
    return [
        worker
        for worker in book.workers.values()
        if worker.pinned and worker.state in ("loading", "ready") and worker.demand.key != key
    ]


def _relieve(book: Ledger) -> None:
    """Idle workers go, the longest unused first, until the rest is within the budget or all idle ones went.

    Busy workers that will leave do not count: it is now that too much is taken.
    """
    workers = book.workers
    residents = [
        dataclasses.replace(
            resident,
            leaving=workers[resident.worker_id].state == "ending",
            idle=workers[resident.worker_id].idle and not workers[resident.worker_id].pinned,
        )
        for resident in _residents(book)
    ]
    victims = evictions_for(0, residents, book.budget_bytes)
    if victims is None:
        victims = [resident for resident in residents if resident.idle]
    for victim in victims:
        book.evict(book.workers[victim.worker_id], None)


def _start_hungry(book: Ledger, new_id: Callable[[], str]) -> None:
    hungry = [queue for queue in book.hungry.values() if queue.retry_at_s <= book.now_s]
    hungry.sort(key=lambda queue: _urgency(book, queue))
    wants = [
        Want(queue.demand.key, queue.needed_bytes(book.budget_bytes), _overdue_at_s(book, queue) <= book.now_s)
        for queue in hungry
    ]
    room = make_room(wants, _residents(book), book.budget_bytes)
    for worker_id, key in room.end:
        book.evict(book.workers[worker_id], book.queues[key])
    for worker_id, key in room.hold:
        worker = book.workers[worker_id]
        worker.held_for = book.queues[key]
        if worker.leases == 0:  # it waits for a place under max_running
            book.idle(worker)
    for key in room.start:
        queue = book.queues[key]
        needed_bytes = queue.needed_bytes(book.budget_bytes)
        queue.worker = book.add_worker(new_id(), queue, queue.demand, needed_bytes)
        book.out.append(Start(queue.worker.worker_id, queue.demand))
        book.notify("loading", queue, worker_id=queue.worker.worker_id)
        book.appetite(queue)


def _residents(book: Ledger) -> list[Resident]:
    limits, now_s = book.limits, book.now_s
    return [
        Resident(
            worker.worker_id,
            worker.reserved_bytes,
            worker.last_used_s,
            leaving=worker.leaving,
            idle=worker.idle and not worker.pinned and worker.stays_until_s(limits.min_stay_s) <= now_s,
            turn_over=not worker.pinned and worker.turn_ends_s(limits.turn_s) <= now_s,
        )
        for worker in book.workers.values()
    ]


def _urgency(book: Ledger, queue: ModelQueue) -> tuple[bool, float, int]:
    """The smallest is next. Who is overdue comes first, and who has just had a turn counts from its end: the room for
    which a worker was held is not for the next turn of the same model.
    """
    rank_s, arrival = queue.rank()
    return _overdue_at_s(book, queue) > book.now_s, max(rank_s, queue.hungry_since_s or 0.0), arrival


def _overdue_at_s(book: Ledger, queue: ModelQueue) -> float:
    since_s = book.now_s if queue.hungry_since_s is None else queue.hungry_since_s
    return since_s + book.limits.turn_s


def _next_moment_s(book: Ledger) -> float:
    """When the next model becomes overdue or may be tried again, or the next turn or stay ends."""
    limits = book.limits
    times = [_overdue_at_s(book, queue) for queue in book.hungry.values()]
    times += [queue.retry_at_s for queue in book.hungry.values()]
    times += [worker.turn_ends_s(limits.turn_s) for worker in book.workers.values()]
    times += [worker.stays_until_s(limits.min_stay_s) for worker in book.workers.values() if worker.leases == 0]
    return min((time_s for time_s in times if time_s > book.now_s), default=math.inf)
