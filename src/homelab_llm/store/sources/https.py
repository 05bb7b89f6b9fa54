"""One file at a web address: ``https://host/path/model.gguf[#sha256=<64 hex digits>]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.http import HttpClient
from homelab_llm.core.urls import origin_of
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel
from homelab_llm.store.sources.huggingface import nameable

_DIGEST_MARK = "#sha256="


class HttpsSource:
    """Files at web addresses; no credentials are sent."""

    parallel = True

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; one request for one byte tells size and validator."""
        url, mark, hexadecimal = reference.partition(_DIGEST_MARK)
        digest = Digest.parse(f"sha256:{hexadecimal}") if mark else None
        url = url.partition("#")[0]
        origin_of(url)
        name = unquote(url.partition("?")[0].rpartition("/")[2])
        if not name.lower().endswith(".gguf"):
            raise InvalidInput(
                "only a single .gguf file can be pulled from a web address",
                hint="for a folder use hf:org/name, or fetch it and run mlxctl import FOLDER",
                field="reference",
            )
        with self._client.stream(url, start=0, stop=1) as body:
            file = RemoteFile("model.gguf", url, body.total_bytes, digest, validator=body.validator)
        repository = nameable(name[: -len(".gguf")].replace("/", "-"))
        if not repository:
            raise InvalidInput("the file has no name that could be a model's", hint="give one with --name")
        return RemoteModel(reference, repository, (file,), tag="latest")

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:
        """See ``Source``."""
        with self._client.stream(file.address, start=start, stop=stop) as body:
            yield Opened(body.start, body.validator, body.chunks)

    def close(self) -> None:
        self._client.close()
