"""Models on disk that can be checked, moved and read by other tools. ``from homelab_llm.store import ModelStore``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

__all__ = ["ModelStore"]


def __getattr__(name: str) -> Any:
    """``ModelStore``, imported when it is asked for: the verbs that need no store start at click speed."""
    if name == "ModelStore":
        from homelab_llm.store.model_store import ModelStore

        return ModelStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
