"""The map of an unfinished blob, as a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.store.blocks import BLOCK_BYTES, Blocks

SIZE = 5 * BLOCK_BYTES + 77
Pieces = list[tuple[int, int]]
# Whole pieces of blocks in any order: (block, in how many steps it is filled).
FILLS = st.permutations(range(6)).flatmap(
    lambda blocks: st.tuples(*(st.tuples(st.just(block), st.integers(1, 4)) for block in blocks))
)


def fill(blocks: Blocks, index: int, steps: int) -> None:
    stop = min(SIZE, (index + 1) * BLOCK_BYTES)
    for step in range(steps):
        start = index * BLOCK_BYTES + (stop - index * BLOCK_BYTES) * step // steps
        blocks.add(start, index * BLOCK_BYTES + (stop - index * BLOCK_BYTES) * (step + 1) // steps - start)


@given(FILLS)
def test_in_whatever_order_blocks_come_gaps_and_there_make_the_whole(fills: tuple[tuple[int, int], ...]) -> None:
    blocks = Blocks()
    for index, steps in fills:
        fill(blocks, index, steps)
        gaps = blocks.gaps(SIZE)
        assert blocks.there_bytes + sum(stop - start for start, stop in gaps) == SIZE
        assert blocks.frontier == (gaps[0][0] if gaps else SIZE)
        again = Blocks.parse(blocks.encode(), size_bytes=SIZE, durable_only=False)
        assert (again.gaps(SIZE), again.frontier) == (gaps, blocks.frontier)
    assert blocks.frontier == SIZE


@given(FILLS, st.integers(0, 6))
def test_only_what_was_there_at_an_fsync_is_durable(fills: tuple[tuple[int, int], ...], at: int) -> None:
    blocks = Blocks()
    for index, steps in fills[:at]:
        fill(blocks, index, steps)
    seen, there = blocks.not_durable(), blocks.there_bytes
    for index, steps in fills[at:]:
        fill(blocks, index, steps)
    blocks.now_durable(seen)
    assert Blocks.parse(blocks.encode(), size_bytes=SIZE, durable_only=True).there_bytes == there


def test_a_block_that_grew_after_the_fsync_is_not_durable() -> None:
    blocks = Blocks()
    blocks.add(0, 10)
    seen = blocks.not_durable()
    blocks.add(10, 10)
    assert blocks.now_durable(seen) == []


@given(st.binary(max_size=60))
def test_whatever_is_on_disk_reads_as_a_map_within_the_file(content: bytes) -> None:
    blocks = Blocks.parse(content, size_bytes=SIZE, durable_only=False)
    assert 0 <= blocks.frontier <= blocks.there_bytes <= SIZE


def test_a_hole_is_an_error() -> None:
    with pytest.raises(ValueError, match="follow"):
        Blocks().add(5, 1)
