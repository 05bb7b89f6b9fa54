"""The base of a ModelSpec with the weights it asks for: made once, under a name of its own, and then found there."""

from __future__ import annotations

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef, tag_of
from homelab_llm.ops.conversion.convert import ConversionOptions, Report, convert
from homelab_llm.ops.conversion.plan import target_of
from homelab_llm.store.model_store import ModelStore


def quantized_base(store: ModelStore, name: str, kind: str, progress: Report | None = None) -> StoredModel:
    """``smollm2:f16`` as ``q4_0`` is ``smollm2:f16-q4_0``; it stays in the store, and other models share its blobs.

    Raises:
        As ``convert``.
    """
    base, kind = store.resolve(name), kind.lower()
    ref = ModelRef.parse(base.name)
    ref = ModelRef(ref.repository, tag_of(f"{ref.tag}-{kind}"))
    for model in store.models():
        if model.name == str(ref) and model.provenance.base_digest == str(base.digest):
            return model
    return convert(store, name, to=target_of(kind), ref=ref, options=ConversionOptions(kind), progress=progress)
