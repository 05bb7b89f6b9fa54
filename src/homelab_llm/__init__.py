"""homelab-llm: a private LLM platform for one machine or a small team.

The package root imports nothing, so that the command line starts at click speed.
"""

__version__ = "0.1.0"
