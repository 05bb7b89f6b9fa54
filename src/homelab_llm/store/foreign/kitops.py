"""KitOps model kits: tar layers with paths as in the kit's folder; the configuration is the Kitfile in JSON.

Source: kitops-ml/kitops, ``pkg/lib/constants/mediatypes`` and the Kitfile's description.
"""

from __future__ import annotations

import re

from homelab_llm.store.foreign.documents import ForeignManifest, read_object
from homelab_llm.store.foreign.modelpack import compression_of, unknown
from homelab_llm.store.foreign.outline import Archive, Gathering, Outline

_CONFIG = re.compile(r"application/vnd\.kitops\.modelkit\.config\.v1\+json")
_LAYER = re.compile(
    r"application/vnd\.kitops\.modelkit\.(?P<kind>model|modelpart|dataset|code|docs)\.v1\.(?P<form>tar(?:\+\w{1,10})?)"
)
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def knows(manifest: ForeignManifest) -> bool:
    """Whether it is a kit."""
    return bool(_CONFIG.fullmatch(manifest.config.media_type))


def outline(manifest: ForeignManifest, config: bytes) -> Outline:
    """The model, its parts and documents; no code, no data sets.

    Raises:
        BadManifest: a layer of an unknown kind, or a Kitfile that cannot be read.
    """
    found = Gathering("KitOps")
    for layer in manifest.layers:
        match = _LAYER.fullmatch(layer.media_type)
        if match is None:
            raise unknown(layer)
        if match["kind"] in {"code", "dataset"}:
            found.notes.append(f"{match['kind']} of the kit was left out")
        else:
            found.archives.append(Archive(layer, compression_of(match["form"])))
    return found.outline(licence=_licence(config))


def _licence(config: bytes) -> str:
    kitfile = read_object(config, "the Kitfile")
    for section in ("model", "package"):
        told = kitfile.get(section)
        licence = told.get("license") if isinstance(told, dict) else None
        if isinstance(licence, str) and _SPDX.fullmatch(licence):
            return licence
    return ""
