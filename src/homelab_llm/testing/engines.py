"""The fake engine behind the engine seam: runs models of architecture ``fake`` with the fake engine program."""

from __future__ import annotations

import sys
from pathlib import Path

from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.engines.base import EngineOptions, Footprint, LaunchPlan, Support
from homelab_llm.testing.models import ARCHITECTURE

OWN_TRAITS = WorkerTraits(pooled=True, notices_abort=True, progress=True, grammar=True, tools=True, busy_path="/stats")
LLAMA_CPP_TRAITS = WorkerTraits(
    pooled=False, notices_abort=False, progress=True, grammar=True, tools=True, busy_path="/slots"
)


class FakeEngine:
    """A real ``Engine``: its workers are real processes, only the model is not.

    Args:
        pooled: behave as our own workers (keep-alive, aborts noticed everywhere); else as llama.cpp's server
            (a connection used twice breaks; a lost client is seen only while tokens stream).
        traits: what it claims, when that shall differ from what ``pooled`` means.
        name: its name in the table of engines.
        overhead_bytes: added to every estimate; lets a test fill a memory budget.
        environment: extra environment of the worker, for example failpoints.
        honours: which options of a model it claims to honour; ``flags`` become arguments of its program.
    """

    def __init__(
        self,
        pooled: bool = True,
        *,
        traits: WorkerTraits | None = None,
        name: str = "fake",
        overhead_bytes: int = 16_000_000,
        environment: dict[str, str] | None = None,
        honours: frozenset[str] = frozenset(),
    ) -> None:
        self._pooled = pooled
        self._traits = traits or (OWN_TRAITS if pooled else LLAMA_CPP_TRAITS)
        self._name = name
        self._overhead_bytes = overhead_bytes
        self._environment = environment or {}
        self._honours = honours

    @property
    def name(self) -> str:
        return self._name

    @property
    def honours(self) -> frozenset[str]:
        """What was said."""
        return self._honours

    @property
    def traits(self) -> WorkerTraits:
        """What its workers claim."""
        return self._traits

    def supports(self, facts: ModelFacts) -> Support:
        if facts.format == "gguf" and facts.architecture == ARCHITECTURE:
            return Support(ok=True)
        return Support(ok=False, reason=f"the fake engine runs fake models, not {facts.architecture}")

    def estimate(self, facts: ModelFacts, options: EngineOptions) -> Footprint:
        tokens = self._context(facts, options) * options.parallel
        return Footprint(facts.size_bytes, facts.kv_bytes_per_token * tokens, self._overhead_bytes)

    def plan(self, model: StoredModel, options: EngineOptions, socket: Path, derived: Path) -> LaunchPlan:  # noqa: ARG002
        support = self.supports(model.facts)
        if not support.ok:
            raise EngineUnavailable(support.reason)
        file = next(path for name, path in model.own_files.items() if name.endswith(".gguf") or len(model.files) == 1)
        context_tokens = self._context(model.facts, options)
        argv = [sys.executable, "-m", "homelab_llm.testing.fake_engine", "--socket", str(socket)]
        argv += ["--model", model.name, "--file", str(file)]
        argv += ["--parallel", str(options.parallel), "--context", str(context_tokens)]
        argv += ["--embedding-width", str(model.facts.embedding_width or 8)]
        argv += [] if self._pooled else ["--unpooled", "--deaf"]
        argv += options.flags
        return LaunchPlan(
            engine=self._name,
            model=model,
            argv=tuple(argv),
            parallel=options.parallel,
            context_tokens=context_tokens,
            traits=self._traits,
            env=self._environment,
            version="1",
        )

    @staticmethod
    def _context(facts: ModelFacts, options: EngineOptions) -> int:
        return options.context_tokens or min(facts.context_tokens or 4096, 8192)
