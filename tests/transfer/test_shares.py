"""Shares of hosts and of the line."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.store.transfer.shares import HostShares, RateLimit


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 3)), min_size=1, max_size=60))
def test_never_more_than_the_rate_and_a_quarter_of_a_second(spent: list[tuple[int, float]]) -> None:
    now = [100.0]
    limit = RateLimit(lambda: now[0])
    begin, total = now[0], 0
    for count, idle_s in spent:
        now[0] += idle_s
        total += count
        now[0] += limit.spend(count, 10_000)
        assert total <= 10_000 * (now[0] - begin + 0.25) + 1e-3


def test_without_a_limit_nobody_waits() -> None:
    assert RateLimit(lambda: 0.0).spend(10**12, 0) == 0.0


def test_a_host_gets_no_more_connections_than_its_share_and_other_hosts_are_free() -> None:
    shares, third = HostShares(), threading.Event()

    def take() -> None:
        with shares.one("a", 2, lambda: False) as mine:
            assert mine
            third.set()

    with shares.one("a", 2, lambda: False), shares.one("b", 1, lambda: False):
        with shares.one("a", 2, lambda: False):
            thread = threading.Thread(target=take)
            thread.start()
            with shares.one("a", 2, lambda: True) as given_up:
                assert not given_up
            assert not third.is_set()
        assert third.wait(10)
    thread.join(10)
