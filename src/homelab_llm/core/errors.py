"""The one error tree of the product.

Every error carries a stable ``code``, whether a retry can help, a ``hint`` (the next command or step)
and typed ``facts`` (numbers and names a program may read). HTTP statuses live in the gateway, exit codes
in the command line; a test walks this tree and fails when a class is mapped in neither.

    HomelabError
    ├── InvalidInput                 what was sent cannot be used
    │   ├── InvalidName  InvalidDigest  InvalidSettings  UnknownField
    │   ├── BodyTooLarge  UnsupportedEncoding  ContextOverflow  UnsupportedRequest
    │   ├── RegistryInvalid  RegistryTooNew
    │   ├── BadModelFile  UnsafeModel  NotRegularFile
    │   └── BadManifest  InvalidModelSpec  InvalidTemplate
    ├── NotFound                     ModelNotFound  EndpointNotFound  SourceNotFound  KeyNotFound
    │                                SlotNotFound  ModelNotRegistered  JobNotFound
    ├── Denied                       Unauthorized  Forbidden  SourceDenied  ListenRefused
    ├── Conflict                     ModelInUse  AlreadyExists  DaemonRunning  PortTaken  StoreBusy
    │                                SlotInUse  VersionMismatch  SchemaTooNew
    ├── Exhausted                    QueueFull  InsufficientMemory  DiskFull  SlotEmpty
    ├── EngineError                  EngineUnavailable  LoadFailed  WorkerCrashed  WorkerOutOfMemory
    │                                WorkerStalled  EngineReplyInvalid  ModelQuarantined
    ├── TransferError                SourceUnavailable  DigestMismatch
    ├── DaemonUnavailable            HandedOver  HostUnavailable
    ├── DeadlineExceeded  Cancelled
    ├── DatabaseUnavailable
    └── InternalError                StoreDamaged  ModelDamaged  JobFailed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

Fact: TypeAlias = "str | int | float | bool | list[str] | None"


class HomelabError(Exception):
    """Base of everything this product raises on purpose.

    Args:
        message: one sentence for a person; no stack trace, no secret, no path the caller did not name.
        hint: the next command or step, or empty.
        facts: values a program may read; units are in the names (``needed_bytes``).
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts: dict[str, Fact] = {k: v for k, v in facts.items() if v is not None}

    def as_dict(self) -> dict[str, Fact | dict[str, Fact]]:
        """The error as data: what ``--json`` prints and what a worker writes into its exit file."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
            "facts": dict(self.facts),
        }


class InvalidInput(HomelabError):
    """A value that was sent cannot be used; ``facts["field"]`` names it where there is one."""

    code = "invalid_input"


class InvalidName(InvalidInput):
    """A model name, tag, alias or key name outside the grammar of ``core.names``."""

    code = "invalid_name"


class InvalidDigest(InvalidInput):
    """Not ``sha256:`` and 64 lower-case hex digits."""

    code = "invalid_digest"


class InvalidSettings(InvalidInput):
    """A setting is unknown or out of range; facts: ``file``, ``line``, ``key``."""

    code = "invalid_settings"


class UnknownField(InvalidInput):
    """A request carries a field this endpoint does not know; facts: ``field``, ``closest``."""

    code = "unknown_field"


class BodyTooLarge(InvalidInput):
    """A body, header block, nesting depth or list beyond its bound; facts: ``limit``."""

    code = "body_too_large"


class UnsupportedEncoding(InvalidInput):
    """A content type or content encoding the endpoint does not read."""

    code = "unsupported_encoding"


class ContextOverflow(InvalidInput):
    """The prompt is longer than the context; facts: ``prompt_tokens``, ``context_tokens``. Never cut silently."""

    code = "context_overflow"


class UnsupportedRequest(InvalidInput):
    """Well formed, but this model or engine cannot do it (for example embeddings on a chat model)."""

    code = "unsupported_request"


class BadModelFile(InvalidInput):
    """A model file contradicts itself: truncated, extended, zeroed, lengths that lie."""

    code = "bad_model_file"


class UnsafeModel(InvalidInput):
    """The model would run code: pickle files, ``auto_map``, remote code."""

    code = "unsafe_model"


class NotRegularFile(InvalidInput):
    """A FIFO, device, socket or symbolic link where a plain file is needed."""

    code = "not_regular_file"


class BadManifest(InvalidInput):
    """A registry's manifest cannot be a model's: wrong, huge, recursive, or of a kind that is not read here."""

    code = "bad_manifest"


class InvalidModelSpec(InvalidInput):
    """A ModelSpec or Modelfile cannot be used; facts: ``line`` and ``field`` where known. Nothing was written."""

    code = "invalid_model_spec"


class InvalidTemplate(InvalidInput):
    """A chat template does not parse, reaches for what it may not, or takes too long or writes too much."""

    code = "invalid_template"


class RegistryInvalid(InvalidInput):
    """A registry document that cannot be used; facts: ``field``, ``line`` where known. Nothing was changed."""

    code = "registry_invalid"


class RegistryTooNew(RegistryInvalid):
    """A registry document of a newer version; facts: ``version``."""

    code = "registry_too_new"


class NotFound(HomelabError):
    """Something named does not exist."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No such model in the store; facts: ``model``, ``closest`` (list)."""

    code = "model_not_found"


