"""Tensors of a model, whatever file they come from: named, two-dimensional at most in what is asked, read by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

PIECE_BYTES = 32 << 20  # of 32-bit floats; what is in memory at once is a small multiple of it


class Tensors(Protocol):
    """Where tensors are read from. Names and meaning are those of Hugging Face's files."""

    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ``BadModelFile`` when there is no such tensor."""
        ...

    def rows(self, name: str, begin: int, end: int) -> Any:
        """Rows ``begin`` to ``end`` of the first dimension, as an array of float32."""
        ...


def whole_tensor(source: Tensors, name: str) -> Any:
    """All of a tensor as float32."""
    return source.rows(name, 0, source.shape(name)[0])


def pieces(source: Tensors, name: str) -> Iterator[Any]:
    """The tensor in blocks of whole rows, one after the other."""
    rows, *rest = source.shape(name)
    for begin, end in row_blocks(rows, width=_product(rest)):
        yield source.rows(name, begin, end)


def row_blocks(rows: int, *, width: int) -> Iterator[tuple[int, int]]:
    """``rows`` rows of ``width`` floats cut into blocks of at most ``PIECE_BYTES``, at least a row each."""
    step = max(1, PIECE_BYTES // (4 * max(1, width)))
    for begin in range(0, rows, step):
        yield begin, min(rows, begin + step)


def _product(numbers: list[int]) -> int:
    out = 1
    for number in numbers:
        out *= number
    return out
