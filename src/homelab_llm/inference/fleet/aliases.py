"""Aliases: which worker each name points to. A name flips to a new worker when that is ready, never before."""

from __future__ import annotations

from homelab_llm.inference.fleet.vocabulary import Demand, Flip


class Aliases:
    """What each alias shall serve, and to which worker it points now."""

    def __init__(self) -> None:
        self._wanted: dict[str, str] = {}
        self._points: dict[str, str] = {}

    def change(self, alias: str, demand: Demand | None, worker_id: str | None) -> list[Flip]:
        """``alias`` shall serve ``demand``; ``worker_id`` is its ready worker, if there is one.

        Without one the alias keeps pointing to what it served before: nobody is left without a model meanwhile.
        """
        if demand is None:
            self._wanted.pop(alias, None)
            return self._point(alias, None)
        self._wanted[alias] = demand.key
        return self._point(alias, worker_id) if worker_id is not None else []

    def ready(self, key: str, worker_id: str) -> list[Flip]:
        """A worker for ``key`` is ready."""
        return [
            flip for alias, wanted in self._wanted.items() if wanted == key for flip in self._point(alias, worker_id)
        ]

    def leaves(self, worker_id: str) -> list[Flip]:
        """A worker takes no request any more."""
        pointing = [alias for alias, target in self._points.items() if target == worker_id]
        return [flip for alias in pointing for flip in self._point(alias, None)]

    def _point(self, alias: str, worker_id: str | None) -> list[Flip]:
        if self._points.get(alias) == worker_id:
            return []
        if worker_id is None:
            del self._points[alias]
        else:
            self._points[alias] = worker_id
        return [Flip(alias, worker_id)]
