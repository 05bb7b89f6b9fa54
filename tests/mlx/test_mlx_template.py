"""Chat templates: rendered as their authors expect, and kept within bounds when they are hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab_llm.core.errors import BadModelFile, ContextOverflow, InvalidInput, UnsupportedRequest
from homelab_llm.inference.workers.mlx.prompt import Prompter
from homelab_llm.inference.workers.mlx.request import Ask, parse_chat, parse_completion
from homelab_llm.inference.workers.mlx.template import ChatTemplate, read_template

HELLO = [{"role": "user", "content": "hello"}]


def chat(text: str, **fields: object) -> Ask:
    return parse_chat({"messages": [{"role": "user", "content": text}], **fields})


def test_a_template_gets_the_messages_the_tokens_and_the_callers_values() -> None:
    template = ChatTemplate(
        "{{ bos_token }}\n  {% for m in messages %}\n{{ m.role }}={{ m['content'] }}\n  {% endfor %}\n{{ mood }}"
    )
    assert template.render(HELLO, {"bos_token": "<s>", "mood": "calm"}) == "<s>\nuser=hello\ncalm"


def test_what_transformers_gives_templates_is_there() -> None:
    template = ChatTemplate(
        "{%- for m in messages %}{%- if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor -%}"
        "{% generation %}{{ 'é' | tojson }}{% endgeneration %}{{ strftime_now('%Y') | length }}"
    )
    assert template.render(HELLO * 2, {}) == json.dumps(HELLO[0]) + '"é"4'


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInput, match="roles must alternate"):
        template.render(HELLO, {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for m in messages * 60000 %}{% for n in messages * 60000 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ ((9 ** 99) ** 99) ** 99 }}",
        "{% for a in range(99999) %}{{ 'abcdefgh' * 8000 }}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_hostile_or_broken_template_costs_one_request_and_little_time(source: str) -> None:
    template = ChatTemplate(source, limit_s=0.2)
    with pytest.raises(InvalidInput):
        template.render(HELLO, {})


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% include 'x' %}{% if %}", "x" * (1 << 21)])
def test_a_template_that_is_none_is_a_bad_file(source: str) -> None:
    with pytest.raises(BadModelFile):
        ChatTemplate(source)


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
