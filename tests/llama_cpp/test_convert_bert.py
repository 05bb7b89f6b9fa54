"""The conversion BERT → GGUF: idempotent, in one step, and refusing what llama.cpp would compute wrongly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.errors import BadModelFile
from homelab_llm.inference.conversion.bert import phantom, pooling, spelled
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles


@pytest.fixture
def folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """A copy of MiniLM's small files, and its weights by link."""
    copy = tmp_path / "model"
    shutil.copytree(minilm_folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(minilm_folder / "model.safetensors")
    return copy


def convert(folder: Path, target: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    argv = [sys.executable, "-P", "-m", "homelab_llm.inference.conversion.bert_to_gguf", "--target", str(target)]
    for path in folder.rglob("*"):
        argv += ["--file", f"{path.relative_to(folder)}={path}"] if path.is_file() else []
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, cwd="/")


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.requirement("R-I8")
def test_a_conversion_tells_its_progress_and_the_second_does_nothing(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "derived" / "model.gguf"
    done = convert(folder, target)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line.removeprefix("@progress ")) for line in done.stdout.splitlines()]
    assert all(step["stage"] == "convert" for step in told)
    assert [step["done"] for step in told] == sorted(step["done"] for step in told)
    assert told[-1]["done"] == 1
    assert 20e6 < target.stat().st_size < 30e6
    before = target.stat()
    again = convert(folder, target)
    assert (again.returncode, again.stdout) == (0, "")
    assert target.stat() == before
    assert {path.name for path in target.parent.iterdir()} == {"model.gguf", ".model.gguf.lock"}


def test_a_conversion_that_is_killed_leaves_nothing_half_and_the_next_one_cleans_up(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "derived" / "model.gguf"
    (target.parent).mkdir()
    stale = target.parent / ".model.gguf.0123abcd.tmp"
    stale.write_bytes(b"half")
    killed = convert(folder, target, {**os.environ, "HOMELAB_FAILPOINTS": "conversion.before_publish=kill"})
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert convert(folder, target).returncode == 0
    assert not stale.exists()
    assert {path.name for path in target.parent.iterdir()} == {"model.gguf", ".model.gguf.lock"}


def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "derived" / "model.gguf"
    done = convert(folder, target, {**os.environ, "HOMELAB_FAILPOINTS": "conversion.before_publish=enospc"})
    assert (done.returncode, done.stderr) == (2, "error: the disk is full; mlxctl prune, or free some space\n")
    assert {path.name for path in target.parent.iterdir()} == {".model.gguf.lock"}


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type = bert"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act = gelu"),
        ("config.json", {"position_embedding_type": "relative_key"}, "absolute"),
        ("config.json", {"num_hidden_layers": "6"}, "does not describe a BERT model"),
        ("config.json", {"num_hidden_layers": 7}, "encoder.layer.6"),
        ("config.json", {"hidden_size": 768}, "of shape"),
        ("config.json", {"vocab_size": 100}, "more tokens than the model"),
        ("config.json", {"vocab_size": 40_000}, "of shape"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling by mean_tokens, max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pooling by nothing"),
        ("tokenizer.json", {"normalizer": {"lowercase": False}}, "upper and lower case"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}}}, "WordPiece"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}}, "gaps"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 1}}}, "no [UNK]"),
    ],
)
def test_what_cannot_be_computed_rightly_is_refused_in_one_sentence(
    name: str, values: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    change(folder, name, **values)
    done = convert(folder, tmp_path / "derived" / "model.gguf")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "derived" / "model.gguf").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"]
)
def test_a_weights_file_that_lies_is_refused(content: bytes, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)
    done = convert(folder, tmp_path / "derived" / "model.gguf")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_a_weights_file_whose_tensor_lies_outside_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadModelFile, match="lies about where the tensor 'a' is"):
        SafetensorsFiles({path.name: path})


def test_half_precision_weights_are_read_exactly(tmp_path: Path) -> None:
    import numpy

    values = numpy.array([1.5, -2.0, 0.0, 65280.0], dtype="<f4")
    halves = {"F16": numpy.array([1.5, -2.0, 0.0, 7.0], dtype="<f2"), "BF16": (values.view("<u4") >> 16).astype("<u2")}
    for dtype, raw in halves.items():
        header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 8]}}).encode()
        path = tmp_path / f"{dtype}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw.tobytes())
        wanted = values if dtype == "BF16" else raw.astype("<f4")
        assert SafetensorsFiles({path.name: path}).rows("a", 0, 4).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("token", "stored"), [("fox", "▁fox"), ("##es", "es"), ("[CLS]", "[CLS]"), ("[", "▁["), ("##", "")]
)
def test_wordpiece_tokens_get_their_phantom_space(token: str, stored: str) -> None:
    assert phantom(token) == stored
    assert token == "##" or spelled(stored) == token


def test_pooling_is_by_mean_unless_the_model_says_otherwise(tmp_path: Path) -> None:
    assert pooling({}) == 1
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert pooling({"1_Pooling/config.json": path}) == 2
