"""Models: ``/v1/models``, encoded once for each state of the store."""

from __future__ import annotations

from typing import Any

import orjson

from homelab_llm.core.facts import StoredModel
from homelab_llm.gateway.seams import Catalogue

OWNER = "homelab-llm"


def described(model: StoredModel) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {"id": model.name, "object": "model", "created": int(model.created_unix_s), "owned_by": OWNER}


class ModelList:
    """The encoded list; made anew only when the store has changed."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._stamp: object = None
        self._encoded = b""

    def encoded(self) -> bytes:
        """The list as JSON."""
        stamp = self._catalogue.stamp()
        if stamp != self._stamp or not self._encoded:
            listed = [described(model) for model in self._catalogue.models()]
            self._encoded = orjson.dumps({"object": "list", "data": listed})
            self._stamp = stamp
        return self._encoded
