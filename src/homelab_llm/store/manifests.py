"""Manifests: one model as an OCI image manifest with ModelPack media types. Pure: bytes in, values out.

The same files, facts and source always give the same bytes, so the digest of the manifest is the identity of
the model; when it came is said in the index. Facts and source are annotations, because ModelPack's
configuration is closed to other keys.

Sources: OCI image-spec, manifest.md and annotations.md; CNCF ModelPack model-spec v0.0.7, config and layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidDigest, InvalidName
from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, ModelFacts, Provenance
from homelab_llm.store.file_names import check_file_names, is_document, is_weight
from homelab_llm.store.layout import damaged

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH = "org.cncf.model.filepath"
FACTS = "homelab-llm.facts+json"
SOURCE = "homelab-llm.source"
DEFAULTS = "homelab-llm.defaults+json"
PROVENANCE = "homelab-llm.provenance+json"
MAX_SOURCE_CHARACTERS = 2048
_MOST = 1 << 63
_LATEST_UNIX_S = 253_402_214_400  # the last day of the year 9999
_FACT_TYPES: dict[str, type] = {
    field.name: {"str": str, "Format": str, "int": int, "bool": bool}.get(str(field.type), tuple)
    for field in fields(ModelFacts)
}
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_INPUTS = {"vision": ["text", "image"]}


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a model."""

    name: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the store knows about one model. ``size_bytes`` counts content that two files share once."""

    digest: Digest
    config: Digest
    layers: tuple[Layer, ...]
    facts: ModelFacts
    source: str
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE

    @property
    def size_bytes(self) -> int:
        return sum({layer.digest: layer.size_bytes for layer in self.layers}.values())


def encode_config(layers: tuple[Layer, ...], facts: ModelFacts) -> bytes:
    """The ModelPack configuration of a model."""
    descriptor: dict[str, Any] = {"family": facts.architecture}
    if _SPDX.fullmatch(facts.licence):
        descriptor["licenses"] = [facts.licence]
    config: dict[str, Any] = {"architecture": "transformer", "format": _pack_format(facts)}
    if facts.parameters:
        config["paramSize"] = _rounded(facts.parameters)
    if facts.quantization:
        config["quantization"] = facts.quantization
    config["capabilities"] = {
        "inputTypes": _INPUTS["vision"] if "vision" in facts.capabilities else ["text"],
        "outputTypes": ["embedding"] if "embedding" in facts.capabilities else ["text"],
        "reasoning": "thinking" in facts.capabilities,
        "toolUsage": "tools" in facts.capabilities,
    }
    modelfs = {"type": "layers", "diffIds": [str(layer.digest) for layer in layers]}
    return _dump({"descriptor": descriptor, "config": config, "modelfs": modelfs})


def encode_manifest(
    layers: tuple[Layer, ...],
    config: bytes,
    facts: ModelFacts,
    source: str,
    *,
    defaults: ModelDefaults = NO_DEFAULTS,
    provenance: Provenance = NO_PROVENANCE,
) -> bytes:
    """The manifest's exact bytes.

    Raises:
        InvalidName: a file name outside the grammar.
    """
    check_file_names([layer.name for layer in layers])
    annotations = {FACTS: _canonical(facts.as_dict()), SOURCE: source[:MAX_SOURCE_CHARACTERS]}
    if defaults != NO_DEFAULTS:
        annotations[DEFAULTS] = _canonical(defaults.as_dict())
    if provenance != NO_PROVENANCE:
        annotations[PROVENANCE] = _canonical(provenance.as_dict())
    return _dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": MODEL,
            "config": {"mediaType": CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [_layer(layer) for layer in layers],
            "annotations": annotations,
        }
    )


def parse_manifest(content: bytes, digest: Digest, file: Path) -> Manifest:
    """The model that a manifest describes; ``file`` is named in errors.

    Raises:
        StoreDamaged: the bytes are not those of ``digest``, or not a manifest that this product understands.
    """
    document = _document(content, digest, file)
    try:
        layers = tuple(_parsed_layer(raw) for raw in document["layers"])
        check_file_names([layer.name for layer in layers])
        config = Digest.parse(document["config"]["digest"])
        annotations = document["annotations"]
        facts = parse_facts(json.loads(annotations[FACTS]))
        source = str(annotations.get(SOURCE, ""))[:MAX_SOURCE_CHARACTERS]
        defaults = parse_defaults(json.loads(annotations[DEFAULTS])) if DEFAULTS in annotations else NO_DEFAULTS
        provenance = (
            parse_provenance(json.loads(annotations[PROVENANCE])) if PROVENANCE in annotations else NO_PROVENANCE
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, InvalidDigest, InvalidName) as error:
        raise damaged(file, "is not the manifest of a model in this product's form") from error
    return Manifest(digest, config, layers, facts, source, defaults, provenance)


@dataclass(frozen=True, slots=True)
class References:
    """What a document refers to: ``blobs`` as they are, ``documents`` that refer to more."""

    blobs: frozenset[Digest]
    documents: frozenset[Digest]


def references(content: bytes, digest: Digest, file: Path) -> References:
    """Every digest that an OCI manifest or index refers to, also of kinds this product does not know.

    Raises:
        StoreDamaged: unreadable, so what it needs is unknown.
    """
    document = _document(content, digest, file)
    try:
        blobs = [*document.get("layers", []), *document.get("blobs", [])]
        blobs += [document["config"]] if "config" in document else []
        documents = [*document.get("manifests", [])]
        documents += [document["subject"]] if "subject" in document else []
        return References(
            frozenset(Digest.parse(descriptor["digest"]) for descriptor in blobs),
            frozenset(Digest.parse(descriptor["digest"]) for descriptor in documents),
        )
    except (KeyError, TypeError, InvalidDigest) as error:
        raise damaged(file, "refers to something that is not a digest") from error


def _document(content: bytes, digest: Digest, file: Path) -> dict[str, Any]:
    if Digest.of(content) != digest:
        raise damaged(file, "is not what its digest says: it was changed")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(file, "is not JSON") from error
    if not isinstance(document, dict):
        raise damaged(file, "is not a manifest")
    return document


def _layer(layer: Layer) -> dict[str, Any]:
    kind = WEIGHT if is_weight(layer.name) else DOCUMENT if is_document(layer.name) else WEIGHT_CONFIG
    return {
        "mediaType": kind,
        "digest": str(layer.digest),
        "size": layer.size_bytes,
        "annotations": {FILE_PATH: layer.name},
    }


def _parsed_layer(raw: Mapping[str, Any]) -> Layer:
    size, name = raw["size"], raw["annotations"][FILE_PATH]
    if type(size) is not int or size < 0 or not isinstance(name, str):
        raise ValueError("not a layer")
    return Layer(name, Digest.parse(raw["digest"]), size)


def parse_facts(raw: Mapping[str, Any]) -> ModelFacts:
    """Facts from JSON that came with a model.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not facts.
    """
    facts = ModelFacts.from_dict(raw)
    for name, kind in _FACT_TYPES.items():
        value = getattr(facts, name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < _MOST):
            raise ValueError(f"{name} is of another type")
    if not all(isinstance(word, str) for word in (*facts.capabilities, *facts.chat_tokens, *facts.end_tokens)):
        raise ValueError("capabilities and tokens are words")
    return facts


def parse_defaults(raw: Any) -> ModelDefaults:
    """Defaults from JSON that came with a model; raises as ``parse_facts``."""
    found = ModelDefaults.from_dict(_object(raw))
    texts = (found.system, found.template, found.tool_call_parser, found.reasoning_parser, *found.adapters)
    texts += (found.go_template, found.requires, *_object(found.metadata).values())
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.parameters, dict):
        raise ValueError("a default is of another type")
    for message in found.messages:
        if not isinstance(message, dict) or not all(isinstance(text, str) for text in message.values()):
            raise ValueError("a message is role and content")
    json.dumps(raw, ensure_ascii=False).encode()  # halves of characters cannot be sent to any engine
    return found


def parse_provenance(raw: Any) -> Provenance:
    """Provenance from JSON that came with a model; raises as ``parse_facts``."""
    found = Provenance.from_dict(_object(raw))
    if not all(isinstance(text, str) for text in (found.base, found.base_digest, found.action, found.tool)):
        raise ValueError("a provenance is of another type")
    numbers = (found.created_unix_s, *_object(found.measured).values())
    if not all(isinstance(number, float) or (isinstance(number, int) and abs(number) < _MOST) for number in numbers):
        raise ValueError("a figure is a number")
    if not 0 <= found.created_unix_s <= _LATEST_UNIX_S:
        raise ValueError("it was made at no time that a calendar has")
    return found


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _pack_format(facts: ModelFacts) -> str:
    return "gguf" if facts.format == "gguf" else "safetensors"


def _rounded(parameters: int) -> str:
    """``134515008`` → ``135m``, ``6700000000`` → ``6.7b``, as ModelPack writes sizes."""
    for unit, scale in (("t", 10**12), ("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
