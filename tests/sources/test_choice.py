"""Which files of a repository are taken."""

from __future__ import annotations

from typing import Any

import pytest

from homelab_llm.core.errors import InvalidInput, SourceNotFound, UnsafeModel
from homelab_llm.store.choice import Wanted, choose_files, gguf_models, stored_name


def chosen(*paths: str, **wanted: Any) -> list[str]:
    return choose_files(dict.fromkeys(paths, 1_000_000), "hf:org/name", Wanted(**wanted))


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
        "README.md",
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
    assert chosen(*parts, "m-Q8_0.gguf", file=parts[1]) == parts
    assert [stored_name(part) for part in parts] == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]
    assert gguf_models([*parts, "other-00001-of-00001.gguf"]) == {
        parts[0]: parts,
        "other-00001-of-00001.gguf": ["other-00001-of-00001.gguf"],
    }


def test_a_file_is_found_without_regard_to_case() -> None:
    assert chosen("M-q8_0.GGUF", "m-Q4_K_M.gguf", file="m-q4_k_m.gguf") == ["m-Q4_K_M.gguf"]


def test_a_file_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(SourceNotFound) as caught:
        chosen("m-Q8_0.gguf", file="other.gguf")
    assert "m-Q8_0.gguf" in caught.value.hint
    with pytest.raises(SourceNotFound):
        chosen("model.safetensors", file="m.gguf")


@pytest.mark.requirement("R-S1")
def test_a_repository_of_pickles_is_unsafe_and_one_without_weights_is_no_model() -> None:
    with pytest.raises(UnsafeModel):
        chosen("config.json", "pytorch_model.bin")
    with pytest.raises(SourceNotFound):
        chosen("README.md")


QUANTS = ("m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m-Q4_K_M-v2.gguf", "m-Q8_0.gguf", "BF16/m-BF16-00001-of-00001.gguf")


@pytest.mark.requirement("R-M2")
def test_a_quantization_names_a_file() -> None:
    assert chosen(*QUANTS, quantization="q8_0") == ["m-Q8_0.gguf"]
    assert chosen(*QUANTS, quantization="BF16") == ["BF16/m-BF16-00001-of-00001.gguf"]
    assert chosen(*QUANTS, quantization="UD-Q4_K_M") == ["m-UD-Q4_K_M.gguf"]
    assert chosen("m.safetensors", "m-Q8_0.gguf", quantization="Q8_0") == ["m-Q8_0.gguf"]
    with pytest.raises(InvalidInput) as caught:
        chosen(*QUANTS, quantization="Q4_K_M")
    assert caught.value.facts["choices"] == ["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"]
    with pytest.raises(SourceNotFound):
        chosen(*QUANTS, quantization="Q4_K")


FOLDER = (
    "config.json",
    "LICENSE",
    "model.safetensors",
    "model.fp16.safetensors",
    "modeling.py",
    "m.bin",
    "x-Q8_0.gguf",
)


@pytest.mark.requirement("R-M2", "R-S1")
def test_patterns_narrow_what_is_taken_and_never_let_code_in() -> None:
    assert chosen(*FOLDER, include=("*.fp16.*",)) == ["LICENSE", "config.json", "model.fp16.safetensors"]
    assert chosen(*FOLDER, exclude=("*.fp16.*", "LICENSE*")) == ["config.json", "model.safetensors"]
    assert chosen(*FOLDER, include=("*.gguf",)) == ["x-Q8_0.gguf"]
    assert "modeling.py" not in chosen(*FOLDER, include=("*",))
    for patterns in ({"include": ("*.bin",)}, {"include": ("*.py",)}, {"exclude": ("*",)}):
        with pytest.raises((UnsafeModel, SourceNotFound)):
            chosen(*FOLDER, **patterns)
    with pytest.raises(InvalidInput):
        chosen(*FOLDER, include=("*",) * 101)
