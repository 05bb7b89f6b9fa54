"""Foreign: a model server of another origin that was adopted. Requests pass; it is not ours to load or to end."""

from __future__ import annotations

from dataclasses import dataclass

from homelab_llm.core.errors import EngineError, HomelabError
from homelab_llm.core.traits import WorkerTraits

_TRAITS = WorkerTraits(pooled=False, notices_abort=True, progress=False, grammar=False, tools=True)


@dataclass(frozen=True, slots=True)
class ForeignLease:
    """The right to send a request there, which nobody counts. ``socket`` is its host and port."""

    socket: tuple[str, int]

    @property
    def traits(self) -> WorkerTraits:
        return _TRAITS

    @property
    def context_tokens(self) -> int:
        """Unknown."""
        return 0

    @property
    def worker_id(self) -> str:
        return ""

    def release(self, *, abandoned: bool = False) -> None:
        """Nobody waits for it."""

    def condemn(self) -> None:
        """It is not ours to end."""

    async def failure(self) -> HomelabError:
        """It is gone, or does not answer."""
        host, port = self.socket
        return EngineError(
            f"the adopted server at {host}:{port} does not answer", hint=f"start it again, or mlxctl unload {port}"
        )
