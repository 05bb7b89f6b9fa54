"""Inspect: facts from model headers, read within bounds and checked against the file. Pure Python, no tensors."""
