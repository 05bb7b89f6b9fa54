"""Which files of a repository are taken."""

from __future__ import annotations

import pytest

from homelab_llm.core.errors import InvalidInput, SourceNotFound, UnsafeModel
from homelab_llm.store.sources.choice import choose_files, gguf_models, stored_name


def chosen(*paths: str, wanted: str = "") -> list[str]:
    return choose_files(dict.fromkeys(paths, 1_000_000), wanted, "hf:org/name")


@pytest.mark.requirement("R-M2", "R-S1")
def test_a_snapshot_is_weights_configuration_and_tokenizer_without_code_and_pickles() -> None:
    taken = chosen(
        "config.json",
        "model.safetensors",
        "model.fp16.bin",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "modeling.py",
        "README.md",
        "LICENSE",
        "onnx/model.onnx",
        "original/consolidated.safetensors",
        "consolidated.safetensors",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "model-Q4.gguf",
    )
    assert taken == [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]


def test_the_only_gguf_model_is_taken_and_projectors_do_not_count() -> None:
    assert chosen("README.md", "m-Q4_K_M.gguf", "mmproj-m-f16.gguf") == ["m-Q4_K_M.gguf"]


def test_several_gguf_models_need_a_choice_and_the_error_lists_them() -> None:
    with pytest.raises(InvalidInput) as caught:
        chosen("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf")
    assert caught.value.facts["choices"] == ["m-F16-00001-of-00002.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert "m-F16-00001-of-00002.gguf (2.0 MB)" in caught.value.message
    assert caught.value.hint == "mlxctl pull 'hf:org/name#m-Q4_K_M.gguf'"


def test_one_part_of_a_split_file_stands_for_all() -> None:
    parts = ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"]
    assert chosen(*parts, "m-Q8_0.gguf", wanted=parts[1]) == parts
    assert [stored_name(part) for part in parts] == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]
    assert gguf_models([*parts, "other-00001-of-00001.gguf"]) == {
        parts[0]: parts,
        "other-00001-of-00001.gguf": ["other-00001-of-00001.gguf"],
    }


def test_a_file_is_found_without_regard_to_case() -> None:
    assert chosen("M-q8_0.GGUF", "m-Q4_K_M.gguf", wanted="m-q4_k_m.gguf") == ["m-Q4_K_M.gguf"]


def test_a_file_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(SourceNotFound) as caught:
        chosen("m-Q8_0.gguf", wanted="other.gguf")
    assert "m-Q8_0.gguf" in caught.value.hint
    with pytest.raises(SourceNotFound):
        chosen("model.safetensors", wanted="m.gguf")


@pytest.mark.requirement("R-S1")
def test_a_repository_of_pickles_is_unsafe_and_one_without_weights_is_no_model() -> None:
    with pytest.raises(UnsafeModel):
        chosen("config.json", "pytorch_model.bin")
    with pytest.raises(SourceNotFound):
        chosen("README.md")
