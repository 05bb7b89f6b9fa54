"""Shelf: the store together with where models come from, as the controller of slots sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from homelab_llm.core.errors import Cancelled
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.settings import StoreSettings
from homelab_llm.store.index import Stamp
from homelab_llm.store.model_store import ModelStore

if TYPE_CHECKING:
    from homelab_llm.store.progress import JobProgress


Tell = Callable[[str, float], None]
PullJob = Callable[[str, Tell], Awaitable[str]]


class Shelf:
    """The models that lie in a store, and those that can be pulled into it (``controller.seams.Shelf``).

    Args:
        by_job: pulls a reference in another process and gives the model's name; None pulls in a thread of this one.
    """

    def __init__(self, store: ModelStore, settings: StoreSettings, by_job: PullJob | None = None) -> None:
        self._store = store
        self._settings = settings
        self._by_job = by_job

    def resolve(self, name: str) -> StoredModel:
        """See ``ModelStore.resolve``."""
        return self._store.resolve(name)

    def models(self) -> list[StoredModel]:
        """See ``ModelStore.models``."""
        return self._store.models()

    def stamp(self) -> Stamp:
        """See ``ModelStore.stamp``."""
        return self._store.stamp()

    async def pull(self, reference: str, progress: Tell) -> StoredModel:
        """Bring a model into the store; cancelling the call ends the pull, or lets go of the job that does it.

        Args:
            progress: gets the stage and 0 to 1, on the event loop.

        Raises:
            HomelabError: as ``store.pull.pull``.
        """
        if self._by_job is not None:
            return self._store.resolve(await self._by_job(reference, progress))
        loop, left = asyncio.get_running_loop(), threading.Event()

        def tell(step: JobProgress) -> None:
            if left.is_set():
                raise Cancelled(f"pulling {reference} was called off; what was received is kept")
            done = step.done_bytes / step.total_bytes if step.total_bytes else 0.0
            loop.call_soon_threadsafe(progress, step.stage, done)

        try:
            return await asyncio.to_thread(self._pull, reference, tell)
        finally:
            left.set()

    def _pull(self, reference: str, tell: Callable[[JobProgress], None]) -> StoredModel:
        from homelab_llm.store.pull import PullSettings, pull  # slow to import, and seldom needed

        return pull(self._store, reference, settings=PullSettings.of(self._settings), progress=tell)
