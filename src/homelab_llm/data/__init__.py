"""Data: what is recorded."""
