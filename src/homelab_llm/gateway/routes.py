"""Routes: every endpoint as data. The application serves from this table; the reference pages are made from it.

``access``: who may call it (``auth.py``). ``recorded``: whether a request becomes a row of the request log.
A path that ends in ``{id}`` takes everything that follows, slashes included.
"""

from __future__ import annotations

from dataclasses import dataclass

from homelab_llm.gateway.auth import Access
from homelab_llm.gateway.dialects.openai import CHAT, COMPLETION, EMBEDDING
from homelab_llm.gateway.fields import Duration, Field, Flag, Record, Text


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; ``handler`` is the name of the method that serves it, ``body`` what it reads."""

    methods: tuple[str, ...]
    path: str
    access: Access
    summary: str
    handler: str
    body: Record | None = None
    recorded: bool = False


_READ = ("GET", "HEAD")

LOAD = Record(
    {
        "model": Field(Text(300, empty=False), "a name from /v1/models", required=True),
        "keep_alive": Field(Duration(), "how long it stays loaded without requests; negative = for ever"),
    }
)
UNLOAD = Record(
    {
        "model": Field(Text(300, empty=False), "a name from /v1/models", required=True),
        "force": Field(Flag(), "end its running requests with an error"),
    }
)

ROUTES: tuple[Route, ...] = (
    Route(_READ, "/", "inference", "The product's name, as plain text.", "root"),
    Route(_READ, "/healthz", "open", "The daemon is alive.", "healthz"),
    Route(_READ, "/readyz", "inference", "The daemon takes requests; 503 while it stops.", "readyz"),
    Route(_READ, "/openapi.json", "inference", "This table as an OpenAPI document.", "openapi_json"),
    Route(_READ, "/v1/models", "inference", "The models of the store.", "models"),
    Route(_READ, "/v1/models/{id}", "inference", "One model.", "model"),
    Route(
        ("POST",),
        "/v1/chat/completions",
        "inference",
        "Answer a conversation; loads the model when needed.",
        "chat",
        CHAT,
        recorded=True,
    ),
    Route(("POST",), "/v1/completions", "inference", "Continue a text.", "completion", COMPLETION, recorded=True),
    Route(("POST",), "/v1/embeddings", "inference", "Embed texts.", "embedding", EMBEDDING, recorded=True),
    Route(_READ, "/admin/status", "admin", "Daemon, listeners, memory, workers, warnings.", "admin_status"),
    Route(_READ, "/admin/models", "admin", "The loaded models.", "admin_models"),
    Route(("POST",), "/admin/models/load", "admin", "Load a model; progress as JSON lines.", "admin_load", LOAD),
    Route(
        ("POST",), "/admin/models/unload", "admin", "Unload a model; waits until it is gone.", "admin_unload", UNLOAD
    ),
    Route(("POST",), "/admin/shutdown", "admin", "End the daemon in order.", "admin_shutdown"),
)
