"""Routes: every endpoint as data. The application serves from this table; the reference pages are made from it.

``access``: who may call it (``auth.py``). ``recorded``: whether a request becomes a row of the table ``requests``.
``on_slots``: slot ports have it too. A path that ends in ``{id}`` takes everything that follows, slashes included;
an ``{id}`` in the middle is one part of the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from homelab_llm.core.jobs import STATES
from homelab_llm.gateway.auth import Access
from homelab_llm.gateway.dialects.openai import CHAT, COMPLETION, EMBEDDING
from homelab_llm.gateway.fields import Check, Duration, Either, Field, Flag, Opaque, Record, Text, Whole
from homelab_llm.gateway.job_kinds import KINDS, JobOrder


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; ``handler`` is the name of the method that serves it, ``body`` what it reads.

    ``controlled``: the method is one of ``control.Control``, else of the application. ``query``: what may follow ``?``.
    ``status``: of an answer that is no error.
    """

    methods: tuple[str, ...]
    path: str
    access: Access
    summary: str
    handler: str
    body: Check | None = None
    recorded: bool = False
    on_slots: bool = False
    controlled: bool = False
    query: tuple[tuple[str, str], ...] = ()
    status: int = 200


class SlotName:
    """A slot by its port or alias; returns text. Which slots there are is the controller's business."""

    def __call__(self, value: Any, path: str) -> str:
        return str(self._check(value, path))

    _check = Either(
        "the port or alias of a slot",
        ((lambda v: type(v) is int, Whole(0, 65535)), (lambda v: type(v) is str, Text(63, empty=False))),
    )

    def schema(self) -> dict[str, Any]:
        return self._check.schema()


_READ = ("GET", "HEAD")
_EVENTS = (
    ("after", "the id of the last event seen; what is remembered since then comes first"),
    ("kinds", "words joined by commas; other events are left out"),
    ("follow", "false: end after what is remembered"),
)
_MODEL = Field(Text(300, empty=False), "a name from /v1/models", required=True)
_SLOT = Field(SlotName(), "a port or an alias", required=True)

LOAD = Record(
    {
        "model": _MODEL,
        "keep_alive": Field(Duration(), "how long it stays loaded without requests; negative = for ever"),
    }
)
UNLOAD = Record(
    {
        "model": _MODEL,
        "force": Field(Flag(), "end its running requests with an error"),
    }
)
NOTHING = Record({})
RESTART = Record(
    {"python": Field(Text(1000, empty=False), "interpreter of the new daemon; only from the daemon's own socket")}
)
OF_MODEL = Record({"model": _MODEL})
OF_SLOT = Record({"slot": _SLOT})
SLOT_LOAD = Record(
    {
        "model": Field(Text(300, empty=False), "a model; one that is missing is pulled", required=True),
        "slot": Field(SlotName(), "a port, an alias, or auto for the first free one", required=True),
        "force": Field(Flag(), "replace what the slot serves"),
    }
)
SLOT_SWAP = Record({"slot": _SLOT, "model": _MODEL})
RECONCILE = Record({"apply": Field(Flag(), "carry the steps out")})
PIN = Record({"model": _MODEL, "pinned": Field(Flag(), "keep it loaded whatever happens", required=True)})
FIT = Record({"model": _MODEL, "context_tokens": Field(Whole(1, 2**31 - 1), "context of one request")})
EXPLAIN = Record(
    {
        "request": Field(Opaque(), "a request as it would be sent", required=True),
        "slot": Field(SlotName(), "the slot that would get it; else the front address"),
    }
)
JOB_ORDER = JobOrder()
DOWNLOAD = KINDS["pull"]
_LISTED = (
    ("state", f"{', '.join(STATES)}; several joined by commas"),
    ("kind", f"{', '.join(KINDS)}"),
    ("limit", "how many at most, the newest; 100 unless said otherwise, at most 1000"),
)
_STREAMED = (("stream", "true: one JSON line after another until it is over, as with Accept: application/x-ndjson"),)


def _post(path: str, summary: str, handler: str, body: Record) -> Route:
    """What the controller does."""
    return Route(("POST",), path, "admin", summary, handler, body, controlled=True)


