"""Conversions as work on the store: the result is a model with its origin and its figures, or nothing is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from homelab_llm.core.errors import AlreadyExists, Cancelled, DiskFull, HomelabError, InsufficientMemory, InvalidInput
from homelab_llm.core.names import ModelRef
from homelab_llm.ops.conversion.convert import ConversionOptions, check_room, convert, fuse, perplexity
from homelab_llm.ops.conversion.plan import Needs, plan, target_of
from homelab_llm.ops.conversion.quantized_base import quantized_base
from homelab_llm.store.build.create import create
from homelab_llm.store.build.spec import ModelSpec
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.testing.tiny_models import write_tiny

QUICK = ConversionOptions(tokens=128)
UNMEASURED = ConversionOptions(measure=False)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with a tiny Llama in safetensors format."""
    store = ModelStore(tmp_path / "store")
    store.import_path(write_tiny(tmp_path / "hf", "llama"), ModelRef.parse("base"), source="hf:org/base")
    return store


def left_in_tmp(store: ModelStore) -> list[str]:
    """What conversions left in the store's folder of unfinished things."""
    return [path.name for path in (store.root / "tmp").iterdir() if "scratch" in path.name]


@pytest.mark.requirement("R-I11")
def test_a_model_goes_from_safetensors_to_gguf_to_eight_bits_and_each_knows_where_it_comes_from(
    store: ModelStore,
) -> None:
    told: list[JobProgress] = []
    base = store.resolve("base")
    dense = convert(store, "base", to="gguf", ref=ModelRef.parse("dense"), options=QUICK, progress=told.append)
    assert (dense.facts.format, dense.facts.quantization, dense.source) == ("gguf", "F16", "hf:org/base")
    assert dense.facts.chat_template == base.facts.chat_template
    assert {"converting", "measuring", "storing", "done"} == {step.stage for step in told}
    small = convert(
        store, "dense", to="gguf", ref=ModelRef.parse("small"), options=ConversionOptions("q8_0", tokens=128)
    )
    assert small.size_bytes < dense.size_bytes
    origin = small.provenance
    assert (origin.base, origin.base_digest, origin.action) == (dense.name, str(dense.digest), "quantize")
    before, after = origin.measured["perplexity_before"], origin.measured["perplexity_after"]
    assert before == pytest.approx(dense.provenance.measured["perplexity_after"])
    assert after == pytest.approx(before, rel=0.05)
    assert perplexity(store, "small", options=QUICK)["perplexity"] == pytest.approx(after)
    assert not left_in_tmp(store)


def test_a_model_goes_to_mlx_and_to_safetensors_from_gguf(store: ModelStore) -> None:
    convert(store, "base", to="gguf", ref=ModelRef.parse("dense"), options=UNMEASURED)
    packed = convert(
        store, "dense", to="mlx", ref=ModelRef.parse("packed"), options=ConversionOptions("4bit", measure=False)
    )
    assert (packed.facts.format, packed.facts.quantization) == ("mlx", "4bit")
    back = convert(store, "dense", to="safetensors", ref=ModelRef.parse("back"), options=UNMEASURED)
    assert (back.facts.format, back.facts.architecture, back.facts.quantization) == ("safetensors", "llama", "F16")


