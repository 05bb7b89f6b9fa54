"""Entry of the worker host: ``python -I -S main.py SPEC.json``. See ``loop.py``.

Started without ``site``, so it names the folder that holds the package itself; last, so that nothing there can
stand before the standard library.
"""
# ruff: noqa: PTH100, PTH118, PTH120 — pathlib would cost this small process a megabyte

import os
import sys

sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4)))

from homelab_llm.inference.workers.host.loop import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
