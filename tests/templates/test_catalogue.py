"""The catalogue: each template says truly what it speaks, and is chosen for the models it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.store.inspect.model import inspect_model
from homelab_llm.store.inspect.template import chat_capabilities, knows_tools
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.templates.catalogue import ENTRIES, TOKENS, Entry, choose, named
from homelab_llm.store.templates.check import check

pytestmark = pytest.mark.requirement("R-M8")
FOLDER = Path(__file__).parents[2] / "src/homelab_llm/store/templates/catalogue"
FINDINGS = {
    "system": "a system message",
    "turns": "several turns",
    "tools": "tools",
    "results of tools": "results of tools",
    "thinking": "thinking",
}


def told(architecture: str, tokens: str, ends: str = "") -> ModelFacts:
    return ModelFacts("gguf", architecture, 1, chat_tokens=tuple(tokens.split()), end_tokens=tuple(ends.split()))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_template_renders_what_its_header_says_and_nothing_else(entry: Entry) -> None:
    report = check(entry.text)
    assert report.usable
    assert set(entry.speaks) == {word for word, name in FINDINGS.items() if report.supports(name)}
    assert entry.about
    found = chat_capabilities(entry.text, knows_tools(entry.text))
    assert ("tools" in found, "thinking" in found) == ("tools" in entry.speaks, "thinking" in entry.speaks)


def test_every_file_has_an_entry_and_every_entry_a_file() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(entry.name for entry in ENTRIES)
    assert [named(entry.name) for entry in ENTRIES] == list(ENTRIES)
    assert named("no-such-family") is None


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (told("llama", "<|im_start|> <|im_end|>", "<|im_end|>"), "chatml"),
        (told("qwen2", "<|im_start|> <|im_end|> <tool_call>", "<|im_end|>"), "qwen2.5"),
        (told("qwen3", "<|im_start|> <|im_end|> <tool_call> <think>", "<|im_end|>"), "qwen3"),
        (told("qwen2", "<|im_start|> <|im_end|> <|im_sep|>", "<|im_end|>"), "phi4"),
        (told("llama", "<|start_header_id|> <|end_header_id|> <|eot_id|>", "<|eot_id|>"), "llama3"),
        (
            told("llama", "<|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>", "<|eot_id|>"),
            "llama3.1",
        ),
        (told("gemma3", "<start_of_turn> <end_of_turn>", "<end_of_turn>"), "gemma"),
        (told("llama", "[INST] [/INST] [AVAILABLE_TOOLS]"), "mistral-v3"),
        (told("mistral", "[INST] [/INST] [AVAILABLE_TOOLS] [SYSTEM_PROMPT] [TOOL_CONTENT]"), "mistral-v7"),
        (told("qwen2", "<｜User｜> <｜Assistant｜> <think>"), "deepseek-r1"),
        (told("gpt-oss", "<|start|> <|message|> <|channel|> <|call|> <|return|>", "<|return|>"), "gpt-oss"),
        (told("phi3", "<|system|> <|user|> <|assistant|> <|end|>"), "phi3"),
    ],
)
def test_a_model_is_recognised_by_its_vocabulary(facts: ModelFacts, name: str) -> None:
    assert (found := choose(facts)) is not None
    assert found.name == name


@pytest.mark.parametrize(
    "facts",
    [
        told("llama", ""),
        told("qwen3", "<|im_start|> <|im_end|> <tool_call> <think>"),  # Qwen 3 base ends with <|endoftext|>
        told("llama", "<|start_header_id|> <|end_header_id|> <|eot_id|>"),  # Llama 3 base
        told("gemma2", "<start_of_turn> <end_of_turn>"),
    ],
)
def test_a_base_model_gets_none(facts: ModelFacts) -> None:
    assert choose(facts) is None


def test_a_model_that_lost_its_template_chats_again(
    smollm2_gguf: Path, smollm2_without_template: Path, tmp_path: Path
) -> None:
    facts = inspect_model({"model.gguf": smollm2_without_template})
    assert facts.chat_template == ""
    assert facts.capabilities == ("completion",)
    store = ModelStore(tmp_path / "store")
    lost = store.import_path(smollm2_without_template, ModelRef.parse("lost"))
    own = store.import_path(smollm2_gguf, ModelRef.parse("own"))
    entry = named("chatml")
    assert entry is not None
    assert (lost.template_from, lost.facts.chat_template) == ("catalogue", entry.text)
    assert lost.facts.capabilities == ("chat", "completion")
    assert own.template_from == "files"
    assert own.facts.chat_tokens == ()
    assert "chat_tokens" not in own.facts.as_dict()


def test_a_folder_tells_its_tokens_by_its_small_files(tmp_path: Path) -> None:
    from homelab_llm.store.inspect.chat_tokens import folder_chat_tokens

    settings = {"added_tokens_decoder": {"1": {"content": "<|im_start|>"}, "2": {"content": "<|im_end|>"}, "x": 3}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    files = {path.name: path for path in tmp_path.iterdir()}
    assert folder_chat_tokens(files) == (("<|im_end|>", "<|im_start|>"), ("<|im_end|>",))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert folder_chat_tokens(files) == (("<|im_end|>", "<|im_start|>"), ())
    assert {"<|im_end|>", "<|im_start|>"} <= TOKENS
