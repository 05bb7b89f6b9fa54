"""The GGUF reader: right facts from good files, one clear error for every bad one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import BadModelFile
from homelab_llm.core.facts import ModelFacts
from homelab_llm.store.inspect.gguf import read_gguf
from homelab_llm.store.inspect.model import inspect_model

Build = Callable[..., bytes]


def facts_of(path: Path, content: bytes) -> ModelFacts:
    path.write_bytes(content)
    return inspect_model({"model.gguf": path})


@pytest.mark.requirement("R-M9")
def test_the_real_smollm2_tells_its_facts(smollm2_gguf: Path) -> None:
    facts = inspect_model({"model.gguf": smollm2_gguf})
    assert (facts.format, facts.architecture, facts.quantization) == ("gguf", "llama", "Q4_1")
    assert (facts.parameters, facts.size_bytes) == (134_515_008, 98_362_432)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.embedding_width) == (30, 9, 3, 576)
    assert (facts.context_tokens, facts.vocabulary_tokens) == (8192, 49152)
    assert facts.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert facts.licence == "apache-2.0"
    assert facts.capabilities == ("chat", "completion")
    assert "<|im_start|>" in facts.chat_template
    assert not facts.template_knows_tools


def test_a_small_file_tells_its_facts(tmp_path: Path, gguf: Build) -> None:
    facts = facts_of(tmp_path / "m", gguf({"tokenizer.chat_template": "{% if tools %}<think>{% endif %}"}))
    assert facts.parameters == 64 * 3 + 64
    assert facts.vocabulary_tokens == 3
    assert facts.quantization == "F32"  # no file type: the type of most bytes
    assert facts.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert facts.template_knows_tools
    assert facts.capabilities == ("chat", "completion", "tools", "thinking")


def test_heads_may_differ_by_layer(tmp_path: Path, gguf: Build) -> None:
    facts = facts_of(tmp_path / "m", gguf({"llama.attention.head_count_kv": [1, 4]}))
    assert facts.kv_heads == 4
    assert facts.kv_bytes_per_token == (1 + 4) * (16 + 16) * 2


@pytest.mark.parametrize(
    ("values", "capabilities"),
    [
        ({"general.architecture": "bert"}, ("embedding",)),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, ("embedding",)),
        ({"general.architecture": "bert", "bert.pooling_type": 4}, ()),
        ({}, ("completion",)),
    ],
)
def test_capabilities_follow_architecture_and_pooling(
    tmp_path: Path, gguf: Build, values: dict[str, Any], capabilities: tuple[str, ...]
) -> None:
    assert facts_of(tmp_path / "m", gguf(values)).capabilities == capabilities


def test_a_vocabulary_of_150_000_strings_takes_one_window_of_memory(tmp_path: Path, gguf: Build) -> None:
    words = [f"word{n}" for n in range(150_000)]
    (tmp_path / "m").write_bytes(gguf({"tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words}))
    header = read_gguf(tmp_path / "m")
    assert header.lengths["tokenizer.ggml.tokens"] == 150_000
    assert "tokenizer.ggml.tokens" not in header.values


def test_strings_longer_than_the_window_are_passed_over(tmp_path: Path, gguf: Build) -> None:
    words = ["x" * 400_000, "", "y" * 262_144, "z"]
    facts = facts_of(tmp_path / "m", gguf({"tokenizer.ggml.merges": words, "llama.context_length": 77}))
    assert facts.context_tokens == 77


def test_a_split_model_needs_all_its_parts(tmp_path: Path, gguf: Build) -> None:
    tensors = [("output_norm.weight", (64,), 0, b"\x3f" * 256)]
    files = {}
    for number in range(2):
        path = tmp_path / f"m-{number}"
        path.write_bytes(gguf({"split.count": 2, "split.no": number, "split.tensors.count": 2}, tensors))
        files[f"m-{number}.gguf"] = path
    assert inspect_model(files).parameters == 128
    with pytest.raises(BadModelFile, match="1 of 2 parts"):
        inspect_model({"m-0.gguf": files["m-0.gguf"]})


def test_a_projector_beside_the_model_means_vision(tmp_path: Path, gguf: Build) -> None:
    (tmp_path / "m").write_bytes(gguf())
    (tmp_path / "p").write_bytes(gguf({"general.architecture": "clip"}))
    assert "vision" in inspect_model({"m.gguf": tmp_path / "m", "mmproj.gguf": tmp_path / "p"}).capabilities
    with pytest.raises(BadModelFile, match="projector alone"):
        inspect_model({"mmproj.gguf": tmp_path / "p"})


@pytest.mark.parametrize("kind", ["adapter", "imatrix"])
def test_what_only_belongs_to_a_model_is_no_model(tmp_path: Path, gguf: Build, kind: str) -> None:
    (tmp_path / "a").write_bytes(gguf({"general.type": kind}))
    (tmp_path / "m").write_bytes(gguf())
    with pytest.raises(BadModelFile, match="not a model"):
        inspect_model({"model.gguf": tmp_path / "a"})
    assert inspect_model({"model.gguf": tmp_path / "m", "x.gguf": tmp_path / "a"}).architecture == "llama"


def lies(build: Build) -> dict[str, bytes]:
    """One bad file for each way in which a GGUF can lie."""
    good = build()
    embedding = ("token_embd.weight", (64, 3), 0, b"\x3f" * 768)
    return {
        "empty": b"",
        "short": b"GGUF",
        "wrong magic": build(magic=b"GGML"),
        "version 1": build(version=1),
        "big-endian": build(version=3 << 24),
        "pairs beyond the bound": build(pair_count=1 << 60),
        "tensors beyond the bound": build(tensor_count=1 << 60),
        "more pairs than there are": build(pair_count=40),
        "more tensors than there are": build(tensor_count=4000),
        "string beyond the file": build(extra_pairs=[("x", 8, struct.pack("<Q", 1 << 60))]),
        "key beyond the bound": build(extra_pairs=[("k" * 2000, 4, b"\0\0\0\0")]),
        "array beyond the file": build(extra_pairs=[("x", 9, struct.pack("<IQ", 4, 1 << 60))]),
        "strings beyond the bound": build(extra_pairs=[("x", 9, struct.pack("<IQ", 8, 1 << 60))]),
        "empty strings without end": build(extra_pairs=[("x", 9, struct.pack("<IQ", 8, 3 << 20) + bytes(24 << 20))]),
        "array in an array": build(extra_pairs=[("x", 9, struct.pack("<IQIQ", 9, 1, 4, 0))]),
        "unknown value type": build(extra_pairs=[("x", 99, b"")]),
        "unknown item type": build(extra_pairs=[("x", 9, struct.pack("<IQ", 99, 1))]),
        "a key twice": build(extra_pairs=[("llama.block_count", 4, b"\1\0\0\0")]),
        "a key that is not UTF-8": build(extra_pairs=[("x", 8, b"")]).replace(b"general.license", b"\xff" * 15),
        "alignment 0": build({"general.alignment": 0}),
        "alignment 24": build({"general.alignment": 24}),
        "alignment 2^31": build({"general.alignment": 1 << 31}),
        "alignment is text": build({"general.alignment": "32"}),
        "a tensor twice": build(tensors=[embedding, embedding]),
        "five dimensions": build(tensors=[("a", (1, 1, 1, 1, 1), 0, b"\x3f" * 4)]),
        "a dimension of 0": build(tensors=[("a", (64, 0), 0, b"")]),
        "a dimension of 2^63": build(tensors=[("a", (1 << 63, 1 << 63), 0, b"\x3f" * 32)]),
        "unknown tensor type": build(tensors=[("a", (64,), 5, b"\x3f" * 256)]),
        "half a block": build(tensors=[("a", (33,), 2, b"\x3f" * 36)]),
        "a hole between tensors": build(shift_bytes=32),
        "an overlap of tensors": build(shift_bytes=-32),
        "no tensors": build(tensors=[]),
        "no architecture": build({"general.architecture": ""}),
        "10^9 layers": build({"llama.block_count": 1_000_000_000}),
        "context is text": build({"llama.context_length": "many"}),
        "heads of one layer missing": build({"llama.attention.head_count": [4]}),
        "truncated by a byte": good[:-1],
        "truncated in the header": good[:200],
        "extended by a byte": good + b"\0",
        "extended by a page": good + b"\1" * 4096,
        "zeroed behind the header": good[:-1024] + b"\0" * 1024,
        "zeroed tail": good[:-256] + b"\0" * 256,
        "zeroed altogether": b"\0" * len(good),
        "zeroed tensor in the middle": build(
            tensors=[("a", (64, 1024), 0, b"\0" * 262_144), ("b", (64,), 0, b"\x3f" * 256)]
        ),
    }


@pytest.mark.requirement("R-M4", "R-S1")
def test_every_lie_is_a_bad_model_file(tmp_path: Path, gguf: Build) -> None:
    for what, content in lies(gguf).items():
        (tmp_path / "m").write_bytes(content)
        try:
            inspect_model({"model.gguf": tmp_path / "m"})
        except BadModelFile as error:
            assert error.message, what
            assert len(error.message) < 300, what
        else:
            pytest.fail(f"not refused: {what}")


def test_data_that_ends_without_padding_is_complete(tmp_path: Path, gguf: Build) -> None:
    content = gguf(tensors=[("a.weight", (65,), 0, b"\x3f" * 260)])
    assert facts_of(tmp_path / "m", content).parameters == 65
    assert facts_of(tmp_path / "m", content[:-28]).parameters == 65


def test_zero_biases_and_zero_rows_of_a_padded_vocabulary_are_no_fault(tmp_path: Path, gguf: Build) -> None:
    padded = b"\x3f" * 240_000 + b"\0" * 22_144  # a twelfth of the rows
    tensors = [("output.weight", (64, 1024), 0, padded), ("output.bias", (64,), 0, b"\0" * 256)]
    assert facts_of(tmp_path / "m", gguf(tensors=tensors)).parameters == 64 * 1025


@pytest.mark.requirement("R-M4")
def test_the_real_file_truncated_extended_or_with_a_zero_tail_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    content = smollm2_gguf.read_bytes()
    for missing in (1, 4096, 50_000_000):
        with pytest.raises(BadModelFile, match="truncated"):
            facts_of(tmp_path / "m", content[:-missing])
        with pytest.raises(BadModelFile, match="zeros"):
            facts_of(tmp_path / "m", content[: -max(missing, 4096)] + b"\0" * max(missing, 4096))
    with pytest.raises(BadModelFile, match="extended"):
        facts_of(tmp_path / "m", content + b"\0")


@pytest.mark.requirement("R-S1")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_brings_any_other_error_than_bad_model_file(
    tmp_path: Path, gguf: Build, data: st.DataObject
) -> None:
    content = bytearray(gguf({"tokenizer.chat_template": "{{ tools }}"}))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "u64", "cut", "insert"]))
        if kind == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "u64":
            content[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 64))]
        else:
            content[at:at] = data.draw(st.binary(max_size=64))
        if not content:
            break
    try:
        assert facts_of(tmp_path / "m", bytes(content)).format == "gguf"
    except BadModelFile as error:
        assert error.code == "bad_model_file"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
def test_no_bytes_behind_the_magic_bring_another_error(tmp_path: Path, content: bytes) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    with pytest.raises(BadModelFile):
        facts_of(tmp_path / "m", head + content)
