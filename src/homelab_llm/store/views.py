"""Views: a folder with a model's real file names, links into the blobs, for engines that want a folder.

Derived and rebuildable: ``views/<hex of manifest>/``. Built aside and renamed; links are relative, so the
store may be moved.
"""

from __future__ import annotations

import os
from pathlib import Path

from homelab_llm.core.errors import ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.layout import Layout, digest_path, disk_full_is_typed, remove_folder

BUILDING = ".new"
GOING = ".old"


def view_folder(layout: Layout, model: StoredModel) -> Path:
    """The view of ``model``, built when it is not there or not whole.

    Raises:
        ModelNotFound: a blob is gone, because the model was removed meanwhile.
    """
    place = layout.view(model.digest)
    if _is_whole(place, model):
        return place
    check_file_names(model.files)
    layout.ensure()
    with layout.locked(), disk_full_is_typed(layout.root):
        if not _is_whole(place, model):
            for name, blob in model.files.items():
                if not blob.is_file():
                    raise ModelNotFound(f"{model.name} is no longer whole: {name} is gone", model=model.name)
            _build(layout, model, place)
    return place


def drop_view(place: Path) -> None:
    """Remove a view, so that it is whole or absent at every moment; the caller holds the store's lock."""
    going = place.with_name(place.name + GOING)
    if not place.exists():
        return
    remove_folder(going)
    place.rename(going)
    failpoint("store.view.dropped")
    remove_folder(going)


def _is_whole(place: Path, model: StoredModel) -> bool:
    try:
        return all(
            (place / name).samefile(blob) and (place / name).readlink().name == blob.name
            for name, blob in model.files.items()
        )
    except OSError:
        return False


def _build(layout: Layout, model: StoredModel, place: Path) -> None:
    layout.views.mkdir(exist_ok=True)
    building = digest_path(layout.views, model.digest, BUILDING)
    remove_folder(building)
    building.mkdir()
    for name, blob in model.files.items():
        link = building / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    failpoint("store.view.linked")
    drop_view(place)
    building.rename(place)
    failpoint("store.view.renamed")
