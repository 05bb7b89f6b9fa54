"""Shelf: the store together with where models come from, as the controller of slots sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.settings import StoreSettings
from homelab_llm.store.index import Stamp
from homelab_llm.store.model_store import ModelStore

if TYPE_CHECKING:
    from homelab_llm.store.progress import JobProgress


class Shelf:
    """The models that lie in a store, and those that can be pulled into it (``controller.seams.Shelf``)."""

    def __init__(self, store: ModelStore, settings: StoreSettings) -> None:
        self._store = store
        self._settings = settings

    def resolve(self, name: str) -> StoredModel:
        """See ``ModelStore.resolve``."""
        return self._store.resolve(name)

    def models(self) -> list[StoredModel]:
        """See ``ModelStore.models``."""
        return self._store.models()

    def stamp(self) -> Stamp:
        """See ``ModelStore.stamp``."""
        return self._store.stamp()

    def pull(self, reference: str, progress: Callable[[str, float], None]) -> StoredModel:
        """Bring a model into the store; blocks. ``progress`` gets the stage and 0 to 1; what it raises ends the pull.

        Raises:
            HomelabError: as ``store.pull.pull``.
        """
        from homelab_llm.store.pull import PullSettings, pull  # slow to import, and seldom needed

        settings = PullSettings.of(self._settings)

        def tell(step: JobProgress) -> None:
            progress(step.stage, step.done_bytes / step.total_bytes if step.total_bytes else 0.0)

        return pull(self._store, reference, settings=settings, progress=tell)
