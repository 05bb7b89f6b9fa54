"""The table of qualities in the guide is what a run gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.quality import rows

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "convert.md"
_ROW = re.compile(r"\| ([\w ]+) \| (\d+) MB \| ([\d.,]+) \|")


def table() -> dict[str, tuple[int, float]]:
    """Size in megabytes and perplexity by type, as the guide has them."""
    found = _ROW.findall(GUIDE.read_text("utf-8"))
    return {kind: (int(size), float(figure.replace(",", ""))) for kind, size, figure in found}


def test_the_guide_has_a_figure_for_each_kind_of_weights() -> None:
    figures = table()
    assert {"f16", "q8_0", "q4_0", "MLX 8bit", "MLX 4bit", "MLX mixed_4_6", "MLX mixed_3_6"} <= set(figures)
    assert figures["q8_0"][1] < figures["q4_0"][1]


@pytest.mark.requirement("R-I11")
@pytest.mark.timeout(3600)
@pytest.mark.full_size
def test_a_run_gives_the_figures_of_the_guide(smollm2_gguf: Path, tmp_path: Path) -> None:
    figures = table()
    kinds = [kind.removeprefix("MLX ") for kind in figures]
    for row in rows(smollm2_gguf, tmp_path, 8192, kinds):
        size, perplexity = figures[row.kind]
        assert round(row.size_bytes / 1e6) == size
        assert row.perplexity == pytest.approx(perplexity, rel=0.02)
