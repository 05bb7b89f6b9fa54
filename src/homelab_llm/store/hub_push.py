"""Push to Hugging Face's hub: a repository with the model's own files, and a model card where there is none.

The hub's own client library speaks the upload protocol (LFS, several parts, retries); what a file's SHA-256 is, it is
told and does not find out again. Files the hub has are not sent again. Credentials go to the hub only.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import (
    HomelabError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    UnsupportedRequest,
)
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.progress import JobProgress, Progress

_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class HubPush:
    """What was pushed. ``sent_bytes`` counts file content that travelled; ``commit`` is what to pin."""

    repo_id: str
    commit: str
    url: str
    files: int
    sent_bytes: int


def push_to_hub(
    model: StoredModel,
    repo_id: str,
    *,
    revision: str = "main",
    private: bool = False,
    endpoint: str,
    token: str,
    progress: Callable[[JobProgress], None] | None = None,
) -> HubPush:
    """Create the repository where it is missing and commit the model's files to it; blocks.

    Args:
        repo_id: ``org/name``; a private repository only if it is made now and ``private``.
        revision: a branch that exists, or ``main``.
        progress: what it raises ends the push; what was uploaded is not sent again by the next one.

    Raises:
        UnsupportedRequest: the client library of the hub is not installed.
        SourceDenied, SourceNotFound, SourceUnavailable: the hub's answer; denied also where there is no token.
    """
    if not token:
        raise SourceDenied("pushing to the hub needs a token", hint="mlxctl login huggingface.co")
    api, operation = _library(endpoint, token)
    report = Progress(progress or (lambda _: None), doing="uploading")
    files = {hub_name(name, model, repo_id): path for name, path in model.files.items()}
    report.total([path.stat().st_size for path in files.values()])
    meter = _Meter(report)
    report.stage("uploading")
    with _translated(meter), ExitStack() as opened:
        operations: list[Any] = []
        for name, path in files.items():
            operations.append(added := operation(name, path))
            added.upload_info.sha256 = bytes.fromhex(path.name)  # the store knows it: the file is read once only
            added.path_or_fileobj = opened.enter_context(_Counted(path, meter))
        if _CARD not in files:
            operations.append(operation(_CARD, model_card(model).encode()))
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        done = api.create_commit(
            repo_id, operations, commit_message=f"Push {model.name}", revision=revision, repo_type="model"
        )
    report.stage("done")
    return HubPush(repo_id, str(done.oid), str(done.commit_url), len(operations), meter.sent_bytes)


def hub_name(name: str, model: StoredModel, repo_id: str) -> str:
    """How a file is called on the hub: a GGUF file by its repository and quantization, all others as they are."""
    if not name.startswith("model") or not name.endswith(".gguf") or "/" in name:
        return name
    stem = repo_id.rpartition("/")[2].removesuffix("-GGUF").removesuffix("-gguf")
    quantization = f"-{model.facts.quantization}" if model.facts.quantization else ""
    return f"{stem}{quantization}{name.removeprefix('model').removesuffix('.gguf')}.gguf"


def model_card(model: StoredModel) -> str:
    """A short README for a model that has none: what is known, as the hub's front matter and in words."""
    facts, made = model.facts, model.provenance
    front: dict[str, str] = {}
    if facts.licence and facts.licence.isprintable():
        front["license"] = facts.licence
    base = (made.base if made.base.startswith("hf:") else model.source).removeprefix("hf:")
    if model.source.startswith("hf:") or made.base.startswith("hf:"):
        front["base_model"] = base.partition("@")[0].partition("#")[0]
    front["library_name"] = {"gguf": "gguf", "mlx": "mlx"}.get(facts.format, "transformers")
    lines = ["---", *(f"{key}: {value}" for key, value in front.items()), "---", "", f"# {model.name}", ""]
    lines += [f"- architecture: {facts.architecture}", f"- format: {facts.format} {facts.quantization}".rstrip()]
    if facts.parameters:
        lines.append(f"- parameters: {facts.parameters:,}")
    if facts.context_tokens:
        lines.append(f"- context: {facts.context_tokens:,} tokens")
    if made.action:
        lines.append(f"- made by: {made.action} of {made.base or model.source} ({made.tool})")
    lines += [f"- {name.replace('_', ' ')}: {value:g}" for name, value in made.measured.items()]
    return "\n".join(lines) + "\n"


class _Meter:
    """Counts what is sent, from several threads, and keeps what ``progress`` raised."""

    def __init__(self, report: Progress) -> None:
        self._report, self._lock = report, threading.Lock()
        self.sent_bytes = 0
        self.stopped: BaseException | None = None

    def add(self, count: int) -> None:
        with self._lock:
            if self.stopped is None:
                self.sent_bytes += count
                try:
                    self._report.bytes(self.sent_bytes)
                except BaseException as error:
                    self.stopped = error
                    raise
            else:
                raise self.stopped


class _Counted(io.BufferedReader):
    """A file whose reads are counted; the library reads it once, to send it."""

    def __init__(self, path: Path, meter: _Meter) -> None:
        super().__init__(io.FileIO(path))
        self._meter = meter

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._meter.add(len(data))
        return data


def _library(endpoint: str, token: str) -> tuple[Any, Any]:
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils.logging import set_verbosity_error
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise UnsupportedRequest(
            "pushing to the hub needs its client library", hint="pip install 'homelab-llm[hub]'"
        ) from error
    disable_progress_bars()
    # It warns that open files go by LFS: they do so that their progress is seen.
    set_verbosity_error()  # type: ignore[no-untyped-call]
    return HfApi(endpoint=endpoint, token=token, library_name="homelab-llm"), CommitOperationAdd


@contextmanager
def _translated(meter: _Meter) -> Iterator[None]:
    """The library's errors as ours; what ``progress`` raised comes out as it was."""
    import httpx2
    from huggingface_hub import close_session
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error.response) from error
    except (httpx2.HTTPError, ValueError, RuntimeError, OSError) as error:
        if meter.stopped is not None:
            raise meter.stopped from None
        raise SourceUnavailable(
            f"the hub did not take the push: {type(error).__name__}: {str(error)[:160]}",
            hint="run the same command again; files that arrived are not sent again",
        ) from error
    finally:
        close_session()  # the library keeps its connections for the life of the process


def _refusal(response: Any) -> HomelabError:
    status = getattr(response, "status_code", 0)
    headers: Mapping[str, str] = getattr(response, "headers", {})
    reason = headers.get("x-error-message", "")[:200]
    said = f" ({reason})" if reason.isprintable() and reason else ""
    if status in {401, 403}:
        return SourceDenied(
            f"the hub refuses the push{said}",
            hint="use a token that may write: mlxctl login huggingface.co",
            status=status,
        )
    if status == 404:
        return SourceNotFound(f"the hub has no such repository or branch{said}", status=status)
    return SourceUnavailable(f"the hub answered {status}{said}", hint="run the same command again", status=status)
