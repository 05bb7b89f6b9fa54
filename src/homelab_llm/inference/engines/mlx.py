"""The MLX engine: models in MLX or Hugging Face format, and some GGUF files after a conversion.

Native on Apple silicon. On Linux MLX has only a CPU backend: it answers correctly and slowly, so it comes as an
extra and says so. mlx itself is never imported here.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.engines.base import Adapter, EngineOptions, Footprint, LaunchPlan, Support, version_of

TRAITS = WorkerTraits(pooled=True, notices_abort=True, progress=True, grammar=False, tools=False, busy_path="/stats")
# Part of the name of every converted folder: raise it when the conversion writes something else than before.
CONVERTER_VERSION = 1

_GGUF_KINDS = frozenset({"Q4_0", "Q4_1", "Q8_0", "F16", "F32"})
_USUAL_CONTEXT_TOKENS = 8192
_WORKERS = "homelab_llm.inference.workers"
_CONVERSION = "homelab_llm.inference.conversion"
_OTHER = "mlxctl run --engine llama.cpp MODEL"
_SLOW = "MLX on Linux runs on one CPU core and is slow; llama.cpp is the fast engine here"
# Python, mlx-lm and buffers of one prefill step, measured at rest and under load with SmolLM2-135M.
_PROCESS_BYTES = 250 << 20

# model_type in config.json -> the module of mlx-lm that runs it, where the names differ (mlx_lm.utils, 0.32)
_SAME_AS = {
    "mistral": "llama",
    "iquestcoder": "llama",
    "xverse": "llama",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "kimi_k2": "deepseek_v3",
    "joyai_llm_flash": "deepseek_v3",
    "minimax_m2": "minimax",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters of the machine: its system and processor, and where mlx and mlx-lm are installed (None: not)."""

    system: str
    processor: str
    has_mlx: bool
    mlx_lm: Path | None

    @classmethod
    def here(cls) -> Machine:
        """This machine, without importing anything."""
        found = importlib.util.find_spec("mlx_lm")
        folder = Path(found.origin).parent if found and found.origin else None
        return cls(platform.system(), platform.machine(), importlib.util.find_spec("mlx") is not None, folder)

    @property
    def apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.processor == "arm64"


