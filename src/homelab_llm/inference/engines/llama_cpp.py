"""The llama.cpp engine: GGUF files, and BERT embedding models after a conversion.

Two programs serve it: our worker on ``xllamacpp`` (CPU on Linux, Metal on Apple silicon), or an installed
``llama-server`` that was built for this machine's GPU, which is preferred. Which one is asked once and kept; without a
GPU and without ``llama-server`` on the path that takes no process. ``supports`` of a machine with a GPU may block some
seconds the first time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from homelab_llm.core.errors import EngineUnavailable, UnsupportedRequest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.engines.accelerators import Gpu, Machine, ask
from homelab_llm.inference.engines.base import EngineOptions, Footprint, LaunchPlan, Support, version_of
from homelab_llm.inference.engines.llama_server import LlamaServer, Wish, find_llama_server

# Why each is so is written, with figures, in workers/llama_cpp/server.py.
TRAITS = WorkerTraits(pooled=False, notices_abort=False, progress=True, grammar=True, tools=True, busy_path="/slots")
CONVERTER_VERSION = 1  # part of the name of every converted file

_WORKERS = "homelab_llm.inference.workers"
_CONVERSION = "homelab_llm.inference.conversion"
_USUAL_CONTEXT_TOKENS = 8192
_USUAL_EMBEDDING_TOKENS = 2048
# One batch is how long an abort in prefill takes to be noticed, for each slot in turn; 96 costs 6 % of 128's speed.
_BATCH_TOKENS = 96
_GPU_BATCH_TOKENS = 256
_PROCESS_BYTES = 48 << 20  # Python, the library's touched pages, tables; measured
_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
"""libgomp's threads spin before they sleep, by default so long that a second busy process on the machine stops all
progress: 2 tokens/s in place of 30 (SmolLM2, two cores, one of them contended); alone this costs nothing (134)."""

_ADDRESS: dict[str, Wish] = {"an address": [["--host"]]}  # the launcher gives it
_GPU_BUILD = {"nvidia": "-DGGML_CUDA=ON", "amd": "-DGGML_HIP=ON", "apple": ""}
_ASK_XLLAMACPP = (
    "import xllamacpp; print([d['name'] for d in xllamacpp.get_device_info() if 'CPU' not in d['type'].name"
    " and 'ACCEL' not in d['type'].name])"
)


def _has_xllamacpp() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def _can_convert() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("gguf", "numpy"))


@dataclass(frozen=True)
class LlamaCppEngine:
    """The engine as installed on ``machine``; the other arguments tell which packages are, without importing them."""

    machine: Machine = field(default_factory=Machine)
    has_xllamacpp: Callable[[], bool] = _has_xllamacpp
    can_convert: Callable[[], bool] = _can_convert

    @property
    def name(self) -> str:
        return "llama.cpp"

    @property
    def honours(self) -> frozenset[str]:
        """A template of one's own, adapters in GGUF; flags where they have a program to go to."""
        if self.server is None:
            return frozenset({"chat_template", "gguf_adapters"})
        taken = {"--chat-template-file": "chat_template", "--lora": "gguf_adapters"}
        return frozenset({"flags", *(name for flag, name in taken.items() if flag in self.server.flags)})

    @cached_property
    def version(self) -> str:
        """Of the program or the library that serves."""
        return self.server.version if self.server is not None else version_of("xllamacpp")

    @cached_property
    def server(self) -> LlamaServer | None:
        """The ``llama-server`` to use: one built for a GPU that is here, or any when xllamacpp is not installed."""
        found = find_llama_server(self.machine)
        if found is None or found.missing(_needs(embedding=True) | _ADDRESS):
            return None
        return found if found.devices or not self.has_xllamacpp() else None

    @cached_property
    def idle_gpu(self) -> Gpu | None:
        """A GPU of this machine that would not be used, or None."""
        gpus = [gpu for gpu in self.machine.gpus if gpu.maker != "apple"]  # xllamacpp for macOS has Metal built in
        if not gpus or (self.server is not None and self.server.devices):
            return None
        told = ask([sys.executable, "-I", "-c", _ASK_XLLAMACPP]) if self.has_xllamacpp() else None
        return gpus[0] if told is None or told.strip().endswith("[]") else None

    def supports(self, facts: ModelFacts) -> Support:
        """Any GGUF model, and BERT embedding models; an architecture newer than the library fails when it loads."""
        if not ({"chat", "completion", "embedding"} & set(facts.capabilities)):
            return Support(False, "the model neither generates text nor embeds it")
        if facts.format != "gguf":
            if (facts.format, facts.architecture) != ("safetensors", "bert") or "embedding" not in facts.capabilities:
                return Support(False, "llama.cpp runs GGUF files, and BERT embedding models in safetensors format")
            if not self.can_convert():
                return Support(False, "the converter needs gguf and numpy", hint="pip install 'homelab-llm[gguf]'")
        if self.server is None and not self.has_xllamacpp():
            return Support(
                False, "neither xllamacpp nor llama-server is installed", hint="pip install 'homelab-llm[gguf]'"
            )
        if (gpu := self.idle_gpu) is not None:
            return Support(
                True, warning=f"{gpu.name} is here, but this llama.cpp runs on the CPU", hint=_build_hint(gpu)
            )
        return Support(True)

    def estimate(self, facts: ModelFacts, options: EngineOptions) -> Footprint:
        """Memory at full context in every slot; measured 0 to 15 % off on SmolLM2 and MiniLM."""
        context, batch = self._context_tokens(facts, options), self._batch_tokens(facts, options)
        weights = facts.size_bytes
        if facts.format != "gguf":  # Q8_0: 34 bytes for 32 weights
            weights = facts.parameters * 34 // 32
        # Activations of one batch: the logits of every position, or the attention scores of an encoder.
        activations = batch * facts.vocabulary_tokens * 4
        if "embedding" in facts.capabilities:
            activations = batch * (facts.heads * batch * min(options.parallel, 4) + 8 * facts.embedding_width) * 4
        return Footprint(weights, facts.kv_bytes_per_token * context * options.parallel, _PROCESS_BYTES + activations)

    def plan(self, model: StoredModel, options: EngineOptions, socket: Path, derived: Path) -> LaunchPlan:
        """Serve ``model``; a BERT folder is converted into ``derived`` first.

        Raises:
            EngineUnavailable: ``supports`` said no.
            UnsupportedRequest: a flag that ``llama-server`` does not take, or that is not the operator's to set.
        """
        support = self.supports(model.facts)
        if not support.ok:
            raise EngineUnavailable(f"llama.cpp cannot run {model.name}: {support.reason}", hint=support.hint)
        file, prepare = _prepare(model, derived)
        context = self._context_tokens(model.facts, options)
        argv = self._argv(model, file, socket, options, context)
        return LaunchPlan(
            engine=self.name,
            model=model,
            argv=argv,
            parallel=options.parallel,
            context_tokens=context,
            traits=TRAITS,
            prepare=prepare,
            env=_ENVIRONMENT if self.machine.system == "linux" else {},
            version=self.version,
        )

    def _argv(
        self, model: StoredModel, file: Path, socket: Path, options: EngineOptions, context: int
    ) -> tuple[str, ...]:
        embedding = "embedding" in model.facts.capabilities
        threads = options.threads or self.machine.cores
        values = {"model": str(file), "alias": model.name, "parallel": str(options.parallel), "threads": str(threads)}
        if self.server is None:
            given = [part for name, value in values.items() for part in (f"--{name}", value)]
            given += ["--context", str(context)] + (["--embedding"] if embedding else [])
            given += ["--chat-template", str(options.chat_template)] if options.chat_template else []
            given += _lora(options)
            return (*_program("llama_cpp.server"), "--socket", str(socket), *given)
        values["context"] = str(context * options.parallel)
        values["batch"] = str(self._batch_tokens(model.facts, options))
        flags = self.server.compile(_needs(embedding=embedding, **values), _wants(values))
        flags += ["--chat-template-file", str(options.chat_template)] if options.chat_template else []
        flags += _lora(options)
        if refused := self.server.refusal(options.flags):
            raise UnsupportedRequest(
                f"flags of {model.name}: {refused}", hint=f"mlxctl registry set {model.name} flags=", field="flags"
            )
        flags += options.flags
        return (*_program("llama_cpp.launch"), "--socket", str(socket), "--", self.server.path, *flags)

    @staticmethod
    def _context_tokens(facts: ModelFacts, options: EngineOptions) -> int:
        """Never more than the model was trained for: beyond it llama.cpp answers nonsense, or nothing (BERT)."""
        trained = facts.context_tokens or _USUAL_CONTEXT_TOKENS
        usual = _USUAL_EMBEDDING_TOKENS if "embedding" in facts.capabilities else _USUAL_CONTEXT_TOKENS
        return min(trained, options.context_tokens or usual)

    def _batch_tokens(self, facts: ModelFacts, options: EngineOptions) -> int:
        context = self._context_tokens(facts, options)
        most = _GPU_BATCH_TOKENS if self.server else _BATCH_TOKENS
        return context if "embedding" in facts.capabilities else min(most, context)


