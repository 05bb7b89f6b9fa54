"""The code in the documents runs as it is printed, against a daemon with the real models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from homelab_llm.testing.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("README.md", "docs/guides/openai-clients.md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S))
]


@pytest.mark.requirement("R-U6", "R-G2")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_documented_program_runs_and_says_something(daemon: Daemon, block: str) -> None:
    program = block.replace("http://127.0.0.1:1234", daemon.url)
    assert program != block
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
