"""Unpacking: the files of tar layers become blobs of their own. The layer itself is not kept.

First all names and sizes of all layers are looked at, then what makes the model is chosen, and only that is unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.blobs import BlobStore
from homelab_llm.store.foreign.outline import Archive
from homelab_llm.store.foreign.selection import Selection, select
from homelab_llm.store.foreign.tar_layers import MAX_ENTRIES, Member, list_members, read_members
from homelab_llm.store.progress import Progress
from homelab_llm.store.sources.base import PackedModel

FAILPOINTS = ("unpack.listed", "unpack.written", "unpack.kept")
"""Every failpoint of unpacking, passed between those of the pull."""


def select_packed(blobs: BlobStore, packed: PackedModel, report: Progress) -> Selection:
    """Which files of the artifact make the model; its archives are in the store. Ends when ``report`` raises.

    Raises:
        BadManifest, InvalidInput, UnsafeModel, SourceNotFound: see ``select`` and ``list_members``.
    """
    members: dict[Archive, list[Member]] = {}
    for archive in packed.outline.archives:
        path = blobs.path(archive.layer.digest)
        members[archive] = list_members(path, archive.compression, lambda: report.at("inspecting", "", 0))
        if sum(map(len, members.values())) > MAX_ENTRIES:
            raise BadManifest(f"the layers together hold more than {MAX_ENTRIES} files")
    failpoint("unpack.listed")
    return select(packed.outline, packed.reference, members, packed.wanted)


def unpack(
    blobs: BlobStore,
    members: Mapping[str, tuple[Archive, str]],
    kept: Callable[[str, Digest], None],
    report: Progress,
) -> None:
    """Write the chosen files as blobs.

    Args:
        kept: told the path and the blob of each, which stays held until it is added or released.
        report: told of each file and its bytes; ends the work when it raises.

    Raises:
        BadManifest: a layer contradicts what it said when it was listed.
        DiskFull: nothing half-written can be seen.
    """
    done_bytes = 0
    for archive in dict.fromkeys(archive for archive, _ in members.values()):
        paths = {name: path for path, (own, name) in members.items() if own == archive}
        for member, chunks in read_members(blobs.path(archive.layer.digest), archive.compression, paths):
            key = f"{archive.layer.digest}\n{member.name}"
            with blobs.open_writer(key, size_bytes=member.size_bytes) as writer:
                for chunk in chunks:
                    writer.write(chunk)
                    report.at("storing", member.name, done_bytes + writer.offset)
                failpoint("unpack.written")
                digest = writer.commit()
            done_bytes += member.size_bytes
            kept(paths.pop(member.name), digest)
            failpoint("unpack.kept")
        if paths:
            raise BadManifest("a layer changed while it was unpacked")