class EndpointNotFound(NotFound):
    """No such path, or not with this method."""

    code = "endpoint_not_found"


class SourceNotFound(NotFound):
    """The source answered that the repository, revision, file or package does not exist."""

    code = "source_not_found"


class KeyNotFound(NotFound):
    """No API key of that name or id."""

    code = "key_not_found"


class SlotNotFound(NotFound):
    """No slot of that port or alias on this node."""

    code = "slot_not_found"


class ModelNotRegistered(NotFound):
    """The registry has no such entry."""

    code = "model_not_registered"


class JobNotFound(NotFound):
    """No job of that id."""

    code = "job_not_found"


class Denied(HomelabError):
    """Understood, and refused."""

    code = "denied"


class Unauthorized(Denied):
    """No key, or a wrong one."""

    code = "unauthorized"


class Forbidden(Denied):
    """The caller may not do this: foreign Host or Origin, or a key without the scope."""

    code = "forbidden"


class SourceDenied(Denied):
    """The source wants a token, or this token may not read the (gated) model."""

    code = "source_denied"


class ListenRefused(Denied):
    """Listening beyond loopback without an API key; the hint creates one."""

    code = "listen_refused"


class Conflict(HomelabError):
    """The state of things does not allow it now."""

    code = "conflict"


class ModelInUse(Conflict):
    """The model is loaded or being pulled; stop it first."""

    code = "model_in_use"


class AlreadyExists(Conflict):
    """The name is taken."""

    code = "already_exists"


class DaemonRunning(Conflict):
    """Another daemon owns this home; facts: ``pid``."""

    code = "daemon_running"


class PortTaken(Conflict):
    """A listening address is held by another process; facts: ``address``, ``pid``."""

    code = "port_taken"


class StoreBusy(Conflict):
    """Another process holds the lock longer than the wait allowed."""

    code = "store_busy"
    retryable = True


class SlotInUse(Conflict):
    """The port serves another model, or the model is on another port; facts: ``port``, ``model``."""

    code = "slot_in_use"


class VersionMismatch(Conflict):
    """The other machine runs another version; facts: ``here``, ``there``."""

    code = "version_mismatch"


class SchemaTooNew(Conflict):
    """The database was written by a newer version of this product; facts: ``found``, ``known``."""

    code = "schema_too_new"


class Exhausted(HomelabError):
    """A bounded resource is used up."""

    code = "exhausted"
    retryable = True


class QueueFull(Exhausted):
    """Too many requests wait; facts: ``queue_length``, ``retry_after_s``."""

    code = "queue_full"


class InsufficientMemory(Exhausted):
    """The model does not fit; facts: ``needed_bytes``, ``free_bytes``, ``budget_bytes``."""

    code = "insufficient_memory"
    retryable = False


