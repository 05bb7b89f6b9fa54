"""Views: what each view of the system database tells. Their text is in the migrations that make them."""

from __future__ import annotations

VIEWS = {
    "v_service_health": "Every service with its latest state and event, healthy ones too.",
    "v_model_deployments": "Every load of a model, with what is known of the model; `active` = 1 while it runs.",
    "v_slot_drift": "Every slot: what it shall serve, what it was proven to serve, and the difference in words.",
    "v_request_latency": "Answered requests per model and hour (UTC): count, p50, p95 and p99 of the whole time and of "
    "the first token; NULL where nothing was streamed.",
    "v_usage": "Requests, errors, tokens and seconds per key, model and day (UTC).",
    "v_errors": "Requests that failed, and warnings and errors among the events.",
    "v_model_capacity": "Models by size on disk and memory, largest first; memory as measured, else as estimated.",
    "v_jobs_recent": "Every job, newest first: how long it waited and ran, and which part of its bytes is done.",
}
