"""``mlxserve`` with the fake engine in its table: the same daemon, an engine more.

``FAKE_ENGINE=pooled`` (default) behaves as our own workers, ``FAKE_ENGINE=llama`` as llama.cpp's server.
"""

from __future__ import annotations

import os

from homelab_llm.inference.engines.table import ENGINES
from homelab_llm.ops.serve import main
from homelab_llm.testing.engines import FakeEngine

if __name__ == "__main__":
    main(
        engines=(FakeEngine(pooled=os.environ.get("FAKE_ENGINE", "pooled") == "pooled"), *ENGINES), module=__spec__.name
    )