def _program(module: str, folder: str = _WORKERS) -> tuple[str, ...]:
    """``-P``: the folder the worker stands in must not become a place to import from."""
    return sys.executable, "-P", "-m", f"{folder}.{module}"


def _prepare(model: StoredModel, derived: Path) -> tuple[Path, tuple[str, ...]]:
    """The GGUF file to serve, and the command that makes it, or no command."""
    if model.facts.format != "gguf":
        file = derived / f"{model.digest.hex}-bert{CONVERTER_VERSION}.gguf"
        return file, (
            *_program("bert_to_gguf", _CONVERSION),
            "--target",
            str(file),
            "--name",
            model.name,
            *_pairs(model.own_files),
        )
    files = model.own_files
    parts = {name: path for name, path in files.items() if name.endswith(".gguf") and not _is_projector(name)}
    if len(parts) <= 1:
        return next(iter((parts or files).values())), ()
    # llama.cpp finds the parts of a split model by their names, and the store keeps files by digest: a folder of links.
    folder = derived / f"{model.digest.hex}-parts"
    return folder / min(parts), (*_program("mlx.folder"), "--target", str(folder), *_pairs(parts))


def _lora(options: EngineOptions) -> list[str]:
    return [part for adapter in options.adapters for path in adapter.files.values() for part in ("--lora", str(path))]


