"""Models made from models: which program makes what, as work on the store; see ``convert.py``."""
