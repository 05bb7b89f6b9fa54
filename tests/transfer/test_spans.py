"""Who fetches which bytes: pure decisions, simulated to the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.store.blocks import BLOCK_BYTES
from homelab_llm.store.transfer.spans import (
    BEHIND_BYTES,
    ENOUGH_BYTES_PER_S,
    LARGEST_BYTES,
    SMALLEST_BYTES,
    WINDOW_BYTES,
    Span,
    Spans,
)

MB = 10**6


def simulate(size: int, speeds: list[float], *, step_s: float = 0.05, cuts: frozenset[int] = frozenset()) -> float:
    """Fetch ``size`` bytes over connections of these speeds; seconds it took. Each byte must come exactly once."""
    spans, now, got = Spans([(0, size)]), 0.0, bytearray(-(-size // BLOCK_BYTES))
    written: list[tuple[int, int]] = []
    at: dict[int, Span] = {}
    claims = 0
    while not spans.done:
        for worker, speed in enumerate(speeds):
            if worker not in at and (span := spans.claim(now, connections=len(speeds), speed=speed)) is not None:
                at[worker] = span
                claims += 1
        now += step_s
        for worker, span in list(at.items()):
            before = span.at
            count = spans.reserve(span, int(speeds[worker] * step_s))
            span.busy = False
            written.append((before, before + count))
            if span.stop is None or span.at >= span.stop or claims in cuts:
                spans.give_back(at.pop(worker))
        assert now < 10_000, "it ends"
    del got
    position = 0
    for start, stop in sorted(piece for piece in written if piece[0] < piece[1]):
        assert start == position
        position = stop
    assert position == size
    return now


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300 * MB),
    st.lists(st.floats(0.2 * MB, 60 * MB), min_size=1, max_size=8),
    st.frozensets(st.integers(1, 40), max_size=5),
)
def test_every_byte_is_fetched_exactly_once_whatever_the_speeds_and_cuts(
    size: int, speeds: list[float], cuts: frozenset[int]
) -> None:
    simulate(size, speeds, cuts=cuts)


@pytest.mark.requirement("R-M3")
def test_one_slow_connection_does_not_hold_up_the_rest() -> None:
    even = simulate(200 * MB, [20 * MB] * 8)
    assert simulate(200 * MB, [20 * MB] * 7 + [0.1 * MB]) < 1.5 * even


def test_all_connections_end_together() -> None:
    assert simulate(1000 * MB, [20 * MB] * 8) < 1.05 * 1000 / 160


def test_a_small_file_is_one_span_and_a_large_one_begins_with_large_spans() -> None:
    small = Spans([(0, SMALLEST_BYTES)])
    assert (first := small.claim(0, connections=8)) is not None
    assert (first.start, first.stop) == (0, SMALLEST_BYTES)
    assert small.claim(0, connections=8) is None
    large = Spans([(0, 100 * LARGEST_BYTES)])
    assert (span := large.claim(0, connections=8, speed=50 * MB)) is not None
    assert span.stop == LARGEST_BYTES


def test_nobody_writes_far_ahead_of_the_hash() -> None:
    spans = Spans([(WINDOW_BYTES, 2 * WINDOW_BYTES)])
    assert spans.claim(0, connections=8, frontier=0) is None
    assert spans.claim(0, connections=8, frontier=1) is not None


def test_where_the_line_is_faster_than_disk_and_hash_further_connections_stay_away() -> None:
    spans = Spans([(0, 10**10)])
    assert spans.claim(0, connections=8, speed=ENOUGH_BYTES_PER_S / 2) is not None
    assert spans.claim(0, connections=8, speed=ENOUGH_BYTES_PER_S / 2) is not None
    assert spans.claim(0, connections=8, speed=ENOUGH_BYTES_PER_S / 2) is None


def test_while_the_hash_is_behind_fewer_connections_are_enough() -> None:
    spans, at = Spans([(BEHIND_BYTES * 4, 10**10)]), BEHIND_BYTES * 4
    pace = ENOUGH_BYTES_PER_S / 2
    assert spans.claim(0, connections=8, speed=pace, frontier=at, hashed=BEHIND_BYTES) is not None
    assert spans.claim(0, connections=8, speed=pace, frontier=at, hashed=BEHIND_BYTES) is None
    assert spans.claim(0, connections=8, speed=pace, frontier=at, hashed=at) is not None