@dataclass(frozen=True, slots=True)
class MlxEngine:
    """The engine as installed on ``machine``."""

    machine: Machine = field(default_factory=Machine.here)

    @property
    def name(self) -> str:
        return "mlx"

    @property
    def honours(self) -> frozenset[str]:
        """A template of one's own, and adapters in PEFT's format; it has no flags and no draft model."""
        return frozenset({"chat_template", "peft_adapters"})

    def supports(self, facts: ModelFacts) -> Support:
        """Whether MLX runs such a model here. Tokenizers of GGUF files are checked by the conversion only."""
        if "embedding" in facts.capabilities:
            return Support(False, "the MLX engine does not serve embedding models")
        if not ({"chat", "completion"} & set(facts.capabilities)):
            return Support(False, "the model does not generate text")
        if facts.format == "gguf" and (facts.architecture != "llama" or facts.quantization not in _GGUF_KINDS):
            kinds = ", ".join(sorted(_GGUF_KINDS))
            return Support(
                False,
                f"MLX runs GGUF files of the llama architecture in {kinds}; this one is "
                f"{facts.architecture} in {facts.quantization}",
                hint=_OTHER,
            )
        return self._installed(facts)

    def _installed(self, facts: ModelFacts) -> Support:
        if not self.machine.apple_silicon and self.machine.system != "Linux":
            return Support(False, f"MLX does not run on {self.machine.system} {self.machine.processor}")
        if not self.machine.has_mlx or self.machine.mlx_lm is None:
            extra = "mlx" if self.machine.apple_silicon else "mlx-cpu"
            return Support(False, "mlx and mlx-lm are not installed", hint=f"pip install 'homelab-llm[{extra}]'")
        kind = _SAME_AS.get(facts.architecture, facts.architecture)
        if facts.format != "gguf" and not (kind.isidentifier() and self._knows(kind)):
            return Support(False, f"the installed mlx-lm does not know models of type {facts.architecture[:40]!r}")
        return Support(True) if self.machine.apple_silicon else Support(True, warning=_SLOW, hint=_OTHER)

    def _knows(self, kind: str) -> bool:
        folder = self.machine.mlx_lm
        return folder is not None and (folder / "models" / f"{kind}.py").is_file()

    def estimate(self, facts: ModelFacts, options: EngineOptions) -> Footprint:
        """Memory at full context in every slot; the CPU backend keeps scales and the cache in 32 bits."""
        weights, kv = facts.size_bytes, facts.kv_bytes_per_token
        if not self.machine.apple_silicon:
            kv *= 2
            weights = weights * 2 if facts.quantization in ("F16", "BF16") else weights * 5 // 4
        context = self._context_tokens(facts, options)
        return Footprint(weights, kv * context * options.parallel, _PROCESS_BYTES)

    def plan(self, model: StoredModel, options: EngineOptions, socket: Path, derived: Path) -> LaunchPlan:
        """Serve ``model``; a GGUF file is converted into ``derived`` first, other models get a folder of links there.

        ``options.threads`` means nothing to MLX, which chooses itself.

        Raises:
            EngineUnavailable: ``supports`` said no, or a GGUF model has more than one file.
        """
        support = self.supports(model.facts)
        if not support.ok:
            raise EngineUnavailable(f"MLX cannot run {model.name}: {support.reason}", hint=support.hint)
        context = self._context_tokens(model.facts, options)
        folder, prepare = _prepare(model, derived)
        return LaunchPlan(
            engine=self.name,
            model=model,
            argv=(
                *_program("mlx.server"),
                *("--socket", str(socket), "--model", str(folder), "--name", model.name),
                *("--parallel", str(options.parallel), "--context", str(context)),
                *(("--chat-template", str(options.chat_template)) if options.chat_template else ()),
                *(part for adapter in options.adapters for part in _adapter(adapter)),
            ),
            parallel=options.parallel,
            context_tokens=context,
            traits=TRAITS,
            prepare=prepare,
            version=version_of("mlx-lm"),
        )

    def _context_tokens(self, facts: ModelFacts, options: EngineOptions) -> int:
        usual = min(facts.context_tokens or _USUAL_CONTEXT_TOKENS, _USUAL_CONTEXT_TOKENS)
        return options.context_tokens or usual


def _adapter(adapter: Adapter) -> tuple[str, ...]:
    files = {name.rpartition(".")[2]: str(path) for name, path in adapter.files.items()}
    return "--adapter", files.get("json", ""), files.get("safetensors", "")


def _program(module: str, folder: str = _WORKERS) -> tuple[str, ...]:
    """``-P``: the folder the daemon happens to stand in must not become a place to import from."""
    return sys.executable, "-P", "-m", f"{folder}.{module}"


def _prepare(model: StoredModel, derived: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder to serve, and the command that makes it."""
    if model.facts.format == "gguf":
        ggufs = [path for name, path in model.own_files.items() if name.endswith(".gguf") or len(model.files) == 1]
        if len(ggufs) != 1:
            raise EngineUnavailable(f"MLX cannot run {model.name}: it is made of several GGUF files", hint=_OTHER)
        (gguf,) = ggufs
        folder = derived / f"{model.digest.hex}-mlx{CONVERTER_VERSION}"
        return folder, (*_program("gguf_to_mlx", _CONVERSION), "--file", f"model.gguf={gguf}", "--target", str(folder))
    folder = derived / f"{model.digest.hex}-files"
    pairs = [item for name, path in model.own_files.items() for item in ("--file", f"{name}={path}")]
    return folder, (*_program("mlx.folder"), "--target", str(folder), *pairs)
