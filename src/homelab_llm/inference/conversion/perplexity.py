"""The program that says how well a model foretells a text.

    python -m homelab_llm.inference.conversion.perplexity --file NAME=PATH … [--text FILE] [--tokens N]

Perplexity as llama.cpp's ``llama-perplexity`` has it: the text is cut into windows of 512 tokens that do not overlap, a
window begins with the model's start token where it has one, and the second half of each is scored. What computes is
``decoder.py`` for every format, so figures of one text and one tokenizer can be compared; smaller is better. The last
line is ``@result`` with the figures. An embedding model (BERT) is compared instead: ``similarity.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.decoder import Decoder
from homelab_llm.inference.conversion.opened import Tokens, open_decoder, open_tokens

WINDOW_TOKENS = 512
MAX_TEXT_BYTES = 64 << 20
USUAL_TOKENS = 16 * WINDOW_TOKENS
_LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The figure, its standard error, and what it was measured on."""

    perplexity: float
    standard_error: float
    scored_tokens: int
    windows: int
    window_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the method's name."""
        method = f"float32, windows of {self.window_tokens} tokens, second half scored"
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"method": method}


def measure(files: Mapping[str, Path], text: str, limit_tokens: int = USUAL_TOKENS) -> Perplexity:
    """How well the model foretells the text; blocks, seconds to minutes.

    Raises:
        InvalidInput: the text is too short.
        UnsupportedRequest, BadModelFile: see ``open_decoder`` and ``open_tokens``.
    """
    import numpy

    opened, tokens = open_decoder(files), open_tokens(files)
    windows = cut(tokens, text, limit_tokens, min(WINDOW_TOKENS, opened.shape.context_tokens))
    if max(map(max, windows)) >= opened.shape.vocabulary:
        raise InvalidInput("the tokenizer has tokens that the model does not know")
    decoder = Decoder(opened.shape, opened.tensors)
    states = decoder.hidden(windows, lambda done: program.progress("measuring", 0.9 * done))
    first = len(windows[0]) // 2
    scored = numpy.concatenate([state[first:-1] for state in states])
    targets = numpy.concatenate([numpy.array(window[first + 1 :]) for window in windows])
    losses = -decoder.log_probabilities(scored, targets)
    program.progress("measuring", 1)
    found = math.exp(losses.mean())
    error = float(losses.std(ddof=1)) / math.sqrt(len(losses)) * found
    return Perplexity(found, error, len(losses), len(windows), len(windows[0]))


def cut(tokens: Tokens, text: str, limit_tokens: int, window_tokens: int) -> list[list[int]]:
    """The windows of a text, of equal length; what is left at its end is not used."""
    begins = [] if tokens.bos_id is None else [tokens.bos_id]
    ids = (begins + tokens.encode(text))[:limit_tokens]
    if len(ids) < _LEAST_TOKENS:
        raise InvalidInput(f"the text has {len(ids)} tokens; at least {_LEAST_TOKENS} are needed", field="text")
    length = min(window_tokens, len(ids))
    windows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    return [[*begins, *window[len(begins) :]] for window in windows]


def read_text(path: Path | None) -> str:
    """The text to measure on; None = the one that comes with this package.

    Raises:
        InvalidInput: too large, or not UTF-8.
    """
    if path is None:
        return resources.files("homelab_llm.inference.conversion").joinpath("sample.txt").read_text("utf-8")
    with path.open("rb") as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise InvalidInput(f"the text is larger than {MAX_TEXT_BYTES >> 20} MiB", field="text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("the text is not UTF-8", field="text") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    parser = program.parser("perplexity", "Say how well a model foretells a text.")
    parser.add_argument("--text", type=Path, help="a UTF-8 file; else the text that comes along")
    parser.add_argument("--tokens", type=int, default=USUAL_TOKENS, help="at most so many tokens of the text")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)
    return program.run(given, lambda: program.result(measure(files, read_text(given.text), given.tokens).as_dict()))


if __name__ == "__main__":
    sys.exit(main())
