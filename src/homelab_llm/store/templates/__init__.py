"""Chat templates as the store meets them: those of other tools translated, and any of them checked."""

from homelab_llm.store.templates.go_template import translate

__all__ = ["translate"]
