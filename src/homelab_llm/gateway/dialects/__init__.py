"""Dialects: what clients speak, as pure conversions."""
