"""Chat templates as the store meets them: those of other tools translated, and any of them checked."""