def _pairs(files: Mapping[str, Path]) -> list[str]:
    return [part for name, path in sorted(files.items()) for part in ("--file", f"{name}={path}")]


def _is_projector(name: str) -> bool:
    """The vision part of a model, as Hugging Face repositories name it."""
    return "mmproj" in name.rsplit("/", 1)[-1].lower()


def _needs(
    *,
    embedding: bool,
    model: str = "",
    alias: str = "",
    context: str = "",
    parallel: str = "",
    batch: str = "",
    **_: str,
) -> dict[str, Wish]:
    """What a ``llama-server`` must take to be used at all: else requests would be cut, mixed up or unanswered."""
    needs: dict[str, Wish] = {
        "the model": [["--model", model]],
        "a name": [["--alias", alias]],  # by which the canary knows that the right model answers
        "a context": [["--ctx-size", context]],
        "slots": [["--parallel", parallel]],
        "batches": [["--batch-size", batch]],
        "physical batches": [["--ubatch-size", batch]],
        "templates": [["--jinja"]],
        "no context shift": [["--no-context-shift"]],
    }
    return needs | ({"embeddings": [["--embeddings"], ["--embedding"]]} if embedding else {})


def _wants(values: dict[str, str]) -> list[Wish]:
    """What is better with than without."""
    return [
        [["--threads", values["threads"]]],
        # Newer ones place as many layers on the GPU as fit it; older ones none unless told.
        [["--fit", "on"], ["--n-gpu-layers", "999"], ["--gpu-layers", "999"]],
        [["--no-kv-unified"]],
        [["--cache-ram", "0"]],
        [["--no-ui"], ["--no-webui"]],
        [["--slots"]],
        [["--log-verbosity", "2"]],
    ]


def _build_hint(gpu: Gpu) -> str:
    """The commands that put a ``llama-server`` built for this GPU on the path."""
    return (
        "git clone --depth 1 https://github.com/ggml-org/llama.cpp && cd llama.cpp"
        f" && cmake -B build -DCMAKE_BUILD_TYPE=Release {_GPU_BUILD[gpu.maker]}"
        " && cmake --build build --target llama-server --parallel"
        " && sudo install build/bin/llama-server /usr/local/bin/"
    )
