"""What the run loop needs from others: a plan for a model, and someone who runs processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.engines.base import Footprint, LaunchPlan
from homelab_llm.inference.fleet.vocabulary import Demand


@dataclass(frozen=True, slots=True)
class Planned:
    """How a model will be run here, decided once per model and kept.

    ``launch`` makes the plan for a socket; it may raise a ``HomelabError``, which then is the load's failure.
    ``warning`` is for people (B-11). ``footprint`` tells the parts of ``demand.footprint_bytes``, so that a
    measurement can be judged; without it a measurement is taken as it is.
    """

    demand: Demand
    launch: Callable[[Path], LaunchPlan]
    engine: str
    context_tokens: int
    traits: WorkerTraits
    warning: str = ""
    footprint: Footprint | None = None

    def reserve_bytes(self, measured_bytes: int) -> int:
        """What to reserve for a worker that was measured right after its load; 0 = stay with the estimate.

        Less than the weights means that the measurement did not see the memory (a GPU's own). The KV cache
        counts on top as far as the estimate reaches, for engines take it only when requests come.
        """
        if self.footprint is None or not measured_bytes:
            return measured_bytes
        if measured_bytes < self.footprint.weights_bytes:
            return 0
        promised_bytes = min(self.demand.footprint_bytes, measured_bytes + self.footprint.kv_bytes)
        return max(measured_bytes, promised_bytes)


class Plan(Protocol):
    """Plans a model; ``context_tokens`` in place of what is set, to see what that would need."""

    def __call__(self, model: StoredModel, context_tokens: int | None = None, /) -> Planned:
        """May look around; raises ``EngineUnavailable`` or ``UnsupportedRequest``."""
        ...


@dataclass(frozen=True, slots=True)
class Survivor:
    """A worker of an earlier daemon that passed its proof: it is ours now, and its events come to us.

    ``note`` is what the run loop gave with its ``start``. ``ready`` is False while it still loads; then ``Loaded`` or
    ``LoadFailed`` follows. ``memory_bytes`` is 0 when it was not measured.
    """

    worker_id: str
    note: Mapping[str, Any]
    ready: bool
    engine_pid: int | None
    memory_bytes: int
    started_unix_s: float


class WorkerInfo(Protocol):
    """A running worker: its host's pid, and the memory its engine was last measured to hold (0 = not yet)."""

    @property
    def pid(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...


class Workers(Protocol):
    """The processes. A start is answered by ``Loaded`` or ``LoadFailed`` and, later, by exactly one ``WorkerExit``."""

    def sockets(self, worker_id: str) -> Path:
        """Where the worker serves HTTP."""
        ...

    def start(self, worker_id: str, plan: LaunchPlan, note: Mapping[str, Any]) -> None:
        """Return at once; what comes of it is reported as events. ``note``: JSON for ``survivors`` of a later life."""
        ...

    async def survivors(self) -> list[Survivor]:
        """The workers of an earlier daemon that live and prove to be ours; from then on they are this one's.

        A worker whose proof fails is reported and never signalled.
        """
        ...

    def drain(self, worker_id: str) -> None: ...

    def kill(self, worker_id: str) -> None: ...

    def info(self, worker_id: str) -> WorkerInfo | None:
        """Cheap: what is known, measures nothing."""
        ...

    async def failure(self, worker_id: str) -> HomelabError:
        """Why a worker broke off; waits less than a second for the reason."""
        ...

    async def close(self) -> None:
        """End all workers and wait for the proof of their death."""
        ...

    async def release(self) -> None:
        """Leave all workers as they are and watch them no more."""
        ...


class Trust(Protocol):
    """What is known of the files of models. ``check`` and ``doubt`` block and are called in threads."""

    def known(self, model: StoredModel) -> bool:
        """Whether its files are known to be good; looks at them and hashes nothing.

        Raises:
            ModelDamaged: they are known to be damaged.
        """
        ...

    def check(self, model: StoredModel, told: Callable[[float], None]) -> None:
        """Hash what is not known. ``told`` gets 0 to 1; what it raises ends the work.

        Raises:
            ModelDamaged: with the files and the command that mends them.
        """
        ...

    def doubt(self, digest: str) -> None:
        """Hash the files of this model again before they are believed."""
        ...
