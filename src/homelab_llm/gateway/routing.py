"""Routing without slots: a name is a model of the store. Used where no registry is kept."""

from __future__ import annotations

from collections.abc import Sequence

from homelab_llm.core.errors import SlotEmpty
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.routing import opening_of, own_parameters
from homelab_llm.gateway.seams import Catalogue, Target


class StoreRouter:
    """Every name goes where the catalogue says."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def route(self, name: str, port: int = 0) -> Target:
        """The model of that name; no slot serves anything.

        Raises:
            SlotEmpty: on a slot port.
            InvalidName, ModelNotFound: as ``Catalogue.resolve``.
        """
        if port:
            raise SlotEmpty(f"slot {port} serves nothing", hint=f"mlxctl load MODEL {port}", port=port)
        model = self._catalogue.resolve(name)
        return Target(model, params=own_parameters(model), opening=opening_of(model))

    async def settled(self, target: Target) -> bool:  # noqa: ARG002
        """Never: without slots no name moves."""
        return False

    def listed(self) -> Sequence[tuple[str, StoredModel]]:
        """Nothing."""
        return ()

    def stamp(self) -> object:
        """Always the same."""
        return None
