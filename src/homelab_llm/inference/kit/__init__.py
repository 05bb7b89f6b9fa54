"""Inference kit: the words of inference as pure functions: requests, tool calls, schemas."""
