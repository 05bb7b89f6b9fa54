"""Manifests of others: what ModelPack, Docker Model Runner, KitOps, ORAS and Ollama artifacts hold. Pure functions."""
