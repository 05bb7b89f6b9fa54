"""Errors at the front door: which HTTP status and which OpenAI type every error of ``core.errors`` gets.

The body is OpenAI's shape with our facts beside it::

    {"error": {"message": …, "type": …, "param": …, "code": …, "hint": …, "retryable": …, "facts": {…}}}
"""

from __future__ import annotations

import math
from typing import Any

from homelab_llm.core import errors
from homelab_llm.core.errors import Fact, HomelabError

CLIENT_CLOSED = 499
DEFAULT_RETRY_S = 2

STATUSES: dict[type[HomelabError], int] = {
    errors.HomelabError: 500,
    errors.InvalidInput: 400,
    errors.InvalidName: 400,
    errors.InvalidDigest: 400,
    errors.InvalidSettings: 400,
    errors.UnknownField: 400,
    errors.BodyTooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.ContextOverflow: 400,
    errors.UnsupportedRequest: 400,
    errors.RegistryInvalid: 400,
    errors.RegistryTooNew: 400,
    errors.BadModelFile: 422,
    errors.UnsafeModel: 422,
    errors.NotRegularFile: 422,
    errors.BadManifest: 422,
    errors.InvalidModelSpec: 400,
    errors.InvalidTemplate: 422,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.EndpointNotFound: 404,
    errors.SourceNotFound: 404,
    errors.KeyNotFound: 404,
    errors.SlotNotFound: 404,
    errors.ModelNotRegistered: 404,
    errors.JobNotFound: 404,
    errors.Denied: 403,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.SourceDenied: 403,
    errors.ListenRefused: 403,
    errors.Conflict: 409,
    errors.ModelInUse: 409,
    errors.AlreadyExists: 409,
    errors.DaemonRunning: 409,
    errors.PortTaken: 409,
    errors.StoreBusy: 503,
    errors.SlotInUse: 409,
    errors.VersionMismatch: 409,
    errors.SchemaTooNew: 409,
    errors.Exhausted: 503,
    errors.QueueFull: 503,
    errors.SlotEmpty: 503,
    errors.InsufficientMemory: 507,
    errors.DiskFull: 507,
    errors.EngineError: 502,
    errors.EngineUnavailable: 501,
    errors.LoadFailed: 502,
    errors.WorkerCrashed: 502,
    errors.WorkerOutOfMemory: 502,
    errors.WorkerStalled: 504,
    errors.EngineReplyInvalid: 502,
    errors.ModelQuarantined: 503,
    errors.TransferError: 502,
    errors.SourceUnavailable: 502,
    errors.DigestMismatch: 502,
    errors.DaemonUnavailable: 503,
    errors.HandedOver: 503,
    errors.HostUnavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: CLIENT_CLOSED,
    errors.DatabaseUnavailable: 503,
    errors.InternalError: 500,
    errors.StoreDamaged: 500,
    errors.ModelDamaged: 500,
    errors.JobFailed: 500,
}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def status_of(error: HomelabError | type[HomelabError]) -> int:
    """The HTTP status of an error, or of a class; a class that is not listed has its nearest parent's.

    Facts refine it: a bound that is not one of bytes (nesting, a list) is a plain 400, one on the headers 431, and
    a path that exists with other methods is 405.
    """
    cls = error if isinstance(error, type) else type(error)
    status = next(STATUSES[parent] for parent in cls.__mro__ if parent in STATUSES)
    if isinstance(error, HomelabError):
        if status == 413 and "limit_bytes" not in error.facts:
            return 400
        if status == 413 and error.facts.get("field") == "headers":
            return 431
        if cls is errors.EndpointNotFound and "allowed" in error.facts:
            return 405
    return status


def type_of(status: int) -> str:
    """OpenAI's ``error.type`` for a status."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def body_of(error: HomelabError) -> dict[str, Any]:
    """The error as a client gets it; ``param`` is the field at fault where there is one."""
    return {
        "error": {
            "message": error.message,
            "type": type_of(status_of(error)),
            "param": error.facts.get("field"),
            "code": error.code,
            "hint": error.hint,
            "retryable": error.retryable,
            "facts": dict(error.facts),
        }
    }


def headers_of(error: HomelabError) -> list[tuple[bytes, bytes]]:
    """Headers an error adds: ``Retry-After`` where waiting helps, and what OpenAI's clients read to retry or not."""
    status = status_of(error)
    headers: list[tuple[bytes, bytes]] = []
    if status in {429, 503}:
        headers.append((b"retry-after", b"%d" % _retry_s(error.facts.get("retry_after_s"))))
    if status >= 500 or status == 409:
        headers.append((b"x-should-retry", b"true" if error.retryable else b"false"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 405:
        headers.append((b"allow", str(error.facts["allowed"]).encode("latin-1", "replace")))
    return headers


def _retry_s(told: Fact) -> int:
    if isinstance(told, int | float) and math.isfinite(told):
        return min(max(1, math.ceil(told)), 3600)
    return DEFAULT_RETRY_S
