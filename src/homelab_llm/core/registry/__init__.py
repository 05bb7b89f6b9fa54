"""The registry as values: which models are known, and which of ten ports serves which. Pure; kept by ``data``."""
