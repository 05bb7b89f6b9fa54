"""What a push did, wherever it went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did. ``sent_bytes`` is the content that went out, also what went out twice after a cut.

    ``replaced`` is the digest that the name meant before there; empty when it is new or means the same. Blobs are
    counted for registries only; ``url`` is where a person can look at it, if there is such a place.
    """

    model: str
    target: str
    digest: str
    total_bytes: int
    sent_bytes: int = 0
    sent_blobs: int = 0
    mounted_blobs: int = 0
    present_blobs: int = 0
    replaced: str = ""
    url: str = ""
