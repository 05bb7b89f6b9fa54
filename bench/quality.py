"""What each type of weights costs in quality: the perplexity table of SmolLM2-135M-Instruct.

    python -m bench.quality [GGUF] [--tokens N] [--only q8_0,4bit]

Prints the table of ``docs/guides/convert.md``. The model comes from the package index as a Q4_1 file; read back into
16-bit floats it is the base of all others. Minutes: one forward pass over the text for each row, in plain numpy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from homelab_llm.testing.programs import files_in, run_program

GGUF = ("q8_0", "q5_1", "q5_0", "q4_0")  # q4_1 is what the weights were before, so it would cost nothing
MLX = ("8bit", "6bit", "5bit", "4bit", "3bit", "mixed_4_6", "mixed_3_6", "mixed_3_4", "mixed_2_6")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    size_bytes: int
    perplexity: float
    standard_error: float


def rows(model: Path, folder: Path, tokens: int, kinds: Sequence[str]) -> Iterator[Row]:
    """The base and every type, each made in ``folder`` and measured."""
    base = folder / "base.gguf"
    _done("quantize_gguf", {"model.gguf": model}, "--type", "f16", "--force", "--target", str(base))
    yield _measured("f16", {"model.gguf": base}, tokens)
    for kind in [kind for kind in GGUF if kind in kinds]:
        target = folder / f"{kind}.gguf"
        _done("quantize_gguf", {"model.gguf": base}, "--type", kind, "--target", str(target))
        yield _measured(kind, {"model.gguf": target}, tokens)
    dense = folder / "dense"
    _done("gguf_to_hf", {"model.gguf": base}, "--type", "f16", "--target", str(dense))
    for kind in [kind for kind in MLX if kind in kinds]:
        _done("hf_to_mlx", files_in(dense), "--type", kind, "--target", str(folder / kind))
        yield _measured(f"MLX {kind}", files_in(folder / kind), tokens)


def _done(module: str, files: dict[str, Path], *arguments: str) -> None:
    if error := run_program(module, files, *arguments).error:
        raise RuntimeError(error["message"])


def _measured(kind: str, files: dict[str, Path], tokens: int) -> Row:
    found = run_program("perplexity", files, "--tokens", str(tokens), limit_s=1800).result
    size = sum(path.stat().st_size for name, path in files.items() if name.endswith((".gguf", ".safetensors")))
    return Row(kind, size, found["perplexity"], found["standard_error"])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The perplexity table of the conversions.")
    parser.add_argument("model", type=Path, nargs="?", default=Path(".cache/models/smollm2"), help="a GGUF file")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only", default=",".join((*GGUF, *MLX)))
    given = parser.parse_args()
    model = given.model if given.model.is_file() else next(given.model.glob("*.gguf"))
    print("| type | size | perplexity | against f16 |\n|---|--:|--:|--:|")
    first = 0.0
    with TemporaryDirectory(prefix="quality-") as folder:
        for row in rows(model, Path(folder), given.tokens, given.only.split(",")):
            first = first or row.perplexity
            change = f"{100 * (row.perplexity / first - 1):+.1f} %" if row.kind != "f16" else "–"
            print(f"| {row.kind} | {row.size_bytes / 1e6:.0f} MB | {row.perplexity:.2f} | {change} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
