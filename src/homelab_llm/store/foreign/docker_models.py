"""Docker Model Runner artifacts: v0.1 (layers by kind) and v0.2 (one layer for each file).

Source: docker/model-runner, ``pkg/distribution/types`` and ``internal/bundle``.
"""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import BadManifest
from homelab_llm.core.facts import ModelDefaults
from homelab_llm.store.file_names import is_document
from homelab_llm.store.foreign.documents import Descriptor, ForeignManifest, read_object
from homelab_llm.store.foreign.modelpack import path_of, unknown
from homelab_llm.store.foreign.outline import Archive, Gathering, Outline, Part

_PREFIX = "application/vnd.docker.ai."
_CONFIGS = (f"{_PREFIX}model.config.v0.1+json", f"{_PREFIX}model.config.v0.2+json")
_MAX_CONTEXT_TOKENS = 1 << 30


def knows(manifest: ForeignManifest) -> bool:
    """Whether it is one of them."""
    return manifest.config.media_type.startswith(f"{_PREFIX}model.config.") or any(
        layer.media_type.startswith(_PREFIX) for layer in manifest.layers
    )


def outline(manifest: ForeignManifest, config: bytes) -> Outline:
    """Weights, configuration, licences and template; no projector.

    Raises:
        BadManifest: a version, or a layer, of an unknown kind.
    """
    if manifest.config.media_type not in _CONFIGS:
        raise BadManifest(f"a Docker model of a version that is not known: {manifest.config.media_type[:80]!r}")
    found = Gathering("Docker model")
    weights: dict[str, list[Descriptor]] = {"gguf": [], "safetensors": []}
    for layer in manifest.layers:
        _take(layer, found, weights)
    for ending, layers in weights.items():
        found.parts += _numbered(layers, ending)
    if not any(part.path.upper().startswith("LICENSE") for part in found.parts) and not found.archives:
        found.keep_licences()  # a tar may bring one of that name
    return found.outline(defaults=_defaults(read_object(config, "the configuration of the Docker model")))


def _take(layer: Descriptor, found: Gathering, weights: dict[str, list[Descriptor]]) -> None:
    path = path_of(layer)
    match layer.media_type.removeprefix(_PREFIX):
        case "gguf.v3":
            weights["gguf"].append(layer)
        case "safetensors":
            weights["safetensors"].append(layer)
        case "mmproj" | "gguf.v3.mmproj":
            found.notes.append("the projector for pictures was left out: vision is not served from it yet")
        case "license":
            found.texts.append(("licence", layer))
        case "chat.template.jinja":
            found.texts.append(("jinja", layer))
        case "vllm.config.tar":
            found.archives.append(Archive(layer))
        case "dir.tar":
            found.archives.append(Archive(layer, folder=path.rpartition("/")[0]))
        case "model.file":
            if not path:
                raise BadManifest(f"a layer of the manifest has no file name ({layer.digest.short})")
            found.parts.append(Part(path, layer))
        case "dduf":
            raise BadManifest("a diffusion model (DDUF): it makes pictures, and those are not served here")
        case _ if not is_document(path):
            raise unknown(layer)


def _numbered(layers: list[Descriptor], ending: str) -> list[Part]:
    """Weights by their own names where all have one, else in their order."""
    names = [path_of(layer) for layer in layers]
    if not all(names):
        count = len(layers)
        names = [f"model-{number:05d}-of-{count:05d}.{ending}" for number in range(1, count + 1)]
        names = names if count > 1 else [f"model.{ending}"]
    return [Part(name, layer) for name, layer in zip(names, layers, strict=True)]


def _defaults(config: dict[str, Any]) -> ModelDefaults:
    told = config.get("config")
    tokens = told.get("context_size") if isinstance(told, dict) else None
    if type(tokens) is int and 0 < tokens <= _MAX_CONTEXT_TOKENS:
        return ModelDefaults(parameters={"num_ctx": tokens})
    return ModelDefaults()
