"""The llama.cpp engine as data: what it supports, what it plans, which GPU it finds idle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import EngineUnavailable, UnsupportedRequest
from homelab_llm.core.facts import Capability, Format, ModelFacts, StoredModel
from homelab_llm.inference.engines.accelerators import Gpu, Machine, ask
from homelab_llm.inference.engines.base import Adapter, EngineOptions
from homelab_llm.inference.engines.llama_cpp import LlamaCppEngine
from homelab_llm.inference.engines.llama_server import find_llama_server

CHAT = ModelFacts("gguf", "llama", 10**9, context_tokens=32768, vocabulary_tokens=32000, kv_bytes_per_token=2048,
                  capabilities=("chat", "completion"))  # fmt: skip
BERT = ModelFacts("safetensors", "bert", 9 * 10**7, parameters=22_000_000, context_tokens=512, embedding_width=384,
                  heads=12, vocabulary_tokens=30522, capabilities=("embedding",))  # fmt: skip

HELP = """----- common params -----
-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of threads
-c,    --ctx-size N                     size of the prompt context
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
-np,   --parallel N                     number of parallel sequences
-m,    --model FNAME                    model path
--host HOST                             ip address to listen, or a path ending in .sock
--jinja                                 use jinja template
--no-context-shift                      disables context shift
--embedding, --embeddings               restrict to only support embedding use case
--list-devices                          print list of available devices and exit
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
-a,    --alias STRING                   set alias for model name
"""
DEVICES = "Available devices:\n  CUDA0: NVIDIA H100 (81559 MiB, 80000 MiB free)\n  CPU: whatever (1 MiB, 1 MiB free)\n"

Install = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A search path with nothing in it yet."""
    found = tmp_path / "bin"
    found.mkdir()
    return found


@pytest.fixture
def install(folder: Path, tmp_path: Path) -> Install:
    """Put a program on the search path that prints a text for its first argument, notes its calls, and may fail."""

    def put(name: str, answers: dict[str, str], *, code: int = 0) -> Path:
        path = folder / name
        log = tmp_path / f"{name}.calls"
        path.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"answers = {answers!r}\n"
            f"print(answers.get(sys.argv[1], ''))\nsys.exit({code})\n"
        )
        path.chmod(0o755)
        return log

    return put


def machine(folder: Path, root: Path | None = None, **kind: str) -> Machine:
    return Machine(search=str(folder), root=root or folder, **{"system": "linux", "architecture": "x86_64", **kind})


def engine(folder: Path, *, xllamacpp: bool = True, root: Path | None = None, **kind: str) -> LlamaCppEngine:
    return LlamaCppEngine(machine(folder, root, **kind), has_xllamacpp=lambda: xllamacpp, can_convert=lambda: True)


def model(facts: ModelFacts, **files: str) -> StoredModel:
    paths = {name.replace("_", "."): Path(path) for name, path in files.items()} or {"model.gguf": Path("/blobs/1")}
    return StoredModel("some:model", Digest.of(b"x"), facts, paths)


def planned(given: LlamaCppEngine, of: StoredModel, options: EngineOptions | None = None) -> Any:
    return given.plan(of, options or EngineOptions(threads=3), Path("/run/abcde.http"), Path("/derived"))