class DiskFull(Exhausted):
    """No room on the disk; facts: ``needed_bytes``, ``free_bytes``."""

    code = "disk_full"
    retryable = False


class SlotEmpty(Exhausted):
    """The slot serves no model; the hint fills it. Facts: ``port``, ``alias``."""

    code = "slot_empty"


class EngineError(HomelabError):
    """An engine or its worker failed."""

    code = "engine_error"


class EngineUnavailable(EngineError):
    """No installed engine runs this model; the hint says what to install."""

    code = "engine_unavailable"


class LoadFailed(EngineError):
    """The worker ended or never became ready while loading; facts: ``exit_code``, ``signal``, ``log``."""

    code = "load_failed"


class WorkerCrashed(EngineError):
    """The worker ended while it served; facts: ``exit_code``, ``signal``, ``log``."""

    code = "worker_crashed"
    retryable = True


class WorkerOutOfMemory(EngineError):
    """The worker ran out of memory, or the system killed it for that."""

    code = "worker_out_of_memory"
    retryable = True


class WorkerStalled(EngineError):
    """The worker gave no sign of life within the time limit; facts: ``waited_s``."""

    code = "worker_stalled"
    retryable = True


class EngineReplyInvalid(EngineError):
    """The engine answered something that is not its protocol."""

    code = "engine_reply_invalid"


class ModelQuarantined(EngineError):
    """The model failed several times in a row and is not tried again; facts: ``model``, ``failures``, ``reason``."""

    code = "model_quarantined"


class TransferError(HomelabError):
    """Bytes from outside did not arrive as promised."""

    code = "transfer_error"
    retryable = True


class SourceUnavailable(TransferError):
    """Network, DNS, TLS or 5xx; what was received is kept and the same command resumes."""

    code = "source_unavailable"


class DigestMismatch(TransferError):
    """The bytes are not those promised; facts: ``expected``, ``actual``. They were discarded."""

    code = "digest_mismatch"


class DaemonUnavailable(HomelabError):
    """No daemon answers on the socket of this home."""

    code = "daemon_unavailable"
    retryable = True


class HandedOver(DaemonUnavailable):
    """The daemon hands over to a new one; the gateway passes the request on, so that no client sees this."""

    code = "handed_over"


class HostUnavailable(DaemonUnavailable):
    """The other machine could not be reached over ssh; facts: ``host``."""

    code = "host_unavailable"


class DeadlineExceeded(HomelabError):
    """A request or step took longer than its limit; facts: ``limit_s``."""

    code = "deadline_exceeded"
    retryable = True


class Cancelled(HomelabError):
    """The caller withdrew."""

    code = "cancelled"


class DatabaseUnavailable(HomelabError):
    """The system database cannot be opened, read or written."""

    code = "database_unavailable"
    retryable = True


class InternalError(HomelabError):
    """A defect of this product; the log has the details under the request id."""

    code = "internal_error"


class StoreDamaged(InternalError):
    """A file of the store was lost or changed by something else; facts: ``file``. Nothing was overwritten."""

    code = "store_damaged"


class ModelDamaged(InternalError):
    """Content of a model is not what its digests say; facts: ``model``, ``files`` (list). It is not loaded."""

    code = "model_damaged"


class JobFailed(InternalError):
    """The program that did a job ended without a result; facts: ``signal`` or ``exit_code``."""

    code = "job_failed"


def error_classes() -> list[type[HomelabError]]:
    """Every class of the tree, root first, in definition order."""
    found: list[type[HomelabError]] = [HomelabError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return found


def error_of(found: Mapping[str, Any]) -> HomelabError:
    """The inverse of ``HomelabError.as_dict``; an unknown code becomes the root class.

    Args:
        found: an object another process of this product wrote; texts and facts are taken as they are.
    """
    by_code = {cls.code: cls for cls in error_classes()}
    facts = found.get("facts")
    cls = by_code.get(str(found.get("code")), HomelabError)
    error = cls(str(found.get("message", "no reason was given")), hint=str(found.get("hint") or ""))
    if isinstance(facts, Mapping):
        error.facts.update(facts)
    return error
