"""The engine seam: data only. An engine says what it runs, what that needs, and how to start it; it starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.traits import WorkerTraits


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an engine runs a model here; ``reason`` and ``hint`` (a command) say why not, or warn.

    ``warning`` is said aloud where the engine runs the model, but worse than this machine could (B-11).
    """

    ok: bool
    reason: str = ""
    hint: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: one GGUF file, or the files of PEFT's format by name."""

    kind: Literal["gguf", "peft"]
    files: Mapping[str, Path]

    @property
    def needs(self) -> str:
        """What an engine that loads it names in ``honours``."""
        return f"{self.kind}_adapters"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the operator or the model chose. 0 means the engine's own choice for this model and machine.

    ``context_tokens`` is per request; ``parallel`` is how many requests run in the worker at once. The others are for
    engines whose ``honours`` names them: ``chat_template`` is a file that is there when the worker starts,
    ``flags`` are arguments of the engine's own program, ``adapters`` are applied to the weights.
    """

    context_tokens: int = 0
    parallel: int = 4
    threads: int = 0
    chat_template: Path | None = None
    flags: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the operator chose for one model, as its registry entry says; empty or 0 = nothing.

    ``chat_template`` is a Jinja template, or the absolute path of a file with one; in the registry also a name of the
    catalogue (``mlxctl template list``). What the model's engine does not
    honour is refused when the model is planned: no option is without effect.
    """

    engine: str = ""
    context_tokens: int = 0
    chat_template: str = ""
    draft_model: str = ""
    flags: tuple[str, ...] = ()
    tool_call_parser: str = ""
    reasoning_parser: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory a worker will take, in bytes: weights, KV cache at full context × parallel, and the rest."""

    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How to start one worker: absolute ``argv``, extra ``env``, and what it will be.

    ``prepare``, when not empty, is an argv the worker host runs to its end before ``argv`` (a conversion into
    ``HOME/derived``; it must be idempotent and publish atomically). Either program may print progress as lines
    ``@progress {"stage": "convert", "done": 0.25}``; everything else it prints is its log.
    The engine is ready when ``GET ready_path`` on the socket answers 200. ``version`` is the engine's, for the log.
    """

    engine: str
    model: StoredModel
    argv: tuple[str, ...]
    parallel: int
    context_tokens: int
    traits: WorkerTraits
    prepare: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health"
    version: str = ""


def version_of(package: str) -> str:
    """The version of an installed Python package; ``unknown`` when it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


class Engine(Protocol):
    """One inference engine. Pure: looks at facts and at what is installed, touches no process and no model file."""

    @property
    def name(self) -> str: ...

    @property
    def honours(self) -> frozenset[str]:
        """Which fields of ``ModelOptions`` it honours besides ``engine`` and the context; may look around.

        Also ``gguf_adapters`` and ``peft_adapters``: the kinds of adapters that it loads.
        """
        ...

    def supports(self, facts: ModelFacts) -> Support:
        """Whether this engine, as installed here, runs such a model."""
        ...

    def estimate(self, facts: ModelFacts, options: EngineOptions) -> Footprint:
        """Memory the worker would take with these options."""
        ...

    def plan(self, model: StoredModel, options: EngineOptions, socket: Path, derived: Path) -> LaunchPlan:
        """How to serve ``model`` on the Unix socket ``socket``; ``derived`` is the folder for conversions.

        Raises:
            EngineUnavailable: ``supports`` said no.
            UnsupportedRequest: a flag that this engine does not take, or that is not the operator's to set.
        """
        ...
