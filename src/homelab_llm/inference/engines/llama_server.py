"""An installed ``llama-server`` program: what it can do, and the flags for it. Fails closed: nothing is assumed.

A flag is used only when that program's own ``--help`` names it; a program that lacks one we need is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homelab_llm.inference.engines.accelerators import Machine, ask

_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_DEVICE = re.compile(r"^\s+([A-Za-z]+\d*):\s+(\S.*)$", re.MULTILINE)
_VERSION = re.compile(r"version:\s*(\S+)")
_NO_GPU = frozenset({"CPU", "BLAS", "RPC"})

# What decides where it listens, which files it serves, and how requests are kept apart is ours to say; and nothing in
# a registry may open a door into this machine.
_OURS_WORDS = (
    "-h --help --version --host --port --path --api-prefix --api-key --api-key-file --reuse-port --ssl-key-file"
    " --ssl-cert-file -m --model -mu --model-url -a --alias -dr --docker-repo -md -mm -mmu --mmproj --mmproj-url --lora"
    " --lora-scaled --control-vector --control-vector-scaled -np --parallel -c --ctx-size --slots --no-slots"
    " --slot-save-path -kvu --kv-unified --no-kv-unified --context-shift --no-context-shift --embedding --embeddings"
    " --rerank --reranking --jinja --no-jinja --chat-template --chat-template-file --rpc --log-file --props --tools"
    " --list-devices --completion-bash"
)
_OURS = frozenset(_OURS_WORDS.split())
_OURS_BY_PREFIX = ("--model", "-hf", "--hf", "--spec-draft-model", "--ui-", "--webui-", "--offline", "--no-mmproj")
_NUMBER = re.compile(r"-[\d.]")

# Each wish is a list of spellings, newest first, each an argv part; the first whose flag is known is taken.
Wish = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """One program. ``devices`` are the GPUs it was built for and found; ``flags`` what its help names."""

    path: str
    version: str
    devices: tuple[str, ...]
    flags: frozenset[str]

    def knows(self, wish: Wish) -> Sequence[str] | None:
        """The first spelling of a wish that this program takes."""
        return next((spelling for spelling in wish if spelling and spelling[0] in self.flags), None)

    def missing(self, needed: Mapping[str, Wish]) -> list[str]:
        """Which needs this program cannot meet, by name."""
        return [name for name, wish in needed.items() if self.knows(wish) is None]

    def refusal(self, given: Sequence[str]) -> str:
        """Why these arguments of the operator cannot be passed on; empty when they can. Unknown ones cannot."""
        flag = ""
        for part in given:
            if part.startswith("-") and not _NUMBER.match(part):
                flag = part
                if flag not in self.flags:
                    return f"this llama-server knows no {flag[:40]!r}"
                if flag in _OURS or flag.startswith(_OURS_BY_PREFIX):
                    return f"{flag[:40]!r} is not for a model to set"
            elif not flag or "\0" in part:
                return f"{part[:40]!r} is not a flag"
        return ""

    def compile(self, needed: Mapping[str, Wish], wanted: Sequence[Wish]) -> list[str]:
        """The argv after the program's path; ``missing`` must have been empty."""
        parts = [self.knows(wish) or () for wish in (*needed.values(), *wanted)]
        return [part for parts_of_one in parts for part in parts_of_one]


def find_llama_server(machine: Machine) -> LlamaServer | None:
    """Ask the ``llama-server`` on the path, if any, for its help, version and devices. Blocks, seconds at most."""
    path = machine.program("llama-server")
    text = ask([path, "--help"]) if path else None
    if path is None or text is None:
        return None
    flags = frozenset(_FLAG.findall(text))
    version = _VERSION.search(ask([path, "--version"]) or "")
    listed = (ask([path, "--list-devices"]) or "") if "--list-devices" in flags else ""
    devices = [name for kind, name in _DEVICE.findall(listed) if kind.rstrip("0123456789").upper() not in _NO_GPU]
    return LlamaServer(path, version[1] if version else "unknown", tuple(devices), flags)
