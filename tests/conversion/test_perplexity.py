"""Perplexity: the same figure whatever the format, and the method as it is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab_llm.inference.conversion.opened import Tokens, open_tokens
from homelab_llm.inference.conversion.perplexity import cut
from homelab_llm.testing.programs import run_program


@pytest.mark.requirement("R-I11")
def test_a_text_is_foretold_better_than_its_words_in_disorder(smollm2_f16: Path, text: Path, tmp_path: Path) -> None:
    disorder = tmp_path / "disorder.txt"
    disorder.write_text(" ".join(sorted(text.read_text().split())))
    files = {"model.gguf": smollm2_f16}
    found = run_program("perplexity", files, "--text", str(text), "--tokens", "256").result
    worse = run_program("perplexity", files, "--text", str(disorder), "--tokens", "256").result
    assert found["perplexity"] < worse["perplexity"]
    assert (found["windows"], found["window_tokens"], found["scored_tokens"]) == (1, 256, 127)
    assert found["method"] == "float32, windows of 256 tokens, second half scored"


def test_a_text_of_a_few_words_is_refused(smollm2_f16: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    ended = run_program("perplexity", {"model.gguf": smollm2_f16}, "--text", str(short))
    assert ended.error["code"] == "invalid_input"
    assert ended.error["facts"]["field"] == "text"


def test_windows_have_one_length_and_begin_with_the_start_token(smollm2_f16: Path) -> None:
    library = open_tokens({"model.gguf": smollm2_f16})
    assert library.bos_id is None
    text = "one two three four five six seven eight nine ten " * 30
    ids = library.encode(text)
    assert cut(library, text, 200, 64) == [ids[0:64], ids[64:128], ids[128:192]]
    begun = cut(Tokens(library._library, 7), text, 200, 64)
    assert begun == [[7, *ids[0:63]], [7, *ids[64:127]], [7, *ids[128:191]]]
