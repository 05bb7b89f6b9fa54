"""OCI image layouts of this machine: a folder (another store is one), or the same as a tar (``oci-archive``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    BadManifest,
    BadModelFile,
    InvalidDigest,
    InvalidInput,
    NotRegularFile,
    SourceNotFound,
)
from homelab_llm.store.foreign.documents import read_object
from homelab_llm.store.foreign.tar_layers import Member, list_members
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, digest_path

_REF_NAME = "org.opencontainers.image.ref.name"
_MARKER, _INDEX = "oci-layout", "index.json"
_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Span:
    """Where bytes lie: ``size_bytes`` of ``path`` from ``offset`` on."""

    path: Path
    offset: int
    size_bytes: int


class OciLayout:
    """A layout; ``members`` are the files of a tar by their names, None for a folder."""

    def __init__(self, path: Path, members: Mapping[str, Member] | None = None) -> None:
        self._path, self._members = path, members

    def entry(self, item: str) -> tuple[str, Digest]:
        """The name and the manifest that ``item`` (a name in the index, its tag, or a digest) means.

        Raises:
            InvalidInput: several and none asked for; facts: ``choices``. SourceNotFound: none such.
            BadManifest: the index cannot be read.
        """
        entries = self._entries()
        if item:
            entries = [
                (name, digest) for name, digest in entries if item in {name, name.rpartition(":")[2], str(digest)}
            ]
        if not entries:
            raise SourceNotFound(f"{self._path.name} holds no {item[:80] or 'model'}")
        if len({digest for _, digest in entries}) > 1:
            names = [name or str(digest) for name, digest in entries]
            raise InvalidInput(
                f"{self._path.name} holds {len(names)} artifacts: {', '.join(names[:20])[:500]}",
                hint=f"mlxctl pull 'file:{self._path}#{names[0]}'",
                choices=names[:20],
            )
        return entries[0]

    def manifest(self, version: str) -> bytes:
        """See ``Place``."""
        return self.blob(Digest.parse(version), MAX_DOCUMENT_BYTES)

    def blob(self, digest: Digest, limit_bytes: int) -> bytes:
        """See ``Place``."""
        return self._read(self.span(digest), limit_bytes)

    def span(self, digest: Digest) -> Span:
        """Where the bytes of a blob are.

        Raises:
            SourceNotFound: it is not there.
        """
        if self._members is None:
            path = digest_path(self._path / "blobs" / "sha256", digest)
            try:
                return Span(path, 0, path.stat().st_size)
            except OSError as error:
                raise SourceNotFound(f"{self._path.name} lacks {digest.short}") from error
        member = self._members.get(f"blobs/sha256/{digest.hex}")
        if member is None:
            raise SourceNotFound(f"{self._path.name} lacks {digest.short}")
        return Span(self._path, member.offset, member.size_bytes)

    def _entries(self) -> list[tuple[str, Digest]]:
        if self._members is None:
            path = self._path / _INDEX
            content = self._read(Span(path, 0, MAX_DOCUMENT_BYTES), MAX_DOCUMENT_BYTES)
        else:
            member = self._members[_INDEX]
            content = self._read(Span(self._path, member.offset, member.size_bytes), MAX_DOCUMENT_BYTES)
        found = read_object(content, "the index of the layout").get("manifests")
        if not isinstance(found, list) or len(found) > _MAX_ENTRIES:
            raise BadManifest("the index of the layout cannot be read")
        return [_entry(raw) for raw in found]

    def _read(self, span: Span, limit_bytes: int) -> bytes:
        try:
            with open_regular(span.path) as stream:
                stream.seek(span.offset)
                content = stream.read(min(span.size_bytes, limit_bytes + 1))
        except NotRegularFile as error:
            raise SourceNotFound(f"{self._path.name}: {error.message}") from error
        if len(content) > limit_bytes:
            raise BadManifest(f"a document of the layout is larger than {limit_bytes} bytes")
        return content


def open_layout(path: Path) -> OciLayout | None:
    """The layout at ``path``; None when it is none.

    Raises:
        BadModelFile: a tar that is not one.
    """
    if path.is_dir():
        return OciLayout(path) if (path / _MARKER).is_file() and (path / _INDEX).is_file() else None
    if path.suffix.lower() not in {".tar", ".oci"} or not path.is_file():
        return None
    open_regular(path).close()
    try:
        members = {member.name: member for member in list_members(path, "")}
    except BadManifest as error:
        raise BadModelFile(f"{path.name} is not an OCI archive: {error.message}") from error
    if _MARKER not in members or _INDEX not in members:
        raise BadModelFile(
            f"{path.name} is not an OCI archive", hint="skopeo copy … oci-archive:FILE.tar makes one; or unpack it"
        )
    return OciLayout(path, members)


def _entry(raw: object) -> tuple[str, Digest]:
    found = raw if isinstance(raw, dict) else {}
    annotations = found.get("annotations")
    name = annotations.get(_REF_NAME, "") if isinstance(annotations, dict) else ""
    try:
        digest = Digest.parse(found.get("digest", ""))
    except InvalidDigest as error:
        raise BadManifest("the index of the layout has an entry that is not a descriptor") from error
    return (name[:300] if isinstance(name, str) and name.isprintable() else ""), digest