def test_a_conversion_that_is_called_off_leaves_nothing_and_no_program(store: ModelStore) -> None:
    def call_off(progress: JobProgress) -> None:
        if progress.stage == "measuring":
            raise Cancelled("called off")

    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(Cancelled):
        convert(store, "base", to="gguf", ref=ModelRef.parse("new"), options=QUICK, progress=call_off)
    assert [model.name for model in store.models()] == ["base:latest"]
    assert not left_in_tmp(store)
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    "at", ["ops.conversion.made", "ops.conversion.measured", "store.import.file", "store.add.config"]
)
def test_killed_anywhere_it_leaves_no_half_model_and_what_lies_about_is_swept(store: ModelStore, at: str) -> None:
    program = (
        "import sys; from pathlib import Path; from homelab_llm.core.names import ModelRef;"
        "from homelab_llm.ops.conversion.convert import ConversionOptions, convert;"
        "from homelab_llm.store.model_store import ModelStore;"
        "convert(ModelStore(Path(sys.argv[1])), 'base', to='gguf', ref=ModelRef.parse('new'),"
        " options=ConversionOptions(measure=False))"
    )
    environ = {**os.environ, "HOMELAB_FAILPOINTS": f"{at}=kill"}
    killed = subprocess.run([sys.executable, "-c", program, str(store.root)], env=environ, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [model.name for model in store.models()] == ["base:latest"]
    assert left_in_tmp(store)
    store.prune()
    assert not left_in_tmp(store)
    assert convert(store, "base", to="gguf", ref=ModelRef.parse("new"), options=UNMEASURED).name == "new:latest"


def test_a_program_ends_when_who_started_it_is_killed(store: ModelStore, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from homelab_llm.ops.conversion.child import run_program\n"
        "def die(stage, done): print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_program('perplexity', sys.argv[1:], die)"
    )
    files = [part for name, path in store.resolve("base").files.items() for part in ("--file", f"{name}={path}")]
    started = subprocess.Popen([sys.executable, "-c", code, *files], stdout=subprocess.PIPE)
    started.wait(timeout=60)
    marker = str(store.resolve("base").files["config.json"])
    orphans = [p for p in psutil.process_iter(["cmdline"]) if any(marker in word for word in p.info["cmdline"] or ())]
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert started.stdout is not None
    started.stdout.close()
    assert not alive


def test_a_model_without_a_figure_says_why(store: ModelStore, tmp_path: Path) -> None:
    notes: list[str] = []
    text = tmp_path / "text.txt"
    text.write_text("short")
    made = ConversionOptions(text=text)
    with pytest.raises(InvalidInput) as refused:
        convert(store, "base", to="gguf", ref=ModelRef.parse("new"), options=made, note=notes.append)
    assert refused.value.facts["field"] == "text"
    assert [model.name for model in store.models()] == ["base:latest"]


def test_what_does_not_fit_is_refused_with_its_numbers_before_anything_is_done(store: ModelStore) -> None:
    with pytest.raises(DiskFull) as full:
        check_room(store, Needs(1 << 60, 0))
    assert full.value.facts["needed_bytes"] == 1 << 60
    with pytest.raises(InsufficientMemory) as tight:
        check_room(store, Needs(0, 1 << 60))
    assert tight.value.facts["needed_bytes"] == 1 << 60


def test_what_cannot_be_made_is_refused_by_name(store: ModelStore, tmp_path: Path) -> None:
    base = store.resolve("base")
    with pytest.raises(InvalidInput, match="no type 'q3_x'"):
        plan(base, "gguf", "q3_x", force=False)
    with pytest.raises(HomelabError, match="safetensors format is not converted to safetensors"):
        plan(base, "safetensors", "", force=False)
    with pytest.raises(AlreadyExists):
        convert(store, "base", to="gguf", ref=ModelRef.parse("base"))
    with pytest.raises(InvalidInput, match="no adapter"):
        fuse(store, "base", tmp_path / "nothing", ref=ModelRef.parse("new"))
    assert (target_of("Q8_0"), target_of("mixed_3_6")) == ("gguf", "mlx")
    with pytest.raises(InvalidInput):
        target_of("q9")


@pytest.mark.requirement("R-M6", "R-I11")
def test_a_spec_gets_the_weights_it_asks_for_and_its_base_keeps_its_own(store: ModelStore) -> None:
    spec = ModelSpec("base", quantization="q8_0", system="Be brief.")
    told: list[JobProgress] = []
    made = create(store, spec, ModelRef.parse("brief"), quantize=quantized_base, progress=told.append)
    base, between = store.resolve("base"), store.resolve("base:latest-q8_0")
    assert (made.facts.quantization, made.facts.format, made.defaults.system) == ("Q8_0", "gguf", "Be brief.")
    assert set(made.files.values()) == set(between.files.values())
    assert (made.provenance.base, made.provenance.base_digest) == (base.name, str(base.digest))
    assert made.provenance.measured == between.provenance.measured
    assert {"converting", "measuring"} <= {step.stage for step in told}
    again = create(store, spec, ModelRef.parse("brief:2"), quantize=quantized_base)
    assert set(again.files.values()) == set(made.files.values())
    assert len(store.models()) == 4
