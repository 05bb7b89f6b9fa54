"""Pack: one model as an OCI layout of its own, a folder or a tar file, for tools and machines without a registry.

The same model gives the same bytes. Every blob is hashed on its way; a damaged one leaves nothing behind. Until the
last step the output does not exist under its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from homelab_llm.core.atomic import publish, sync_folder
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import AlreadyExists, InvalidInput, ModelDamaged
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.store.index import NAME
from homelab_llm.store.layout import (
    MAX_DOCUMENT_BYTES,
    Layout,
    digest_path,
    disk_full,
    disk_full_is_typed,
    free_bytes,
    read_small,
    remove_folder,
)
from homelab_llm.store.manifests import MANIFEST, MODEL, parse_manifest
from homelab_llm.store.progress import JobProgress, Progress
from homelab_llm.store.push import find_to_push

if TYPE_CHECKING:
    import tarfile
    from io import BufferedWriter

    from homelab_llm.store.model_store import ModelStore

FAILPOINTS = ("pack.blob", "pack.written", "pack.published")
_MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_FOLDERS = ("blobs", "blobs/sha256")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was written: ``output`` is a folder or a tar file with one model in it."""

    model: str
    digest: str
    output: str
    size_bytes: int


def pack(
    store: ModelStore, name: str, output: Path, *, progress: Callable[[JobProgress], None] | None = None
) -> PackReport:
    """Write a model as an OCI layout; blocks.

    Args:
        output: ends with ``.tar`` for a tar file, else a folder is made; must not exist.
        progress: called often; what it raises ends the work, and nothing is left.

    Raises:
        ModelNotFound, AlreadyExists, DiskFull, InvalidInput (no such folder to write in).
        ModelDamaged: a file is not what its digest says.
    """
    model = find_to_push(store, name)
    report = Progress(progress or (lambda _: None), doing="storing")
    packing = _Packing(Layout(store.root), model, report)
    if output.exists() or output.is_symlink():
        raise AlreadyExists(f"{output} exists", hint="choose another name, or remove it first")
    if not output.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {output.parent}", field="output")
    size = sum(packing.sizes.values())
    if size > (free := free_bytes(output.absolute().parent)):
        raise disk_full(size, free)
    with _temporary(output) as temporary, disk_full_is_typed(output.absolute().parent, size):
        report.total([size])
        report.begin("", 0)
        (packing.write_tar if output.name.endswith(".tar") else packing.write_folder)(temporary)
        failpoint("pack.written")
        publish(temporary, output.absolute())
    failpoint("pack.published")
    report.stage("done")
    return PackReport(model.name, str(model.digest), str(output), size)


@contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    """The place to write beside the output; what an earlier kill left there is removed."""
    place = output.absolute().with_name(f".{output.name}.packing")
    lock = place.with_name(f"{place.name}.lock")
    try:
        with locked(lock, wait_s=0.0):
            try:
                _remove(place)
                yield place
            finally:
                _remove(place)
                lock.unlink(missing_ok=True)
    except PermissionError as error:
        raise InvalidInput(f"{output.parent} cannot be written", field="output") from error


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        remove_folder(place)
    else:
        place.unlink(missing_ok=True)


class _Packing:
    """One model on its way out."""

    def __init__(self, layout: Layout, model: StoredModel, report: Progress) -> None:
        self._layout, self._model, self._report, self._done_bytes = layout, model, report, 0
        path = layout.blob(model.digest)
        content = read_small(path, MAX_DOCUMENT_BYTES)
        manifest = parse_manifest(content, model.digest, path)
        digests = {model.digest, manifest.config, *(layer.digest for layer in manifest.layers)}
        self.sizes = {digest: layout.blob(digest).stat().st_size for digest in sorted(digests)}
        named = {
            "mediaType": MANIFEST,
            "digest": str(model.digest),
            "size": len(content),
            "annotations": {NAME: model.name},
            "artifactType": MODEL,
        }
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [named],
        }
        self.documents = {"oci-layout": _MARKER, "index.json": json.dumps(index, separators=(",", ":")).encode()}

    def write_folder(self, place: Path) -> None:
        """As a folder; everything is on disk before it is renamed."""
        place.mkdir(mode=0o755)
        for folder in _FOLDERS:
            (place / folder).mkdir(mode=0o755)
        for name, content in self.documents.items():
            with (place / name).open("xb") as stream:
                _write_out(stream, [content])
        blobs = place / "blobs" / "sha256"
        for digest in self.sizes:
            with digest_path(blobs, digest).open("xb") as stream, self._opened(digest) as source:
                _write_out(stream, iter(lambda: source.read(_BLOCK_BYTES), b""))
            failpoint("pack.blob")
        for written in (blobs, blobs.parent, place):
            sync_folder(written)

    def write_tar(self, place: Path) -> None:
        """As a tar file: sorted, without owners or times."""
        import tarfile

        with place.open("xb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, content in self.documents.items():
                    archive.addfile(_member(name, len(content)), io.BytesIO(content))
                for folder in _FOLDERS:
                    archive.addfile(_member(folder, 0, folder=True))
                for digest, size in self.sizes.items():
                    with self._opened(digest) as source:
                        archive.addfile(_member(f"blobs/sha256/{digest.hex}", size), cast("IO[bytes]", source))
                    failpoint("pack.blob")
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def _opened(self, digest: Digest) -> Iterator[_Hashing]:
        """A blob to be read to its end, and then checked."""
        with self._layout.blob(digest).open("rb") as stream:
            hashing = _Hashing(stream, self._advance)
            yield hashing
        if hashing.hexdigest() != digest.hex:
            names = [name for name, path in self._model.files.items() if path.name == digest.hex]
            raise ModelDamaged(
                f"{', '.join(names)[:200] or digest.short} of {self._model.name} is not what its digest says",
                hint=f"mlxctl repair {self._model.name}",
                model=self._model.name,
                files=names,
            )

    def _advance(self, count: int) -> None:
        self._done_bytes += count
        self._report.bytes(self._done_bytes)


def _member(name: str, size: int, *, folder: bool = False) -> tarfile.TarInfo:
    import tarfile

    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o755 if folder else 0o644
    member.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return member


def _write_out(stream: BufferedWriter, blocks: Iterable[bytes]) -> None:
    for block in blocks:
        stream.write(block)
    stream.flush()
    os.fsync(stream.fileno())


class _Hashing(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, stream: IO[bytes], read: Callable[[int], None]) -> None:
        self._stream, self._read, self._hash = stream, read, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._hash.update(block)
        self._read(len(block))
        return block

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
