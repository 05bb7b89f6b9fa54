"""OCI registries, and the Ollama library which speaks the same: ``oci://host/name:tag``, ``ollama:name:tag``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from homelab_llm.core.digests import Digest
from homelab_llm.store.choice import ANYTHING, Wanted
from homelab_llm.store.oci.client import RegistryClient
from homelab_llm.store.references import DEFAULT_NAMESPACE, OciReference, OllamaReference, parse_oci, parse_ollama
from homelab_llm.store.sources.artifacts import look_up, remote_model
from homelab_llm.store.sources.base import Opened, RemoteFile, RemoteModel


class RegistrySource:
    """One repository of a registry; the client is closed with the source. ``wanted`` brings the patterns of a pull."""

    parallel = True

    def __init__(self, client: RegistryClient, wanted: Wanted = ANYTHING) -> None:
        self._client, self._wanted = client, wanted
        self._repository = ""

    def resolve(self, reference: str) -> RemoteModel:
        """See ``Source``; one request for the manifest, one for each small layer."""
        if reference.startswith("ollama:"):
            return self._of_library(parse_ollama(reference))
        return self._of_registry(parse_oci(reference))

    def manifest(self, version: str) -> bytes:
        """See ``Place``."""
        named = Digest.parse(version) if version.startswith("sha256:") else version
        return self._client.manifest(self._repository, named).content

    def blob(self, digest: Digest, limit_bytes: int) -> bytes:
        """See ``Place``."""
        return self._client.blob_bytes(self._repository, digest, limit_bytes=limit_bytes)

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Opened]:
        """See ``Source``; continues with a range where the registry allows it."""
        with self._client.open_blob(self._repository, Digest.parse(file.address), start, stop) as body:
            yield Opened.of(body)

    def close(self) -> None:
        self._client.close()

    def _of_registry(self, wanted: OciReference) -> RemoteModel:
        self._repository = wanted.name
        found = look_up(self, wanted.version)
        pinned = str(replace(wanted, tag="", digest=found.digest))
        return remote_model(self, found, source=pinned, repository=wanted.name, tag=wanted.tag, wanted=self._wanted)

    def _of_library(self, wanted: OllamaReference) -> RemoteModel:
        self._repository = f"{wanted.namespace}/{wanted.name}"
        found = look_up(self, str(wanted.digest or wanted.tag))
        pinned = str(replace(wanted, digest=found.digest))
        name = wanted.name if wanted.namespace == DEFAULT_NAMESPACE else self._repository
        return remote_model(self, found, source=pinned, repository=name, tag=wanted.tag)
