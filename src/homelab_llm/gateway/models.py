"""Models: ``/v1/models``, encoded once for each state of store and slots; on a slot port its model alone."""

from __future__ import annotations

from typing import Any

import orjson

from homelab_llm.core.errors import ModelNotFound, SlotEmpty
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.gateway.seams import Catalogue, Router

OWNER = "homelab-llm"


def described(model: StoredModel, alias: str = "") -> dict[str, Any]:
    """A model as OpenAI lists it, under its own name or an alias."""
    return {"id": alias or model.name, "object": "model", "created": int(model.created_unix_s), "owned_by": OWNER}


class ModelList:
    """What can be asked for; the encoded list is made anew only when store or slots have changed."""

    def __init__(self, catalogue: Catalogue, router: Router) -> None:
        self._catalogue = catalogue
        self._router = router
        self._stamp: object = None
        self._encoded = b""

    def encoded(self, slot: int = 0) -> bytes:
        """The list as JSON; on a slot port exactly its model."""
        if slot:
            return self._of_slot(slot)
        stamp = (self._catalogue.stamp(), self._router.stamp())
        if stamp != self._stamp or not self._encoded:
            rows = [described(model) for model in self._catalogue.models()]
            rows += [described(model, alias) for alias, model in self._router.listed()]
            self._encoded = _list(rows)
            self._stamp = stamp
        return self._encoded

    def one(self, name: str, slot: int = 0) -> dict[str, Any]:
        """A model of the list by its name.

        Raises:
            ModelNotFound, InvalidName, SlotEmpty: see ``Router.route``.
        """
        target = self._router.route(name, slot)
        model = target.model
        if not slot:
            return described(model, target.alias)
        if name == target.alias or str(ModelRef.parse(name)) == model.name:
            return described(model)
        raise ModelNotFound(
            "this slot serves another model", hint=f"it serves {model.name}", model=name, closest=[model.name]
        )

    def _of_slot(self, slot: int) -> bytes:
        try:
            return _list([described(self._router.route("", slot).model)])
        except SlotEmpty:
            return _list([])


def _list(rows: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({"object": "list", "data": rows})
