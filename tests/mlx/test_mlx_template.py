"""Prompts of the MLX worker: where a folder keeps its template, and what becomes of a request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab_llm.core.errors import BadModelFile, ContextOverflow, InvalidInput, UnsupportedRequest
from homelab_llm.inference.workers.mlx.prompt import Prompter
from homelab_llm.inference.workers.mlx.request import Ask, parse_chat, parse_completion
from homelab_llm.inference.workers.mlx.template import read_template


def chat(text: str, **fields: object) -> Ask:
    return parse_chat({"messages": [{"role": "user", "content": text}], **fields})


def test_the_template_is_found_where_folders_keep_it(tmp_path: Path) -> None:
    assert read_template(tmp_path) == ""
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_template(tmp_path) == "d"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert read_template(tmp_path) == "own file"


def test_smollm2s_prompt_is_the_one_its_authors_wrote(smollm2_mlx: Path) -> None:
    prompter = Prompter(smollm2_mlx)
    ids = prompter.encode(chat("hi"), context_tokens=100)
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == prompter.encode(parse_completion({"prompt": expected}), context_tokens=100)
    assert prompter.decode(ids) == expected.replace("<|im_start|>", "").replace("<|im_end|>", "")


def test_a_prompt_that_fills_the_context_is_refused_with_both_counts(smollm2_mlx: Path) -> None:
    prompter = Prompter(smollm2_mlx)
    ask = parse_completion({"prompt": [1, 2, 3, 4]})
    assert prompter.encode(ask, context_tokens=5) == [1, 2, 3, 4]
    with pytest.raises(ContextOverflow) as refused:
        prompter.encode(ask, context_tokens=4)
    assert refused.value.facts == {"prompt_tokens": 4, "context_tokens": 4}


def test_a_caller_cannot_replace_what_the_template_relies_on(smollm2_mlx: Path) -> None:
    ask = chat("hi", chat_template_kwargs={"bos_token": "x"})
    with pytest.raises(InvalidInput, match="bos_token"):
        Prompter(smollm2_mlx).encode(ask, context_tokens=100)


def test_a_model_without_a_template_does_not_chat(smollm2_mlx: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((smollm2_mlx / "tokenizer.json").read_bytes())
    with pytest.raises(UnsupportedRequest):
        Prompter(tmp_path).encode(chat("hi"), context_tokens=100)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": {}}'])
def test_a_folder_without_a_usable_tokenizer_is_bad(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadModelFile):
        Prompter(tmp_path)
