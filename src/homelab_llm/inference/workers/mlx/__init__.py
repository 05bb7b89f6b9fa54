"""The MLX worker: a program that serves one model folder on a Unix socket, in OpenAI's shapes, in one batch.

``server`` is the program; ``generator`` is the only module that knows mlx-lm.
"""
