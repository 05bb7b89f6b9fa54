"""The safetensors reader and the folder facts: right facts from good folders, refusals for the others."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import BadModelFile, HomelabError, UnsafeModel
from homelab_llm.store.inspect.model import inspect_model
from homelab_llm.store.inspect.safetensors import read_safetensors

Build = Callable[..., bytes]
Folder = Callable[..., dict[str, Path]]
ONE = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.requirement("R-M9")
def test_the_real_minilm_tells_its_facts(minilm_folder: Path) -> None:
    files = {str(path.relative_to(minilm_folder)): path for path in minilm_folder.rglob("*") if path.is_file()}
    facts = inspect_model(files)
    assert (facts.format, facts.architecture, facts.quantization) == ("safetensors", "bert", "F32")
    assert (facts.parameters, facts.embedding_width, facts.layers) == (22_713_728, 384, 6)
    assert (facts.context_tokens, facts.vocabulary_tokens) == (512, 30522)
    assert facts.capabilities == ("embedding",)
    assert facts.kv_bytes_per_token == 0
    assert facts.licence == "apache-2.0"
    assert facts.size_bytes == sum(path.stat().st_size for path in files.values())


def test_a_llama_folder_tells_its_facts(folder: Folder) -> None:
    template = {"chat_template": "{{ messages }}{{ tools }}"}
    facts = inspect_model(folder(**{"tokenizer_config.json": json.dumps(template)}))
    assert (facts.format, facts.quantization, facts.parameters) == ("safetensors", "F16", 256)
    assert facts.kv_bytes_per_token == 2 * 2 * 16 * 2 * 2
    assert facts.capabilities == ("chat", "completion", "tools")
    assert facts.template_knows_tools


def test_a_template_file_wins_over_the_tokenizer_configuration(folder: Folder) -> None:
    files = folder(
        **{"chat_template.jinja": "{{ messages }}", "tokenizer_config.json": json.dumps({"chat_template": "{{ old }}"})}
    )
    assert inspect_model(files).chat_template == "{{ messages }}"


def test_a_separate_template_for_tools_counts(folder: Folder) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools }}"}]
    facts = inspect_model(folder(**{"tokenizer_config.json": json.dumps({"chat_template": templates})}))
    assert facts.chat_template == "plain"
    assert facts.template_knows_tools


def test_an_mlx_folder_is_known_by_its_quantization_and_counts_weights_not_words(
    folder: Folder, safetensors: Build
) -> None:
    header = {
        "__metadata__": {"format": "mlx"},
        "a.weight": {"dtype": "U32", "shape": [8, 8], "data_offsets": [0, 256]},
        "a.scales": {"dtype": "F16", "shape": [8], "data_offsets": [256, 272]},
        "a.biases": {"dtype": "F16", "shape": [8], "data_offsets": [272, 288]},
        "norm.weight": {"dtype": "F16", "shape": [8], "data_offsets": [288, 304]},
    }
    files = folder(
        {"quantization": {"group_size": 64, "bits": 4}}, **{"model.safetensors": safetensors(header, b"\x3c" * 304)}
    )
    facts = inspect_model(files)
    assert (facts.format, facts.quantization, facts.parameters) == ("mlx", "4bit", 64 * 8 + 8)


def test_the_language_part_of_a_vision_model_gives_the_dimensions(folder: Folder) -> None:
    facts = inspect_model(folder({"vision_config": {}, "text_config": {"num_hidden_layers": 7, "hidden_size": 32}}))
    assert (facts.layers, facts.embedding_width) == (7, 32)
    assert "vision" in facts.capabilities


def sharded(safetensors: Build, weight_map: dict[str, str]) -> dict[str, bytes | str | None]:
    return {
        "model.safetensors": None,
        "model-00001-of-00002.safetensors": safetensors({"a": ONE}, b"\1" * 4),
        "model-00002-of-00002.safetensors": safetensors({"b": ONE}, b"\1" * 4),
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}),
    }


def test_shards_are_counted_together(folder: Folder, safetensors: Build) -> None:
    good = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert inspect_model(folder(**sharded(safetensors, good))).parameters == 4


@pytest.mark.requirement("R-M4", "R-S1")
@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "model-00003-of-00002.safetensors", ""])
def test_an_index_that_points_outside_or_to_a_missing_shard_is_refused(
    folder: Folder, safetensors: Build, shard: str
) -> None:
    with pytest.raises(BadModelFile):
        inspect_model(folder(**sharded(safetensors, {"a": shard})))


def test_a_missing_shard_is_noticed_without_an_index(folder: Folder, safetensors: Build) -> None:
    files = folder(**sharded(safetensors, {}))
    del files["model.safetensors.index.json"], files["model-00002-of-00002.safetensors"]
    with pytest.raises(BadModelFile, match="missing"):
        inspect_model(files)


def test_an_index_that_promises_another_tensor_is_refused(folder: Folder, safetensors: Build) -> None:
    with pytest.raises(BadModelFile, match="does not hold"):
        inspect_model(folder(**sharded(safetensors, {"b": "model-00001-of-00002.safetensors"})))


def header_lies(build: Build) -> dict[str, bytes]:
    """One bad file for each way in which a safetensors header can lie."""
    tail = b"\1" * 4
    return {
        "empty": b"",
        "short": b"\1\2\3",
        "length 0": build(b"", tail),
        "length beyond the file": build({"a": ONE}, tail, announced=10_000),
        "length beyond the bound": build({"a": ONE}, tail, announced=1 << 60),
        "not JSON": build(b"{nope", tail),
        "not an object": build(b"[1]        ", tail),
        "not UTF-8": build(b'{"\xff": 1}', tail),
        "deep": build(b'{"a":' + b"[" * 100_000, tail),
        "a million lists": build(b'{"a":[' + b"[]," * 1_000_001 + b"[]]}", tail),
        "a name twice": build(b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", tail),
        "unknown dtype": build({"a": {**ONE, "dtype": "F13"}}, tail),
        "dtype is a list": build({"a": {**ONE, "dtype": ["F16"]}}, tail),
        "negative shape": build({"a": {**ONE, "shape": [-2]}}, tail),
        "shape overflows": build({"a": {**ONE, "shape": [1 << 61, 1 << 61]}}, tail),
        "shape is text": build({"a": {**ONE, "shape": "2"}}, tail),
        "shape of floats": build({"a": {**ONE, "shape": [2.0]}}, tail),
        "shape of true": build({"a": {**ONE, "shape": [True]}}, tail),
        "end before begin": build({"a": {**ONE, "data_offsets": [4, 0]}}, tail),
        "three offsets": build({"a": {**ONE, "data_offsets": [0, 4, 8]}}, tail),
        "another key": build({"a": {**ONE, "more": 1}}, tail),
        "entry is null": build({"a": None}, tail),
        "overlap": build({"a": ONE, "b": ONE}, tail),
        "hole": build({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, tail * 3),
        "truncated": build({"a": ONE}, tail[:-1]),
        "extended": build({"a": ONE}, tail + b"\0"),
        "metadata of numbers": build({"__metadata__": {"x": 1}, "a": ONE}, tail),
        "metadata is text": build({"__metadata__": "x", "a": ONE}, tail),
        "zeroed": build({"a": {"dtype": "U8", "shape": [512], "data_offsets": [0, 512]}}, b"\0" * 512),
    }


@pytest.mark.requirement("R-M4", "R-S1")
def test_every_lying_header_is_a_bad_model_file(tmp_path: Path, safetensors: Build) -> None:
    for what, content in header_lies(safetensors).items():
        (tmp_path / "m").write_bytes(content)
        with pytest.raises(BadModelFile):
            read_safetensors(tmp_path / "m")
            pytest.fail(f"not refused: {what}")


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"trust_remote_code": True},
        {"model_file": "model.py"},
        {"custom_pipelines": {"x": {}}},
        {"_attn_implementation_internal": "evil/kernel"},
        {"text_config": {"nested": [{"auto_map": {"A": "b"}}]}},
    ],
)
def test_a_configuration_that_asks_for_remote_code_is_refused(folder: Folder, config: dict[str, Any]) -> None:
    with pytest.raises(UnsafeModel) as caught:
        inspect_model(folder(config))
    assert caught.value.hint


@pytest.mark.requirement("R-S1")
def test_remote_code_in_the_tokenizer_configuration_is_refused_too(folder: Folder) -> None:
    with pytest.raises(UnsafeModel):
        inspect_model(folder(**{"tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["a.B", None]}})}))


def test_a_key_that_says_no_to_remote_code_is_harmless(folder: Folder) -> None:
    assert inspect_model(folder({"trust_remote_code": False, "auto_map": {}})).layers == 2


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.PT", "x/model.pkl", "modeling.py", "kernel.so"])
def test_pickle_and_code_are_refused_by_name(folder: Folder, name: str) -> None:
    with pytest.raises(UnsafeModel):
        inspect_model(folder(**{name: b"whatever"}))


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "many"},
        {"hidden_size": -1},
        {"vocab_size": True},
        {"vocab_size": 1e6},
        {"max_position_embeddings": 2**40},
        {"model_type": None},
        {"model_type": "x" * 200},
    ],
)
def test_absurd_dimensions_are_refused(folder: Folder, config: dict[str, Any]) -> None:
    with pytest.raises(BadModelFile):
        inspect_model(folder(config))


def test_an_adapter_alone_is_refused_and_told_what_it_is(folder: Folder) -> None:
    files = folder(**{"config.json": None, "adapter_config.json": '{"peft_type": "LORA"}'})
    with pytest.raises(BadModelFile, match="adapter alone") as caught:
        inspect_model(files)
    assert "mlxctl create" in caught.value.hint


@given(depth=st.integers(1, 100_000), opening=st.sampled_from(["[", '{"a":']))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_configuration_nested_ever_deeper_is_a_typed_error(folder: Folder, depth: int, opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    text = '{"model_type":"llama","x":' + opening * depth + "1" + closing * depth + "}"
    files = folder(**{"config.json": text})
    try:
        inspect_model(files)
    except BadModelFile as error:
        assert len(error.message) < 300


@pytest.mark.parametrize(
    "modules", ["{}", "[1]", '[{"type":1}]', '[{"type":"os.system"}]', '[{"type":"sentence_transformersx.Y"}]', "["]
)
def test_modules_that_are_not_of_the_library_are_refused(folder: Folder, modules: str) -> None:
    with pytest.raises((BadModelFile, UnsafeModel)):
        inspect_model(folder(**{"modules.json": modules}))


def test_what_is_no_model_is_refused(folder: Folder, tmp_path: Path) -> None:
    files = folder()
    for bad in (
        {},
        {"config.json": files["config.json"]},
        {"model.safetensors": files["model.safetensors"]},
        {**files, "model.gguf": files["config.json"]},
    ):
        with pytest.raises(BadModelFile):
            inspect_model(bad)


@pytest.mark.requirement("R-S1")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_a_safetensors_file_brings_another_error(
    tmp_path: Path, safetensors: Build, data: st.DataObject
) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": ONE, "b": {**ONE, "data_offsets": [4, 8]}}
    content = bytearray(safetensors(header, b"\1" * 8))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=1, max_size=8))
    (tmp_path / "m").write_bytes(content)
    try:
        assert read_safetensors(tmp_path / "m").size_bytes == len(content)
    except BadModelFile as error:
        assert error.code == "bad_model_file"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["model_type", "num_hidden_layers", "hidden_size", "quantization", "layer_types", "text_config", "architectures"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), JSON, max_size=6), tokenizer=JSON)
def test_no_configuration_brings_an_untyped_error(folder: Folder, config: dict[str, Any], tokenizer: object) -> None:
    files = folder(config, **{"tokenizer_config.json": json.dumps({"chat_template": tokenizer})})
    try:
        assert inspect_model(files).size_bytes > 0
    except HomelabError as error:
        assert error.code in {"bad_model_file", "unsafe_model"}


def test_a_huge_header_length_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(struct.pack("<Q", 2**64 - 1) + b"{}")
    with pytest.raises(BadModelFile) as caught:
        read_safetensors(tmp_path / "m")
    assert caught.value.facts["needed_bytes"] == 2**64 - 1
