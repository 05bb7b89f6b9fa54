"""Turn: of all who pull the same model at the same time, threads and processes, one fetches and the others look on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidDigest
from homelab_llm.store.layout import Layout, disk_full_is_typed
from homelab_llm.store.partials import Partial
from homelab_llm.store.progress import Progress
from homelab_llm.store.sources.base import RemoteModel
from homelab_llm.store.transfer.download import key_of

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

_LOOK_S = 0.1


@contextmanager
def turn(store: ModelStore, remote: RemoteModel, report: Progress) -> Iterator[None]:
    """Wait until nobody else fetches the model, reporting how far he is; whoever comes next goes on from there.

    Raises:
        DiskFull: no room even for a lock. Also what ``report`` raises.
    """
    layout = Layout(store.root)
    layout.ensure()
    partial = Partial.of(layout, f"pull\n{remote.source}")
    with disk_full_is_typed(layout.root):
        held = partial.try_hold()
        while held is None:
            report.at("waiting", "", there_bytes(store, remote))
            time.sleep(_LOOK_S)
            held = partial.try_hold()
    try:
        yield
    finally:
        partial.let_go(held)


def there_bytes(store: ModelStore, remote: RemoteModel) -> int:
    """How much of the model is in the store, finished or not, whoever writes it."""
    found = 0
    for file in remote.files:
        key = key_of(file, remote.source)
        digest = file.digest or _finished(store, key)
        size = store.blobs.size_bytes(digest) if digest else None
        found += store.blobs.kept_bytes(key) if size is None else size
    return found


def _finished(store: ModelStore, key: str) -> Digest | None:
    """The digest of a blob that had none beforehand, once it is complete."""
    text = Partial.of(Layout(store.root), key).record().digest
    try:
        return Digest.parse(text) if text else None
    except InvalidDigest:
        return None
