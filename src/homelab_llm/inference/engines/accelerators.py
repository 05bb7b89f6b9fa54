"""Accelerators: which GPUs and how many processor cores this machine offers. Asks the system, imports nothing heavy.

What it finds can be injected: ``Machine`` takes the programs' search path and the root folder as arguments.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

ASK_S = 10.0
_MEBIBYTE = 1 << 20
_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor. ``memory_bytes`` is 0 when the system does not tell, or when memory is shared."""

    maker: Literal["nvidia", "amd", "apple"]
    name: str
    memory_bytes: int = 0


def ask(argv: Sequence[str], *, timeout_s: float = ASK_S) -> str | None:
    """What a program prints (both outputs); None when it is not there, fails, or takes too long. Blocks."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[:_OUTPUT_BYTES].decode("utf-8", "replace") if done.returncode == 0 else None


@dataclass(frozen=True)
class Machine:
    """This machine, asked once: answers are kept.

    Args:
        search: folders to look for programs in, as in ``PATH``; None = the process's own.
        root: where ``/proc`` and ``/dev`` are; another one in tests.
        system, architecture: as ``sys.platform`` and ``platform.machine()`` say.
    """

    search: str | None = None
    root: Path = Path("/")
    system: str = field(default_factory=lambda: sys.platform)
    architecture: str = field(default_factory=platform.machine)

    def program(self, name: str) -> str | None:
        """The absolute path of a program, or None."""
        found = shutil.which(name, path=self.search)
        return str(Path(found).absolute()) if found else None

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs found. The first call may run ``nvidia-smi`` (a second, seldom more) where NVIDIA's driver is."""
        if self.system == "darwin":
            return (Gpu("apple", "Apple GPU"),) if self.architecture == "arm64" else ()
        return self._nvidia() + self._amd()

    @cached_property
    def cores(self) -> int:
        """Processor cores this process may use: physical ones, less what affinity or a container's quota takes."""
        import psutil

        counts = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
        if hasattr(os, "sched_getaffinity"):
            counts.append(len(os.sched_getaffinity(0)))
        counts.extend(self._quota())
        return max(1, min(counts))

    def _nvidia(self) -> tuple[Gpu, ...]:
        devices = sorted(self.root.glob("dev/nvidia[0-9]*"))
        program = self.program("nvidia-smi")
        query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        told = ask([program, *query]) if program else None
        if told is not None:
            rows = re.findall(r"^([^,\n]+),\s*(\d+|\[[^\]\n]*\])\s*$", told, re.MULTILINE)
            return tuple(Gpu("nvidia", n.strip(), int(m) * _MEBIBYTE if m.isdigit() else 0) for n, m in rows)
        cards = [self._model_name(path) for path in sorted(self.root.glob("proc/driver/nvidia/gpus/*/information"))]
        return tuple(Gpu("nvidia", name) for name in cards or ["NVIDIA GPU"] * len(devices))

    @staticmethod
    def _model_name(information: Path) -> str:
        try:
            found = re.search(r"^Model:\s*(.+?)\s*$", information.read_text("utf-8", "replace"), re.MULTILINE)
        except OSError:
            found = None
        return found[1] if found else "NVIDIA GPU"

    def _amd(self) -> tuple[Gpu, ...]:
        """AMD's compute driver: /dev/kfd, and a topology node with SIMD units for every GPU."""
        if not (self.root / "dev/kfd").exists():
            return ()
        nodes = self.root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
        return tuple(Gpu("amd", "AMD GPU") for node in sorted(nodes) if self._has_simd(node))

    @staticmethod
    def _has_simd(node: Path) -> bool:
        try:
            found = re.search(r"^simd_count (\d+)$", node.read_text("ascii", "replace"), re.MULTILINE)
        except OSError:
            return False
        return bool(found and int(found[1]))

    def _quota(self) -> list[int]:
        """Cores a cgroup (v2, then v1) grants, or nothing."""
        try:
            quota, period = (self.root / "sys/fs/cgroup/cpu.max").read_text().split()[:2]
        except (OSError, ValueError):
            try:
                quota, period = (
                    (self.root / f"sys/fs/cgroup/cpu/cpu.cfs_{n}_us").read_text() for n in ("quota", "period")
                )
            except OSError:
                return []
        try:
            granted = math.ceil(int(quota) / int(period))
        except (ValueError, ZeroDivisionError):
            return []  # "max"
        return [granted] if granted > 0 else []
