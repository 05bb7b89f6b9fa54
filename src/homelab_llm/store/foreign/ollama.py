"""Ollama's models: weights, adapter, template, system, parameters, messages and licences, a layer each.

Source: ollama, ``server/images.go``, ``manifest`` and ``types/model``.
"""

from __future__ import annotations

from homelab_llm.core.errors import BadManifest
from homelab_llm.core.facts import ModelDefaults
from homelab_llm.store.foreign.documents import ForeignManifest
from homelab_llm.store.foreign.modelpack import unknown
from homelab_llm.store.foreign.outline import Gathering, Outline, Part, Role

_PREFIX = "application/vnd.ollama.image."
_TEXTS: dict[str, Role] = {
    "template": "template",
    "system": "system",
    "params": "params",
    "messages": "messages",
    "license": "licence",
}
_PARTED = ("tensor", "json", "draft")


def knows(manifest: ForeignManifest) -> bool:
    """Whether it is one of them."""
    return any(layer.media_type.startswith(_PREFIX) for layer in manifest.layers)


def outline(manifest: ForeignManifest, config: bytes) -> Outline:  # noqa: ARG001 — it says nothing the weights do not
    """Everything that llama.cpp can run.

    Raises:
        BadManifest: a model in single tensors, or a layer of an unknown kind.
    """
    found = Gathering("Ollama")
    weights, adapters = [], []
    for layer in manifest.layers:
        kind = layer.media_type.removeprefix(_PREFIX)
        if kind == "model":
            weights.append(layer)
        elif kind == "adapter":
            adapters.append(layer)
        elif kind == "projector":
            found.notes.append("the projector for pictures was left out: vision is not served from it yet")
        elif kind in _TEXTS:
            found.texts.append((_TEXTS[kind], layer))
        elif kind in _PARTED:
            raise BadManifest(
                "this model lies in the library as single tensors (Ollama's MLX form), which no engine here reads",
                hint="pull another tag of it, or the MLX model from hf:mlx-community/…",
            )
        elif kind in {"embed", "prompt"}:
            found.notes.append(f"a layer of an old kind was left out: {kind}")
        else:
            raise unknown(layer)
    count = len(weights)
    names = [f"model-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)] if count > 1 else ["model.gguf"]
    found.parts += [Part(name, layer) for name, layer in zip(names, weights, strict=False)]
    if not weights:
        raise BadManifest("this model has no weights of its own: it runs elsewhere", hint="pull another tag of it")
    places = tuple(f"adapters/{number}/adapter.gguf" for number in range(1, len(adapters) + 1))
    found.parts += [Part(place, layer) for place, layer in zip(places, adapters, strict=True)]
    found.keep_licences()
    return found.outline(whole=True, defaults=ModelDefaults(adapters=places))
