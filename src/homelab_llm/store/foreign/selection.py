"""Which files of an artifact make the model, and their names inside it. Pure, by the rules of ``choice.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homelab_llm.core.errors import BadManifest, InvalidName
from homelab_llm.store.choice import ANYTHING, Wanted, choose_files, stored_name
from homelab_llm.store.file_names import check_file_names, is_document
from homelab_llm.store.foreign.documents import Descriptor
from homelab_llm.store.foreign.outline import Archive, Outline
from homelab_llm.store.foreign.tar_layers import Member


@dataclass(frozen=True, slots=True)
class Selection:
    """``layers``: path inside the model → the layer that is the file; ``members``: path → archive and name in it.

    ``sizes_bytes`` are those of the members.
    """

    layers: Mapping[str, Descriptor]
    members: Mapping[str, tuple[Archive, str]]
    sizes_bytes: Mapping[str, int]


def select(
    outline: Outline, reference: str, members: Mapping[Archive, Sequence[Member]], wanted: Wanted = ANYTHING
) -> Selection:
    """The files to keep of an artifact.

    Args:
        reference: how hints call it.
        members: what its archives hold.

    Raises:
        BadManifest: names that are none, or stand there twice.
        InvalidInput, UnsafeModel, SourceNotFound: see ``choose_files``.
    """
    if outline.whole:
        return Selection({part.path: part.layer for part in outline.parts}, {}, {})
    places: list[tuple[str, int, Descriptor | tuple[Archive, str]]] = [
        (part.path, part.layer.size_bytes, part.layer) for part in outline.parts
    ]
    for archive, found in members.items():
        folder = f"{archive.folder}/" if archive.folder else ""
        places += [(f"{folder}{member.name}", member.size_bytes, (archive, member.name)) for member in found]
    try:
        check_file_names(name for name, _, _ in places)
    except InvalidName as error:
        raise BadManifest(f"the artifact names its files wrongly: {error.message}") from error
    where = {name: place for name, _, place in places}
    sizes = {name: size for name, size, _ in places}
    chosen = _chosen(sizes, reference, wanted)
    layers = {path: place for path, name in chosen.items() if isinstance(place := where[name], Descriptor)}
    packed = {path: place for path, name in chosen.items() if isinstance(place := where[name], tuple)}
    return Selection(layers, packed, {path: sizes[chosen[path]] for path in packed})


def _chosen(sizes: Mapping[str, int], reference: str, wanted: Wanted) -> dict[str, str]:
    """Path inside the model → name inside the artifact."""
    root = _root(list(sizes))
    inside = {name.removeprefix(root): size for name, size in sizes.items() if name.startswith(root)}
    chosen = {stored_name(path): root + path for path in choose_files(inside, reference, wanted)}
    papers = [name for name in sizes if "/" not in name and is_document(name) and not name.lower().endswith(".pdf")]
    return {**{name: name for name in papers}, **chosen}


def _root(names: Sequence[str]) -> str:
    """The folder in which the safetensors lie that are nearest to the top, with a slash; empty for the top itself."""
    folders = [name.rpartition("/")[0] for name in names if name.endswith(".safetensors")]
    if not folders:
        return ""
    folder = min(folders, key=lambda folder: (folder.count("/") + bool(folder), folder))
    return f"{folder}/" if folder else ""
