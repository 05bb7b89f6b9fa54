"""Trust: what the fleet asks about a model's files before it loads them (``fleet.seams.Trust``)."""

from __future__ import annotations

from collections.abc import Callable

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.model_store import ModelStore


class StoreTrust:
    """Answers from what is known of the store's blobs. Safe to use from several threads."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def known(self, model: StoredModel) -> bool:
        """Whether its files are known to be good; looks at them and hashes nothing.

        Raises:
            ModelDamaged: they are known to be damaged.
        """
        from homelab_llm.store.verify import damage_error, known_damages

        damages, unknown = known_damages(self._store.verification, model)
        if damages:
            raise damage_error(model.name, damages)
        return not unknown

    def check(self, model: StoredModel, told: Callable[[float], None]) -> None:
        """Hash what is not known, leaving the processors to requests where they want them.

        Raises:
            ModelDamaged: with the files and the command that mends them.
        """
        from homelab_llm.store.verify import check_model, damage_error

        if damages := check_model(self._store, model, told=told, gently=True):
            raise damage_error(model.name, damages)

    def doubt(self, digest: str) -> None:
        """Hash the files of this model again before they are believed."""
        for model in self._store.models():
            if str(model.digest) == digest:
                self._store.verification.doubt([Digest(path.name) for path in model.files.values()])
                return
