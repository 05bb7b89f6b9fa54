"""Which files make the model: pure rules over names and sizes, the same for folders of this machine and for sources.

Safetensors win over GGUF, GGUF must be one model, pickles and code are never taken. Patterns only ever narrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from homelab_llm.core.errors import InvalidInput, SourceNotFound, UnsafeModel
from homelab_llm.core.units import format_bytes
from homelab_llm.store.file_names import is_document
from homelab_llm.store.inspect.model import CODE, PICKLES

# What engines read beside the weights; and what people should have read.
_COMPANIONS = (".json", ".jinja", ".txt", ".jsonl", ".model", ".tiktoken")
_MODULE = re.compile(r"\d+_[A-Za-z]+")  # a part of a sentence-transformers model: 1_Pooling, 2_Dense
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_SHOWN_CHOICES = 30
_MAX_PATTERNS, _MAX_PATTERN_CHARACTERS = 100, 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a repository is asked for; empty fields ask for nothing in particular.

    ``file`` is a GGUF file (one part of a split file means all parts), ``quantization`` a word in its name.
    ``include`` and ``exclude`` are patterns as the shell writes them, matched against the whole path; ``include``
    leaves configuration and documents alone, ``exclude`` does not.
    """

    file: str = ""
    quantization: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        patterns = (*self.include, *self.exclude)
        if len(patterns) > _MAX_PATTERNS or any(len(pattern) > _MAX_PATTERN_CHARACTERS for pattern in patterns):
            raise InvalidInput(f"there are at most {_MAX_PATTERNS} patterns of {_MAX_PATTERN_CHARACTERS} characters")


ANYTHING = Wanted()


def choose_files(sizes: Mapping[str, int | None], reference: str, wanted: Wanted = ANYTHING) -> list[str]:
    """The paths to fetch out of a repository that holds ``sizes``.

    Args:
        reference: how to name the repository in hints, for example ``hf:org/name``.

    Raises:
        InvalidInput: several GGUF models and none asked for; facts: ``choices``.
        UnsafeModel: there are only pickled weights.
        SourceNotFound: no such file, or no weights at all.
    """
    paths = [path for path in sizes if _is_allowed(path, wanted)]
    groups = gguf_models(paths)
    if wanted.file:
        return _with_file(groups, wanted.file, reference)
    if wanted.quantization:
        groups = _with_quantization(groups, wanted.quantization, reference)
    elif whole := folder_model(paths):
        return whole
    if len(groups) == 1:
        return next(iter(groups.values()))
    if groups:
        raise _choice_needed(groups, sizes, reference)
    if any(path.lower().endswith(PICKLES) for path in paths):
        raise UnsafeModel(
            f"{reference} has only pickled weights, which run code when loaded",
            hint="look for a copy of the model in safetensors or GGUF format",
        )
    if wanted.include or wanted.exclude:
        raise SourceNotFound(
            f"the patterns leave no weights of {reference}", hint=f"it holds {', '.join(sorted(sizes)[:10])[:500]}"
        )
    raise SourceNotFound(f"{reference} has no weights in safetensors or GGUF format")


def folder_model(paths: Iterable[str]) -> list[str]:
    """The safetensors model among the paths with all that belongs to it, sorted; empty when there is none.

    Raises:
        UnsafeModel: a module of it has pickled weights only.
    """
    within = [path for path in paths if _is_within(path)]
    weights = _safetensors([path for path in within if "/" not in path])
    if not weights:
        return []
    modules = [path for path in within if "/" in path and path.endswith(".safetensors")]
    for path in within:
        folder = path.rpartition("/")[0]
        if folder and path.lower().endswith(PICKLES) and not any(other.startswith(f"{folder}/") for other in modules):
            raise UnsafeModel(
                f"{path[:80]} is a pickle file: loading it would run code that is inside it",
                hint="use a version of the model whose modules are in safetensors format",
                file=path[:80],
            )
    return sorted({*weights, *modules, *filter(_is_companion, within)})


def gguf_models(paths: Sequence[str]) -> dict[str, list[str]]:
    """The GGUF models among the paths: name of the first file → all parts, in order. Projectors are left out."""
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        name = path.rpartition("/")[2].lower()
        if not name.endswith(".gguf") or "mmproj" in name or "imatrix" in name:
            continue
        part = _PART.fullmatch(path)
        groups.setdefault(f"{part['stem']}-of-{part['count']}" if part else path, []).append(path)
    return {parts[0]: parts for parts in groups.values()}


