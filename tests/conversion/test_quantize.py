"""GGUF files with smaller weights: what stays, what changes, what is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest

from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.gguf_output import tensor_type
from homelab_llm.testing.programs import run_program


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_weights_shrink_and_everything_else_stays(tiny_gguf: Path, tmp_path: Path, kind: str) -> None:
    ended = run_program(
        "quantize_gguf", {"model.gguf": tiny_gguf}, "--type", kind, "--target", str(tmp_path / "m.gguf")
    )
    assert ended.status == 0
    assert ended.stages == sorted(ended.stages)
    assert ended.stages[-1] == 1
    before, after = GgufFiles([tiny_gguf]), GgufFiles([tmp_path / "m.gguf"])
    changed = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in before.pairs.items() if k not in changed} == {
        k: v for k, v in after.pairs.items() if k not in changed
    }
    assert list(before.tensors) == list(after.tensors)
    for name, stored in after.tensors.items():
        found = gguf.GGMLQuantizationType(stored.kind).name.lower()
        assert found == tensor_type(name, stored.shape, kind, output="token_embd.weight")
        assert stored.shape == before.shape(name)
    name = "blk.1.ffn_down.weight"
    expected = gguf.quants.quantize(before.rows(name, 0, 64), gguf.GGMLQuantizationType[kind.upper()])
    assert numpy.array_equal(after.raw_rows(name, 0, 64), expected)


def test_the_matrix_that_makes_the_logits_keeps_eight_bits_and_vectors_all() -> None:
    assert tensor_type("token_embd.weight", (512, 64), "q4_0", output="token_embd.weight") == "q8_0"
    assert tensor_type("token_embd.weight", (512, 64), "q4_0", output="output.weight") == "q4_0"
    assert tensor_type("output.weight", (512, 64), "f16", output="output.weight") == "f16"
    assert tensor_type("blk.0.attn_norm.weight", (64,), "q4_0", output="output.weight") == "f32"
    assert tensor_type("blk.0.ffn_gate_inp.weight", (8, 64), "q4_0", output="output.weight") == "f32"
    assert tensor_type("blk.0.ffn_down.weight", (64, 100), "q4_0", output="output.weight") == "f16"


def test_what_is_quantized_already_is_refused_unless_forced(smollm2_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    refused = run_program("quantize_gguf", {"model.gguf": smollm2_gguf}, "--type", "q8_0", "--target", str(target))
    assert refused.error["code"] == "unsupported_request"
    assert "--force" in refused.error["hint"]
    assert not target.exists()


@pytest.mark.parametrize("at", ["conversion.gguf.header", "conversion.gguf.tensor", "conversion.before_publish"])
def test_a_kill_leaves_no_half_file_and_the_next_run_makes_it(tiny_gguf: Path, tmp_path: Path, at: str) -> None:
    target = tmp_path / "m.gguf"
    arguments = ("--type", "q8_0", "--target", str(target))
    killed = run_program("quantize_gguf", {"model.gguf": tiny_gguf}, *arguments, HOMELAB_FAILPOINTS=f"{at}=kill")
    assert killed.status == -9
    assert not target.exists()
    assert run_program("quantize_gguf", {"model.gguf": tiny_gguf}, *arguments).status == 0
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["m.gguf"]


def test_a_full_disk_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    ended = run_program(
        "quantize_gguf",
        {"model.gguf": tiny_gguf},
        *("--type", "q8_0", "--target", str(tmp_path / "m.gguf")),
        HOMELAB_FAILPOINTS="conversion.gguf.tensor=enospc@5",
    )
    assert ended.error["code"] == "disk_full"
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


@pytest.mark.parametrize("cut_at", [0, 40, 9_000, -100])
def test_a_file_that_ends_early_is_refused(tiny_gguf: Path, tmp_path: Path, cut_at: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:cut_at])
    target = tmp_path / "m.gguf"
    ended = run_program(
        "quantize_gguf", {"model.gguf": tmp_path / "cut.gguf"}, "--type", "q8_0", "--target", str(target)
    )
    assert ended.error["code"] == "bad_model_file"
    assert not target.exists()
