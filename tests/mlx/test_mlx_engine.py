"""The MLX engine as data: what it takes, where, at what price, and how it is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.inference.engines.base import Adapter, Engine, EngineOptions
from homelab_llm.inference.engines.mlx import Machine, MlxEngine

SMOLLM2 = ModelFacts(
    format="gguf",
    architecture="llama",
    size_bytes=98_000_000,
    quantization="Q4_1",
    context_tokens=8192,
    kv_bytes_per_token=23_040,
    capabilities=("chat", "completion"),
)
FOLDER = replace(SMOLLM2, format="mlx", architecture="qwen2", quantization="4bit")


@pytest.fixture
def mlx_lm(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("llama", "qwen2"):
        (tmp_path / "models" / f"{name}.py").touch()
    return tmp_path


def stored(facts: ModelFacts, *names: str) -> StoredModel:
    files = {name: Path("/store") / name.replace("/", "-") for name in names}
    return StoredModel("m:1", Digest.of(b"m"), facts, files=files)


@pytest.mark.requirement("R-I1")
def test_here_the_engine_runs_smollm2_and_says_what_it_thinks_of_this_machine() -> None:
    engine: Engine = MlxEngine()
    support = engine.supports(SMOLLM2)
    assert (engine.name, support.ok) == ("mlx", True)
    assert bool(support.warning) == (sys.platform == "linux")


def test_looking_for_mlx_imports_neither_it_nor_anything_heavy() -> None:
    program = (
        "import sys; from homelab_llm.inference.engines.mlx import MlxEngine; MlxEngine(); "
        "print([name for name in ('mlx', 'mlx.core', 'mlx_lm', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_apple_silicon_gets_no_warning(mlx_lm: Path) -> None:
    support = MlxEngine(Machine("Darwin", "arm64", True, mlx_lm)).supports(FOLDER)
    assert (support.ok, support.warning) == (True, "")


@pytest.mark.parametrize(
    ("machine", "hint"),
    [
        (Machine("Linux", "x86_64", False, None), "pip install 'homelab-llm[mlx-cpu]'"),
        (Machine("Linux", "x86_64", True, None), "pip install 'homelab-llm[mlx-cpu]'"),
        (Machine("Darwin", "arm64", False, None), "pip install 'homelab-llm[mlx]'"),
        (Machine("Darwin", "x86_64", True, Path("/x")), ""),
    ],
)
def test_without_mlx_the_hint_is_the_command_that_installs_it(machine: Machine, hint: str) -> None:
    support = MlxEngine(machine).supports(SMOLLM2)
    assert (support.ok, support.hint) == (False, hint)
    assert support.reason


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"format": "safetensors", "architecture": "mistral", "quantization": "BF16"}, True),
        ({"architecture": "unheard_of"}, False),
        ({"architecture": "../../evil"}, False),
        ({"capabilities": ("embedding",)}, False),
        ({"capabilities": ()}, False),
        ({"format": "gguf", "architecture": "llama", "quantization": "Q8_0"}, True),
        ({"format": "gguf", "architecture": "llama", "quantization": "Q4_K_M"}, False),
        ({"format": "gguf", "architecture": "qwen2", "quantization": "Q4_0"}, False),
    ],
)
def test_only_models_it_can_run_are_taken(mlx_lm: Path, changes: dict[str, Any], ok: bool) -> None:
    support = MlxEngine(Machine("Linux", "x86_64", True, mlx_lm)).supports(replace(FOLDER, **changes))
    assert (support.ok, bool(support.reason)) == (ok, not ok)


def test_memory_grows_with_context_and_slots_and_is_more_on_the_cpu_backend(mlx_lm: Path) -> None:
    cpu, gpu = (MlxEngine(Machine(system, "arm64", True, mlx_lm)) for system in ("Linux", "Darwin"))
    one = gpu.estimate(SMOLLM2, EngineOptions(context_tokens=1000, parallel=1))
    four = gpu.estimate(SMOLLM2, EngineOptions(context_tokens=2000, parallel=2))
    assert (one.kv_bytes, four.kv_bytes) == (23_040_000, 4 * 23_040_000)
    assert cpu.estimate(SMOLLM2, EngineOptions(1000, 1)).kv_bytes == 2 * one.kv_bytes
    assert cpu.estimate(SMOLLM2, EngineOptions(1000, 1)).weights_bytes > one.weights_bytes == 98_000_000
    assert gpu.estimate(replace(SMOLLM2, context_tokens=0), EngineOptions()).kv_bytes == 23_040 * 8192 * 4


def test_a_gguf_model_is_converted_once_per_content_and_converter_and_then_served(tmp_path: Path) -> None:
    model = stored(SMOLLM2, "model.gguf")
    plan = MlxEngine().plan(model, EngineOptions(512, 3), tmp_path / "w.http", tmp_path)
    target = plan.argv[plan.argv.index("--model") + 1]
    assert Path(target).parent == tmp_path
    assert model.digest.hex in target
    assert plan.prepare[-4:] == ("--file", "model.gguf=/store/model.gguf", "--target", target)
    assert (plan.engine, plan.parallel, plan.context_tokens) == ("mlx", 3, 512)
    assert plan.argv[-4:] == ("--parallel", "3", "--context", "512")
    assert (plan.traits.pooled, plan.traits.notices_abort, plan.traits.tools) == (True, True, False)


def test_what_cannot_run_is_not_planned(tmp_path: Path) -> None:
    for model in (stored(replace(SMOLLM2, quantization="Q2_K"), "a.gguf"), stored(SMOLLM2, "a.gguf", "b.gguf")):
        with pytest.raises(EngineUnavailable):
            MlxEngine().plan(model, EngineOptions(), tmp_path / "s", tmp_path)


@pytest.mark.requirement("R-I1")
def test_a_model_of_many_files_becomes_a_folder_of_links_that_follows_its_blobs(tmp_path: Path) -> None:
    blobs = {name: tmp_path / f"blob{i}" for i, name in enumerate(["config.json", "model.safetensors", "sub/x.json"])}
    for name, path in blobs.items():
        path.write_text(name)
    model = StoredModel("m:1", Digest.of(b"m"), replace(FOLDER, architecture="llama"), files=blobs)
    plan = MlxEngine().plan(model, EngineOptions(), tmp_path / "w.http", tmp_path / "derived")
    folder = Path(plan.argv[plan.argv.index("--model") + 1])
    for _ in range(2):
        subprocess.run(plan.prepare, check=True)
        assert {name: (folder / name).read_text() for name in blobs} == {name: name for name in blobs}
    blobs["config.json"].unlink()
    gone = subprocess.run(plan.prepare, check=False, capture_output=True, text=True)
    assert (gone.returncode, "config.json" in gone.stderr, "Traceback" in gone.stderr) == (2, True, False)


def test_a_file_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    program = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.mlx.folder", "--target", f"{tmp_path}/a/b"]
    for name in ("../evil", "/tmp/evil", ".."):
        done = subprocess.run([*program, "--file", f"{name}={tmp_path}/blob"], check=False, capture_output=True)
        assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob"]


@pytest.mark.requirement("R-M6")
def test_a_template_and_adapters_of_the_model_reach_the_worker(tmp_path: Path) -> None:
    names = {name: tmp_path / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    options = EngineOptions(chat_template=tmp_path / "t.jinja", adapters=(Adapter("peft", names),))
    assert {"chat_template", "peft_adapters"} <= MlxEngine().honours
    model = stored(SMOLLM2, "model.gguf", "LICENSE", "adapters/0/adapter.gguf")
    argv = MlxEngine().plan(model, options, tmp_path / "s", tmp_path).argv
    assert argv[-5:-3] == ("--chat-template", str(tmp_path / "t.jinja"))
    assert argv[-3:] == ("--adapter", *map(str, names.values()))
