"""Inference: engines, the workers they run in, and the fleet that decides which are loaded."""
