"""MLX folders: what mlx-lm makes of them, and what our reading of packed weights does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from homelab_llm.inference.conversion.decoder import Decoder
from homelab_llm.inference.conversion.opened import open_decoder
from homelab_llm.testing.programs import files_in, run_program
from homelab_llm.testing.tiny_models import write_tiny

IDS = [5, 17, 99, 200, 44, 7, 150, 31]
KINDS = ("f16", "8bit", "6bit", "5bit", "4bit", "3bit", "mixed_4_6", "mixed_3_6", "mixed_3_4", "mixed_2_6")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers are wide enough for groups of 64."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), "llama", num_hidden_layers=8, intermediate_size=192)


def to_mlx(folder: Path, target: Path, kind: str, failpoints: str = "") -> Any:
    """Convert to the end."""
    arguments = ("--type", kind, "--target", str(target))
    return run_program("hf_to_mlx", files_in(folder), *arguments, HOMELAB_FAILPOINTS=failpoints)


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_read_as_mlx_lm_computes_with_them(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    assert to_mlx(tiny_folder, tmp_path / "mlx", kind).status == 0
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    bits = {"f16": None, "mixed_4_6": 4, "mixed_3_6": 3, "mixed_3_4": 3, "mixed_2_6": 2}
    assert config.get("quantization", {}).get("bits") == bits.get(kind, int(kind[0]) if kind[0].isdigit() else None)
    if kind.startswith("mixed"):
        high = {each["bits"] for each in config["quantization"].values() if isinstance(each, dict)}
        assert high == {int(kind.split("_")[1]), int(kind.split("_")[2])}
    assert (tmp_path / "mlx" / "tokenizer.json").is_file()
    opened = open_decoder(files_in(tmp_path / "mlx"))
    ours = Decoder(opened.shape, opened.tensors).logits(IDS)
    model, _ = load_model(tmp_path / "mlx")
    model.set_dtype(mx.float32)
    theirs = numpy.array(model(mx.array([IDS]))[0])
    assert abs(ours - theirs).max() < 2e-3


def test_a_kill_leaves_no_half_folder_and_the_next_run_makes_it(tiny_folder: Path, tmp_path: Path) -> None:
    for at in ("conversion.mlx.shard", "conversion.before_publish"):
        killed = to_mlx(tiny_folder, tmp_path / "mlx", "4bit", f"{at}=kill")
        assert killed.status == -9
        assert not (tmp_path / "mlx").exists()
    assert to_mlx(tiny_folder, tmp_path / "mlx", "4bit").status == 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"model_type": "never-heard-of"}, "unsupported_request"), ({"quantization": {"bits": 4}}, "unsupported_request")],
)
def test_what_mlx_lm_does_not_know_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    folder = write_tiny(tmp_path / "hf", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert to_mlx(folder, tmp_path / "mlx", "4bit").error["code"] == code
    assert not (tmp_path / "mlx").exists()


def test_quantized_mlx_weights_become_gguf_only_when_forced(tiny_folder: Path, tmp_path: Path) -> None:
    assert to_mlx(tiny_folder, tmp_path / "mlx", "4bit").status == 0
    files, target = files_in(tmp_path / "mlx"), tmp_path / "model.gguf"
    refused = run_program("hf_to_gguf", files, "--type", "f32", "--target", str(target))
    assert (refused.error["code"], target.exists()) == ("unsupported_request", False)
    assert run_program("hf_to_gguf", files, "--type", "f32", "--force", "--target", str(target)).status == 0
    packed, dense = open_decoder(files), open_decoder({"model.gguf": target})
    wanted = Decoder(packed.shape, packed.tensors).logits(IDS)
    assert abs(Decoder(dense.shape, dense.tensors).logits(IDS) - wanted).max() < 1e-4