def parts_of(name: str) -> list[str]:
    """The names of all parts of a split GGUF file, of which ``name`` is one; else ``name`` alone."""
    part = _PART.fullmatch(name)
    if not part or not 0 < int(part["count"]) <= 10_000:
        return [name]
    suffix = name[-len(".gguf") :]
    return [f"{part['stem']}-{number:05d}-of-{part['count']}{suffix}" for number in range(1, int(part["count"]) + 1)]


def stored_name(path: str) -> str:
    """The name of a chosen file inside the model: GGUF files lose their own name."""
    if not path.lower().endswith(".gguf"):
        return path
    part = _PART.fullmatch(path)
    return f"model-{part['number']}-of-{part['count']}.gguf" if part else "model.gguf"


def _is_allowed(path: str, wanted: Wanted) -> bool:
    if any(fnmatchcase(path, pattern) for pattern in wanted.exclude):
        return False
    return not wanted.include or _is_companion(path) or any(fnmatchcase(path, pattern) for pattern in wanted.include)


def _with_file(groups: Mapping[str, list[str]], wanted: str, reference: str) -> list[str]:
    for parts in groups.values():
        if wanted in parts or wanted.lower() in {part.lower() for part in parts}:
            return parts
    if not groups:
        raise SourceNotFound(f"{reference} holds no GGUF file; leave out #{wanted[:80]}")
    raise SourceNotFound(
        f"{reference} holds no GGUF file {wanted[:80]!r}",
        hint=f"choose one of: {', '.join(list(groups)[:_SHOWN_CHOICES])}",
        choices=list(groups)[:_SHOWN_CHOICES],
    )


def _with_quantization(groups: Mapping[str, list[str]], wanted: str, reference: str) -> dict[str, list[str]]:
    """The models whose name has ``wanted`` as a word of its own; one that ends with it before one that goes on."""
    word = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?=[-./]|$)", re.IGNORECASE)
    stems = {first: _stem(first) for first in groups}
    found = {first: parts for first, parts in groups.items() if word.search(stems[first])}
    last = {first: parts for first, parts in found.items() if stems[first].lower().endswith(wanted.lower())}
    if not found:
        raise SourceNotFound(
            f"{reference} holds no GGUF file of quantization {wanted[:60]}",
            hint=f"choose one of: {', '.join(list(groups)[:_SHOWN_CHOICES])}" if groups else "",
            choices=list(groups)[:_SHOWN_CHOICES],
        )
    return last or found


def _stem(path: str) -> str:
    part = _PART.fullmatch(path)
    return part["stem"] if part else path[: -len(".gguf")]


def _safetensors(top: Sequence[str]) -> list[str]:
    found = [path for path in top if path.endswith(".safetensors")]
    named = [path for path in found if fnmatchcase(path, "model*.safetensors")]
    # "consolidated" is the same model once more, in its maker's own layout
    return named or [path for path in found if not path.startswith(("consolidated", "adapter_"))]


def _is_within(path: str) -> bool:
    """Whether a path is the model's own: at the top or in a module's folder, not hidden."""
    folder, _, name = path.rpartition("/")
    return not name.startswith(".") and (not folder or bool(_MODULE.fullmatch(folder)))


def _is_companion(path: str) -> bool:
    lower = path.lower()
    if not _is_within(path) or lower.endswith((*PICKLES, *CODE, ".pdf")):
        return False
    return lower.endswith(_COMPANIONS) or is_document(path)


def _choice_needed(groups: Mapping[str, list[str]], sizes: Mapping[str, int | None], reference: str) -> InvalidInput:
    lines = [f"{first} ({format_bytes(sum(sizes[part] or 0 for part in parts))})" for first, parts in groups.items()]
    usual = next((first for first in groups if "q4_k_m" in first.lower()), next(iter(groups)))
    return InvalidInput(
        f"{reference} holds {len(groups)} GGUF models: {', '.join(lines[:_SHOWN_CHOICES])}",
        hint=f"mlxctl pull '{reference}#{usual}'" if reference.startswith(("hf:", "file:")) else f"--include '{usual}'",
        choices=list(groups)[:_SHOWN_CHOICES],
    )