ROUTES: tuple[Route, ...] = (
    Route(_READ, "/", "inference", "The product's name, as plain text.", "root"),
    Route(_READ, "/healthz", "open", "The daemon is alive.", "healthz", on_slots=True),
    Route(
        _READ,
        "/readyz",
        "inference",
        "Requests are served; 503 while the daemon stops, or the slot serves nothing.",
        "readyz",
        on_slots=True,
    ),
    Route(_READ, "/openapi.json", "inference", "This table as an OpenAPI document.", "openapi_json"),
    Route(
        _READ,
        "/v1/models",
        "inference",
        "The models of the store and the aliases that serve; on a slot port its model.",
        "models",
        on_slots=True,
    ),
    Route(_READ, "/v1/models/{id}", "inference", "One model.", "model", on_slots=True),
    Route(
        ("POST",),
        "/v1/chat/completions",
        "inference",
        "Answer a conversation; loads the model when needed.",
        "chat",
        CHAT,
        recorded=True,
        on_slots=True,
    ),
    Route(
        ("POST",),
        "/v1/completions",
        "inference",
        "Continue a text.",
        "completion",
        COMPLETION,
        recorded=True,
        on_slots=True,
    ),
    Route(
        ("POST",), "/v1/embeddings", "inference", "Embed texts.", "embedding", EMBEDDING, recorded=True, on_slots=True
    ),
    Route(_READ, "/admin/status", "admin", "Daemon, listeners, memory, workers, warnings.", "admin_status"),
    Route(_READ, "/admin/models", "admin", "The loaded models.", "admin_models"),
    Route(("POST",), "/admin/models/load", "admin", "Load a model; progress as JSON lines.", "admin_load", LOAD),
    Route(
        ("POST",), "/admin/models/unload", "admin", "Unload a model; waits until it is gone.", "admin_unload", UNLOAD
    ),
    _post("/admin/models/pin", "Keep a model loaded, or no longer.", "pin", PIN),
    _post("/admin/models/unquarantine", "Try a model again that failed too often.", "unquarantine", OF_MODEL),
    Route(_READ, "/admin/slots", "admin", "Every slot: desired, actual, drift.", "slots", controlled=True),
    _post("/admin/slots/load", "Load a model into a slot; progress as JSON lines.", "load", SLOT_LOAD),
    _post("/admin/slots/swap", "Swap a slot's model without a failed request.", "swap", SLOT_SWAP),
    _post("/admin/slots/unload", "Empty a slot; waits until the model is gone.", "unload", OF_SLOT),
    _post("/admin/slots/unload-all", "Empty every slot.", "unload_all", NOTHING),
    _post("/admin/slots/adopt", "Take over the server of another origin on a slot's port.", "adopt", OF_SLOT),
    _post("/admin/reconcile", "What brings the slots in line with the registry.", "reconcile", RECONCILE),
    _post("/admin/verify", "Whether every slot serves what it shall.", "verify", NOTHING),
    _post("/admin/fit", "Whether and how a model fits into memory.", "fit", FIT),
    _post("/admin/explain", "Where a request would go and why.", "explain", EXPLAIN),
    _post("/admin/registry/refresh", "Read the registry again.", "refresh", NOTHING),
    Route(
        ("POST",),
        "/admin/models/download",
        "admin",
        "Fetch a model as a job; the same download that still runs is joined.",
        "download",
        DOWNLOAD,
        status=202,
    ),
    Route(("GET",), "/admin/models/downloads", "admin", "The downloads, newest first.", "downloads", query=_LISTED),
    Route(("DELETE",), "/admin/models/download/{id}", "admin", "Call a download off.", "job_cancel"),
    Route(
        ("GET",),
        "/admin/models/download/{id}/progress",
        "admin",
        "How far a download is, once or as it goes on.",
        "job_progress",
        query=_STREAMED,
    ),
    Route(("POST",), "/admin/models/download/{id}/cancel", "admin", "Call a download off.", "job_cancel"),
    Route(
        ("POST",),
        "/admin/jobs",
        "admin",
        "Ask for long work on models; the same work that still runs is joined.",
        "job_submit",
        JOB_ORDER,
        status=202,
    ),
    Route(("GET",), "/admin/jobs", "admin", "The jobs, newest first.", "job_list", query=_LISTED),
    Route(("GET",), "/admin/jobs/{id}", "admin", "One job.", "job_show"),
    Route(
        ("GET",),
        "/admin/jobs/{id}/progress",
        "admin",
        "How far a job is, once or as it goes on.",
        "job_progress",
        query=_STREAMED,
    ),
    Route(("POST",), "/admin/jobs/{id}/cancel", "admin", "Call a job off; its program has ended then.", "job_cancel"),
    Route(("GET",), "/admin/events", "admin", "What happens, as server-sent events.", "admin_events", query=_EVENTS),
    Route(
        ("POST",),
        "/admin/restart",
        "admin",
        "Hand over to a new daemon; nothing is unloaded.",
        "admin_restart",
        RESTART,
    ),
    Route(("POST",), "/admin/shutdown", "admin", "End the daemon in order.", "admin_shutdown", status=202),
)
