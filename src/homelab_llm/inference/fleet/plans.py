"""Plans: how each model will be run, decided when it is first asked for and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.fleet.seams import Plan, Planned
from homelab_llm.inference.fleet.vocabulary import Terms


class Plans:
    """The plans of one fleet.

    Two names of one digest may have different options, and then different demand keys; those with the same key
    share a worker.

    Args:
        plan: makes one; it may raise, then it is asked again next time.
        known_bytes: the measured footprint of a demand key, 0 = never measured.
    """

    def __init__(self, plan: Plan, known_bytes: Callable[[str], int] | None) -> None:
        self._plan = plan
        self._known_bytes = known_bytes
        self._by_model: dict[tuple[str, str], Planned] = {}
        self._by_key: dict[str, tuple[Planned, str]] = {}
        self._terms: dict[str, Terms] = {}

    def get(self, model: StoredModel) -> Planned | None:
        """The plan made before, or None; as fast as a look-up."""
        return self._by_model.get((model.name, model.digest.hex))

    def make(self, model: StoredModel, context_tokens: int | None = None) -> Planned:
        """Plan a model; with ``context_tokens`` only to look at, else it is kept.

        Raises:
            EngineUnavailable, UnsupportedRequest: as the planner says.
        """
        planned = self._plan(model) if context_tokens is None else self._plan(model, context_tokens)
        if self._known_bytes is not None and (measured_bytes := self._known_bytes(planned.demand.key)):
            planned = replace(planned, demand=replace(planned.demand, measured_bytes=measured_bytes))
        if context_tokens is None:
            self._by_model[model.name, model.digest.hex] = planned
            self._by_key[planned.demand.key] = (planned, str(model.digest))
        return planned

    def of_key(self, key: str) -> tuple[Planned, str]:
        """The latest plan of a demand key, and the model's digest."""
        return self._by_key[key]

    def of_digest(self, digest: str) -> list[Planned]:
        """Every plan ever made for a model, one per demand key."""
        return [planned for planned, known in self._by_key.values() if known == digest]

    def elsewhere(self, model: StoredModel) -> set[str]:
        """Demand keys that other names of this model's digest use now, and this name does not."""
        mine = self.get(model)
        digest = model.digest.hex
        keys = {planned.demand.key for (_, hex), planned in self._by_model.items() if hex == digest}
        return keys - {mine.demand.key} if mine else keys

    def set_terms(self, digest: str, terms: Terms) -> None:
        """Keep the operator's terms for plans that are still to come."""
        self._terms[digest] = terms

    def terms(self, digest: str) -> Terms | None:
        """The operator's terms for a model; None when there are none."""
        return self._terms.get(digest)

    def forget(self) -> None:
        """Plan every model anew when it is next asked for."""
        self._by_model.clear()
