"""The worker host: a small program that starts one engine, watches the daemon, and never leaves an engine behind.

Standard library only, and the light part of it: it runs beside every loaded model. Entry: ``main.py``.
"""
