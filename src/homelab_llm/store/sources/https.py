"""One file at a web address: ``https://host/path/model.gguf[#sha256=<64 hex digits>]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.http import HttpClient
from homelab_llm.core.names import repository_of
from homelab_llm.store.choice import parts_of
from homelab_llm.store.references import parse_web
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel


class HttpsSource:
    """Files at web addresses; no credentials are sent."""

    parallel = True

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; one request for one byte tells size and validator."""
        wanted = parse_web(reference)
        name = unquote(wanted.url.partition("?")[0].rpartition("/")[2])
        if not name.lower().endswith(".gguf"):
            raise _not_a_model(name)
        if parts_of(name) != [name]:
            raise InvalidInput(
                "one part of a split file is no model",
                hint="fetch all parts into a folder and run mlxctl import FOLDER, or pull from hf:org/name",
                field="reference",
            )
        with self._client.stream(wanted.url, start=0, stop=1) as body:
            file = RemoteFile("model.gguf", wanted.url, body.total_bytes, wanted.digest, validator=body.validator)
        repository = repository_of(name[: -len(".gguf")].replace("/", "-"))
        if not repository:
            raise InvalidInput("the file has no name that could be a model's", hint="give one with --name")
        return RemoteModel(str(wanted), repository, (file,), tag="latest")

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:
        """See ``Source``."""
        with self._client.stream(file.address, start=start, stop=stop) as body:
            yield Opened.of(body)

    def close(self) -> None:
        self._client.close()


def _not_a_model(name: str) -> InvalidInput:
    hint = "for a folder use hf:org/name, or fetch it and run mlxctl import FOLDER"
    if name.lower().endswith(".safetensors"):
        hint = "safetensors need their config.json and tokenizer: use hf:org/name, or mlxctl import FOLDER"
    return InvalidInput("only a single .gguf file can be pulled from a web address", hint=hint, field="reference")
