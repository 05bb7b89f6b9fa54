"""Conversion programs run to their end, and what they said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int
    result: dict[str, Any]
    error: dict[str, Any]
    stages: list[float]


def files_in(folder: Path) -> dict[str, Path]:
    """A folder's files by their names in the model."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def run_program(module: str, files: Mapping[str, Path], *arguments: str, limit_s: float = 170, **environ: str) -> Ended:
    """Run a conversion program to its end."""
    pairs = [part for name, path in files.items() for part in ("--file", f"{name}={path}")]
    program = [sys.executable, "-P", "-m", f"homelab_llm.inference.conversion.{module}", *pairs, *arguments]
    ended = subprocess.run(program, capture_output=True, timeout=limit_s, env={**os.environ, **environ}, check=False)
    said: dict[str, list[Any]] = {"@progress": [], "@result": [], "@error": []}
    for line in ended.stdout.splitlines():
        word, _, text = line.decode().partition(" ")
        said[word].append(json.loads(text))
    if ended.returncode not in (0, 2, -9) or bool(said["@error"]) != (ended.returncode == 2):
        raise RuntimeError(ended.stderr.decode())
    stages = [step["done"] for step in said["@progress"]]
    return Ended(ended.returncode, (said["@result"] or [{}])[-1], (said["@error"] or [{}])[-1], stages)
