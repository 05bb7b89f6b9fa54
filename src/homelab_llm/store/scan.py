"""Scan: what was looked for in a stored model and what was found, for people who want to know before they trust it.

The same rules by which a model is refused when it comes in, told one by one. Reads headers and small documents in
milliseconds; it hashes nothing (that is ``verify``) and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.file_names import check_file_names, is_weight
from homelab_llm.store.inspect.folder_facts import refuse_code_in
from homelab_llm.store.inspect.gguf import read_gguf
from homelab_llm.store.inspect.model import inspect_model, refuse_unsafe_name
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.inspect.safetensors import read_safetensors

Status = Literal["ok", "warn", "fail"]

_ORIGINS = {
    "hf:": "the hub promises the SHA-256 of large files and the git id of small ones",
    "oci:": "the registry's manifest promises the SHA-256 of each file",
    "ollama:": "the registry's manifest promises the SHA-256 of each file",
    "packages:": "the package promises the SHA-256 of each file, and the index that of the package",
}
_FIRST_SEEN = "nothing was promised: the SHA-256 of each file was first taken here"
_STATEMENT = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_TEXTS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_UNSAFE_NAMES = re.compile(r"(?:\.|\|\s*attr\s*\(\s*['\"])\s*(__?\w+|gi_frame|cr_frame|f_globals|func_globals|mro)\b")
_HIDDEN_NAMES = re.compile(r"\[\s*['\"](__\w+)['\"]\s*\]")
_LOADING = re.compile(r"^[-+\s]*(import|include|extends|from)\b")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for. ``name`` is a few words, ``text`` what was found, for people."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class ScanReport:
    """All checks of one model. ``fail`` means that this product would refuse the model if it came today."""

    model: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.status != "fail" for check in self.checks)

    def lines(self) -> Iterator[str]:
        """One line for each check."""
        for check in self.checks:
            yield f"{check.status:4}  {check.name}: {check.text}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"model": self.model, "ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def scan(model: StoredModel) -> ScanReport:
    """Look at every file of a stored model; blocks for milliseconds, and never raises for what is wrong with it."""
    files = dict(model.files)
    checks = (
        _try("plain files", partial(_plain, files)),
        _try("file names", partial(_names, files)),
        _try("formats", partial(_formats, files)),
        _try("no code", partial(_code, files)),
        _try("tensors", partial(_tensors, files, model.defaults.adapters)),
        _template(model.defaults.template or model.facts.chat_template),
        _origin(model),
    )
    return ScanReport(model.name, checks)


def origin_of_hashes(model: StoredModel) -> tuple[bool, str]:
    """Whether its source promised the files' hashes, and how, in words."""
    source = model.pulled_from or model.source
    if source.startswith(("https://", "http://")) and "#sha256=" in source:
        return True, "the address names the SHA-256 of the file"
    told = next((text for scheme, text in _ORIGINS.items() if source.startswith(scheme)), "")
    return bool(told), told or _FIRST_SEEN


def _try(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except HomelabError as error:
        return Check(name, "fail", error.message)


def _plain(files: Mapping[str, Path]) -> str:
    for path in files.values():
        open_regular(path).close()
    return f"{_count(len(files), 'file')}, no links, devices or FIFOs"


def _names(files: Mapping[str, Path]) -> str:
    check_file_names(files)
    return "relative, without .., and distinct where case and accents do not count"


def _formats(files: Mapping[str, Path]) -> str:
    for name in files:
        refuse_unsafe_name(name)
    weights = [name for name in files if is_weight(name)]
    kinds = sorted({name.lower().rpartition(".")[2] for name in weights})
    return f"weights in {' and '.join(kinds) or 'no file'}; no pickle files, no programs"


def _code(files: Mapping[str, Path]) -> str:
    refuse_code_in(files)
    return "no configuration asks to run code that came with the model"


def _tensors(files: Mapping[str, Path], adapters: tuple[str, ...]) -> str:
    count = 0
    for name, path in files.items():
        if name.lower().endswith(".gguf"):
            count += len(read_gguf(path).tensors)
        elif name.endswith(".safetensors"):
            count += len(read_safetensors(path).tensors)
    inside = tuple(f"{adapter}/" for adapter in adapters)
    own = {name: path for name, path in files.items() if name not in adapters and not name.startswith(inside)}
    inspect_model(own)  # parts that belong together, dimensions within bounds
    return f"{_count(count, 'tensor')} fill their files to the end; none is zeroed"


def _template(template: str) -> Check:
    """What the template would reach for. It only ever runs in a sandbox; this says whether that would stop it."""
    if not template:
        return Check("chat template", "ok", "there is none")
    if reached := reach_of_template(template):
        what = ", ".join(reached[:5])
        return Check("chat template", "warn", f"it reaches for {what}, which the sandbox refuses: it may not render")
    return Check("chat template", "ok", f"{len(template):,} characters, runs in a sandbox and asks for nothing else")


def reach_of_template(template: str) -> list[str]:
    """Names in a Jinja template that lead out of it, each once: hidden attributes, other templates."""
    found: dict[str, None] = {}
    for statement in _STATEMENT.findall(template):
        names = [*_UNSAFE_NAMES.findall(statement), *_HIDDEN_NAMES.findall(statement)]
        code = _TEXTS.sub("''", statement)
        names += [f"{word} …" for word in _LOADING.findall(code)]
        found |= dict.fromkeys(names)
    return list(found)


def _origin(model: StoredModel) -> Check:
    promised, text = origin_of_hashes(model)
    return Check("hashes", "ok" if promised else "warn", text)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
