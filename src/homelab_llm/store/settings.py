"""What moving models needs to know: the settings of ``store``, and where the rest is looked up."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homelab_llm.core.http import HttpLimits

if TYPE_CHECKING:
    from homelab_llm.core.settings import StoreSettings

DEFAULT_HUB = "https://huggingface.co"
DEFAULT_OLLAMA = "https://registry.ollama.ai"


def this_is_apple() -> bool:
    """Whether this machine is Apple silicon."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


@dataclass(frozen=True, slots=True)
class PullSettings:
    """What moving models needs to know; all but the last four are settings of ``store``.

    ``environ`` is where proxies, the hub's token and pip's configuration are looked up. ``HF_ENDPOINT`` there
    counts unless another hub was set here. ``backoff_s`` is the first pause after a cut; it doubles.
    """

    hf_endpoint: str = DEFAULT_HUB
    free_floor_bytes: int = 2 * 10**9
    allow_private_hosts: bool = False
    ollama_registry: str = DEFAULT_OLLAMA
    registries: tuple[str, ...] = ()
    connections_per_host: int = 8
    rate_limit_bytes_per_s: int = 0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    apple: bool = field(default_factory=this_is_apple)
    limits: HttpLimits = field(default_factory=HttpLimits)
    backoff_s: float = 0.5

    @classmethod
    def of(cls, settings: StoreSettings) -> PullSettings:
        """As the operator set them."""
        return cls(
            hf_endpoint=settings.hf_endpoint,
            free_floor_bytes=settings.free_floor_bytes,
            allow_private_hosts=settings.allow_private_hosts,
            ollama_registry=settings.ollama_registry,
            registries=tuple(settings.registries),
            connections_per_host=settings.connections_per_host,
            rate_limit_bytes_per_s=settings.rate_limit_bytes_per_s,
        )

    @property
    def hub(self) -> str:
        """The base URL of the hub."""
        own = self.environ.get("HF_ENDPOINT", "") if self.hf_endpoint.rstrip("/") == DEFAULT_HUB else ""
        return (own or self.hf_endpoint).rstrip("/")
