"""Hugging Face's hub: ``hf:org/name[:quantization][@revision][#file.gguf]``.

Only its public HTTP API is used, through our own client: the hub's client library neither continues a file after
a kill nor checks its SHA-256. The revision is pinned to a commit before anything is fetched; large files carry a
SHA-256, small ones a git blob id, and both are checked. Large files come out of the Xet storage where its library is
installed (``xet.py``), else over plain HTTPS.
Source: huggingface_hub 1.28 (``hf_api.py``, ``file_download.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, SourceDenied, SourceUnavailable
from homelab_llm.core.http import HttpClient
from homelab_llm.core.names import repository_of
from homelab_llm.core.urls import Origin, origin_of
from homelab_llm.store.choice import ANYTHING, Wanted, choose_files, stored_name
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.references import parse_hub
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel
from homelab_llm.store.sources.xet import LEAST_BYTES, XetFile, XetStreams

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NEXT = re.compile(r'<([^>]{1,2000})>;\s*rel="next"')
_API_BYTES = 16 << 20
_MAX_PAGES = 40
_XET_HASH = re.compile(r"[0-9a-f]{64}")
_XET_CHANCES = 2  # a token may have run out once


class HuggingFaceSource:
    """The hub at ``endpoint``; ``token`` goes to that origin only. ``wanted`` brings the patterns of a pull.

    Args:
        xet_schemes: of the addresses at which its Xet storage is asked; none = it is not used.
        xet_least_bytes: smaller files come over plain HTTPS.
    """

    parallel = True

    def __init__(
        self,
        client: HttpClient,
        endpoint: str,
        token: str = "",
        wanted: Wanted = ANYTHING,
        *,
        xet_schemes: tuple[str, ...] = (),
        xet_least_bytes: int = LEAST_BYTES,
    ) -> None:
        self._client, self._endpoint, self._wanted = client, endpoint.rstrip("/"), wanted
        self._authorization = f"Bearer {token}" if token else ""
        self._xet_streams = XetStreams(self, xet_schemes)
        self._xet_least_bytes = xet_least_bytes
        self._xet_files: dict[str, XetFile] = {}
        self._xet_chances = _XET_CHANCES if xet_schemes else 0

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; two or more requests."""
        wanted = parse_hub(reference)
        shown = str(wanted.whole)
        info = self._api(f"{self._endpoint}/api/models/{wanted.repo}/revision/{quote(wanted.revision, safe='')}")[0]
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(f"the hub does not say which commit {shown} is")
        entries = {entry.path: entry for entry in self._tree(wanted.repo, commit)}
        sizes = {path: entry.size_bytes for path, entry in entries.items()}
        asked = replace(self._wanted, file=wanted.file, quantization=wanted.quantization)
        chosen = choose_files(sizes, shown, asked)
        files = tuple(replace(entries[path], path=stored_name(path)) for path in chosen)
        check_file_names(file.path for file in files)
        return RemoteModel(
            source=str(replace(wanted, revision=commit)),
            repository=repository_of(wanted.repo),
            files=files,
            tag="" if files[0].path.endswith(".gguf") else "latest",
            licence=_licence(info),
        )

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:
        """See ``Source``; continues with a range where the hub allows it."""
        xet = self._xet_files.get(file.address)
        if xet is not None and self._xet_chances > 0:
            yield Opened(start, "", self._from_xet(xet, start, stop), ranged=True)
            return
        with self._client.stream(file.address, start=start, stop=stop, authorization=self._authorization) as body:
            yield Opened.of(body)

    def close(self) -> None:
        self._client.close()

    def read_token(self, repo: str, commit: str) -> Any:
        """See ``xet.Asking``."""
        return self._api(f"{self._endpoint}/api/models/{repo}/xet-read-token/{commit}")[0]

    def admits(self, origin: Origin) -> bool:
        """See ``xet.Asking``."""
        try:
            return bool(self._client.policy.addresses(origin, self._client.resolve))
        except (SourceDenied, SourceUnavailable):
            return False

    def _from_xet(self, file: XetFile, start: int, stop: int | None) -> Iterator[bytes]:
        """A part out of the Xet storage; after some failures nothing more is asked of it."""
        left = (file.size_bytes if stop is None else min(stop, file.size_bytes)) - start
        try:
            for chunk in self._xet_streams.chunks(file, start, stop):
                left -= len(chunk)
                yield chunk
            if left > 0:
                raise SourceUnavailable(f"the hub's Xet storage ended {left} bytes early")
        except HomelabError as error:
            self._xet_chances -= 1
            self._xet_streams.forget(file)
            raise SourceUnavailable(error.message, hint=error.hint) from error

    def _api(self, url: str) -> tuple[Any, Mapping[str, str]]:
        return self._client.get_json(url, limit_bytes=_API_BYTES, authorization=self._authorization)

    def _tree(self, repo: str, commit: str) -> Iterator[RemoteFile]:
        url = f"{self._endpoint}/api/models/{repo}/tree/{commit}?recursive=True&expand=False"
        for _ in range(_MAX_PAGES):
            page, headers = self._api(url)
            if not isinstance(page, list):
                raise SourceUnavailable(f"the hub does not list the files of hf:{repo}")
            for entry in page:
                if isinstance(entry, dict) and entry.get("type") == "file":
                    yield self._file(repo, commit, entry)
            more = _NEXT.search(headers.get("link", ""))
            if not more:
                return
            url = urljoin(url, more[1])
            if origin_of(url) != origin_of(self._endpoint):
                raise SourceUnavailable("the hub continues its list on another machine; that is not followed")
        raise SourceUnavailable(f"hf:{repo} has more files than a model has")

    def _file(self, repo: str, commit: str, entry: Mapping[str, Any]) -> RemoteFile:
        path, size, oid, lfs = entry.get("path"), entry.get("size"), entry.get("oid"), entry.get("lfs")
        if not isinstance(path, str) or type(size) is not int or size < 0:
            raise SourceUnavailable(f"the hub lists a file of hf:{repo} without name or size")
        digest = Digest.parse(f"sha256:{lfs.get('oid')}") if isinstance(lfs, dict) else None
        address = f"{self._endpoint}/{repo}/resolve/{commit}/{quote(path, errors='replace')}"
        xet_hash = entry.get("xetHash")
        if isinstance(xet_hash, str) and _XET_HASH.fullmatch(xet_hash) and size >= self._xet_least_bytes:
            self._xet_files[address] = XetFile(repo, commit, xet_hash, size)
        git_sha1 = oid if digest is None and isinstance(oid, str) and _COMMIT.fullmatch(oid) else ""
        return RemoteFile(
            path=path,
            address=address,
            size_bytes=size,
            digest=digest,
            git_sha1=git_sha1,
            validator=git_sha1,
        )


def hub_token(environ: Mapping[str, str]) -> str:
    """The token as the hub's own tools keep it: ``HF_TOKEN``, else the file they wrote at login, else empty."""
    if token := environ.get("HF_TOKEN", "").strip():
        return token
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in {"1", "true", "yes", "on"}:
        return ""
    try:
        return hub_token_path(environ).read_text("utf-8").strip()[:500]
    except (OSError, UnicodeDecodeError, RuntimeError):
        return ""


def hub_token_path(environ: Mapping[str, str]) -> Path:
    """The file in which the hub's own tools keep the token.

    Raises:
        RuntimeError: nobody's home is known.
    """
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '~')}/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()


def _licence(info: Mapping[str, Any]) -> str:
    tags = info.get("tags")
    found = (
        [tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")]
        if isinstance(tags, list)
        else []
    )
    return found[0][:100] if found and found[0].isprintable() else ""