def flag(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


# --- support ---


@pytest.mark.requirement("R-I1")
@pytest.mark.parametrize(
    ("form", "architecture", "capabilities", "ok"),
    [
        ("gguf", "llama", ("chat", "completion"), True),
        ("gguf", "bert", ("embedding",), True),
        ("safetensors", "bert", ("embedding",), True),
        ("safetensors", "llama", ("chat",), False),
        ("safetensors", "roberta", ("embedding",), False),
        ("mlx", "llama", ("chat",), False),
        ("gguf", "clip", (), False),
    ],
)
def test_gguf_models_and_bert_embeddings_are_supported(
    form: Format, architecture: str, capabilities: tuple[Capability, ...], ok: bool, folder: Path
) -> None:
    support = engine(folder).supports(ModelFacts(form, architecture, 1, capabilities=capabilities))
    assert support.ok is ok
    assert bool(support.reason) is not ok


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(folder: Path) -> None:
    support = engine(folder, xllamacpp=False).supports(CHAT)
    assert not support.ok
    assert "pip install" in support.hint
    without = LlamaCppEngine(machine(folder), has_xllamacpp=lambda: True, can_convert=lambda: False)
    assert "gguf" in without.supports(BERT).hint
    with pytest.raises(EngineUnavailable) as caught:
        planned(engine(folder, xllamacpp=False), model(CHAT))
    assert caught.value.hint == support.hint


# --- plans ---


@pytest.mark.requirement("R-I1")
def test_a_plan_names_programs_and_files_by_absolute_path(folder: Path) -> None:
    plan = planned(engine(folder), model(CHAT), EngineOptions(context_tokens=4096, parallel=3, threads=5))
    assert plan.argv[0] == sys.executable
    assert "homelab_llm.inference.workers.llama_cpp.server" in plan.argv
    assert flag(plan.argv, "--socket") == "/run/abcde.http"
    assert flag(plan.argv, "--model") == "/blobs/1"
    assert flag(plan.argv, "--alias") == "some:model"
    assert [flag(plan.argv, name) for name in ("--context", "--parallel", "--threads")] == ["4096", "3", "5"]
    assert (plan.context_tokens, plan.parallel, plan.prepare) == (4096, 3, ())
    assert not plan.traits.pooled
    assert not plan.traits.notices_abort
    assert plan.traits.progress


def test_the_context_is_the_models_own_at_most_and_eight_thousand_by_default(folder: Path) -> None:
    given = engine(folder)
    assert planned(given, model(CHAT)).context_tokens == 8192
    assert planned(given, model(CHAT), EngineOptions(context_tokens=100_000)).context_tokens == 32768
    assert planned(given, model(BERT, config_json="/blobs/2")).context_tokens == 512


@pytest.mark.requirement("R-I8")
def test_an_embedding_model_is_converted_first_into_a_file_named_by_its_digest(folder: Path) -> None:
    plan = planned(engine(folder), model(BERT, config_json="/blobs/2", model_safetensors="/blobs/3"))
    assert "homelab_llm.inference.conversion.bert_to_gguf" in plan.prepare
    assert "config.json=/blobs/2" in plan.prepare
    target = flag(plan.prepare, "--target")
    assert target == flag(plan.argv, "--model") == f"/derived/{Digest.of(b'x').hex}-bert1.gguf"
    assert "--embedding" in plan.argv


def test_the_parts_of_a_split_model_are_linked_under_their_names(folder: Path, tmp_path: Path) -> None:
    blobs = {f"big-0000{n}-of-00002.gguf": tmp_path / f"blob{n}" for n in (1, 2)}
    for path in blobs.values():
        path.write_bytes(b"GGUF")
    files = {**blobs, "mmproj-big.gguf": tmp_path / "blob1"}
    stored = StoredModel("big", Digest.of(b"x"), CHAT, files)
    plan = engine(folder).plan(stored, EngineOptions(threads=1), Path("/run/abcde.http"), tmp_path / "derived")
    subprocess.run(plan.prepare, check=True, cwd="/")
    first = Path(flag(plan.argv, "--model"))
    assert first.name == "big-00001-of-00002.gguf"
    assert {path.name for path in first.parent.iterdir()} == set(blobs)
    alone = StoredModel("one", Digest.of(b"x"), CHAT, {"mmproj.gguf": Path("/p"), "one.gguf": Path("/m")})
    assert flag(planned(engine(folder), alone).argv, "--model") == "/m"


def test_an_estimate_grows_with_context_and_slots(folder: Path) -> None:
    given = engine(folder)
    small = given.estimate(CHAT, EngineOptions(context_tokens=1024, parallel=1))
    large = given.estimate(CHAT, EngineOptions(context_tokens=2048, parallel=4))
    assert small.weights_bytes == large.weights_bytes == CHAT.size_bytes
    assert large.kv_bytes == 8 * small.kv_bytes == 2048 * 4 * 2048
    converted = given.estimate(BERT, EngineOptions())
    assert converted.weights_bytes < BERT.size_bytes / 3
    assert converted.kv_bytes == 0


# --- llama-server on the path ---


def test_a_server_built_for_a_gpu_is_preferred_and_gets_only_flags_it_knows(folder: Path, install: Install) -> None:
    calls = install("llama-server", {"--help": HELP, "--version": "version: 7011 (abc)", "--list-devices": DEVICES})
    given = engine(folder)
    plan = planned(given, model(CHAT), EngineOptions(context_tokens=4096, parallel=2, threads=3))
    assert "homelab_llm.inference.workers.llama_cpp.launch" in plan.argv
    own = plan.argv[plan.argv.index("--") + 1 :]
    assert own[0] == str(folder / "llama-server")
    assert flag(own, "--ctx-size") == "8192"
    assert flag(own, "--n-gpu-layers") == "999"
    assert {part for part in own if part.startswith("--")} <= {word.strip(",") for word in HELP.split()}
    assert "--embeddings" not in own
    embedding = planned(given, model(BERT, config_json="/b")).argv
    assert "--embeddings" in embedding
    assert flag(embedding, "--ubatch-size") == "512"
    assert given.supports(CHAT).warning == ""
    asked = calls.read_text().splitlines()
    assert sorted(asked) == ["--help", "--list-devices", "--version"], "asked once each, and kept"


@pytest.mark.parametrize("lacking", ["--jinja", "--no-context-shift", "--parallel N", "--ubatch-size N", "--embedding"])
def test_a_server_that_lacks_a_flag_we_need_is_not_used(lacking: str, folder: Path, install: Install) -> None:
    text = "".join(line for line in HELP.splitlines(keepends=True) if lacking not in line)
    install("llama-server", {"--help": text, "--list-devices": DEVICES})
    assert "homelab_llm.inference.workers.llama_cpp.server" in planned(engine(folder), model(CHAT)).argv
    assert not engine(folder, xllamacpp=False).supports(CHAT).ok


def test_a_server_without_a_gpu_is_used_only_where_xllamacpp_is_missing(folder: Path, install: Install) -> None:
    install("llama-server", {"--help": HELP, "--list-devices": "Available devices:\n"})
    assert "homelab_llm.inference.workers.llama_cpp.server" in planned(engine(folder), model(CHAT)).argv
    assert str(folder / "llama-server") in planned(engine(folder, xllamacpp=False), model(CHAT)).argv


def test_a_broken_server_is_as_none(folder: Path, install: Install) -> None:
    install("llama-server", {"--help": HELP}, code=1)
    assert find_llama_server(machine(folder)) is None
    (folder / "llama-server").write_text("no program")
    assert find_llama_server(machine(folder)) is None


def test_the_newest_spelling_is_taken(folder: Path, install: Install) -> None:
    install("llama-server", {"--help": HELP + "-fit, --fit [on|off]\n--no-ui, --no-webui\n", "--list-devices": DEVICES})
    argv = planned(engine(folder), model(CHAT)).argv
    assert flag(argv, "--fit") == "on"
    assert "--n-gpu-layers" not in argv, "it places layers itself"
    assert "--no-ui" in argv
    assert "--no-webui" not in argv


# --- GPUs ---


@pytest.mark.requirement("B-11")
def test_a_gpu_that_would_lie_idle_is_said_aloud_with_the_command_that_mends_it(folder: Path, install: Install) -> None:
    install("nvidia-smi", {"--query-gpu=name,memory.total": "NVIDIA GeForce RTX 3090, 24576\n"})
    support = engine(folder).supports(CHAT)
    assert support.ok
    assert support.warning == "NVIDIA GeForce RTX 3090 is here, but this llama.cpp runs on the CPU"
    assert "-DGGML_CUDA=ON" in support.hint


@pytest.mark.requirement("B-11")
def test_nothing_is_said_where_no_gpu_is(folder: Path) -> None:
    assert engine(folder).supports(CHAT).warning == ""
    assert engine(folder, system="darwin", architecture="arm64").supports(CHAT).warning == ""


@pytest.mark.parametrize(
    ("told", "gpus"),
    [
        ("NVIDIA H200, 143771\nNVIDIA H200, 143771", (Gpu("nvidia", "NVIDIA H200", 143771 << 20),) * 2),
        ("NVIDIA GB10, [N/A]", (Gpu("nvidia", "NVIDIA GB10"),)),
        ("No devices were found", ()),
    ],
)
def test_nvidia_gpus_are_those_nvidia_smi_tells(
    told: str, gpus: tuple[Gpu, ...], folder: Path, install: Install
) -> None:
    install("nvidia-smi", {"--query-gpu=name,memory.total": told})
    assert machine(folder).gpus == gpus


def test_without_nvidia_smi_the_driver_and_then_the_devices_are_looked_at(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
    assert machine(folder, root).gpus == (Gpu("nvidia", "NVIDIA GPU"),)
    card = root / "proc/driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA T4\nIRQ: 5\n")
    assert machine(folder, root).gpus == (Gpu("nvidia", "NVIDIA T4"),)


def test_amd_gpus_are_the_nodes_with_simd_units(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number, simds in enumerate((0, 128)):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {simds}\n")
    assert machine(folder, root).gpus == ()
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    assert machine(folder, root).gpus == (Gpu("amd", "AMD GPU"),)
    assert "-DGGML_HIP=ON" in engine(folder, root=root).supports(CHAT).hint


def test_the_cores_of_a_container_are_those_its_quota_grants(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sys/fs/cgroup").mkdir(parents=True)
    unlimited = machine(folder, root).cores
    assert unlimited >= 1
    (root / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert machine(folder, root).cores == unlimited
    (root / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert machine(folder, root).cores == 1


def test_a_program_that_hangs_is_given_up(folder: Path) -> None:
    assert (
        ask([sys.executable, "-c", "input() if False else __import__('threading').Event().wait()"], timeout_s=0.3)
        is None
    )
    assert ask([str(folder / "none")]) is None
    assert json.loads(ask([sys.executable, "-c", "print([1])"]) or "") == [1]


# --- what the operator chose for one model ---


@pytest.mark.requirement("R-I9")
def test_a_template_and_flags_reach_llama_server(folder: Path, install: Install) -> None:
    text = HELP + "--chat-template-file JINJA\n-fa, --flash-attn [on|off]\n--temp N\n"
    install("llama-server", {"--help": text, "--list-devices": DEVICES})
    given = engine(folder)
    assert given.honours == {"chat_template", "flags"}
    options = EngineOptions(chat_template=Path("/t.jinja"), flags=("--flash-attn", "on", "--temp", "-1"))
    argv = planned(given, model(CHAT), options).argv
    assert argv[-6:] == ("--chat-template-file", "/t.jinja", "--flash-attn", "on", "--temp", "-1")


@pytest.mark.requirement("R-I9")
@pytest.mark.parametrize(
    "flags",
    ["--host 0.0.0.0", "--port 80", "-m /x", "--model-url u", "-np 9", "--ctx-size 1", "--unknown", "loose", "--rpc x"],
)
def test_flags_that_are_unknown_or_not_a_models_to_set_are_refused(folder: Path, install: Install, flags: str) -> None:
    text = HELP + "--port N\n--model-url U\n--rpc SERVERS\n"
    install("llama-server", {"--help": text, "--list-devices": DEVICES})
    with pytest.raises(UnsupportedRequest) as caught:
        planned(engine(folder), model(CHAT), EngineOptions(flags=tuple(flags.split())))
    assert caught.value.hint == "mlxctl registry set some:model flags="


LORA = Adapter("gguf", {"adapter.gguf": Path("/store/lora")})


@pytest.mark.requirement("R-I9")
def test_our_own_worker_honours_a_template_and_adapters(folder: Path) -> None:
    assert engine(folder).honours == {"chat_template", "gguf_adapters"}
    options = EngineOptions(chat_template=Path("/t.jinja"), adapters=(LORA, LORA))
    argv = planned(engine(folder), model(CHAT), options).argv
    assert flag(argv, "--chat-template") == "/t.jinja"
    assert argv[-4:] == ("--lora", "/store/lora", "--lora", "/store/lora")


@pytest.mark.requirement("R-M6")
def test_a_server_gets_adapters_where_it_takes_them(folder: Path, install: Install) -> None:
    install("llama-server", {"--help": HELP + "--lora FNAME\n", "--list-devices": DEVICES})
    given = engine(folder)
    assert given.honours == {"flags", "gguf_adapters"}
    assert planned(given, model(CHAT), EngineOptions(adapters=(LORA,))).argv[-2:] == ("--lora", "/store/lora")


@pytest.mark.requirement("R-M6")
def test_files_beside_the_model_are_not_served_as_its_parts(folder: Path) -> None:
    plain = model(CHAT)
    beside = {"adapters/0/adapter.gguf": Path("/store/lora"), "LICENSE": Path("/store/licence")}
    made = replace(plain, files={**beside, **plain.files})
    plan = planned(engine(folder), made)
    assert plan.prepare == ()
    assert flag(plan.argv, "--model") == str(next(iter(plain.files.values())))
