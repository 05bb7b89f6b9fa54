"""Push: a model of the store, byte for byte, to where others can pull it. The digest there is the digest here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from homelab_llm.core.errors import InvalidInput, ModelDamaged, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.progress import JobProgress, Progress
from homelab_llm.store.push_report import PushReport
from homelab_llm.store.references import HubReference, OciReference, parse
from homelab_llm.store.settings import PullSettings

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

__all__ = ["FAILPOINTS", "JobProgress", "PullSettings", "PushReport", "push"]

FAILPOINTS = (
    "push.resolved",
    "push.blob.asked",
    "push.blob.mounted",
    "push.upload.started",
    "push.upload.recorded",
    "push.chunk.sent",
    "push.chunk.recorded",
    "push.upload.finished",
    "push.blob.sent",
    "push.manifest.next",
    "push.manifest.sent",
    "push.noted",
)
"""Every failpoint of a push; those of ``push.upload`` and ``push.chunk`` are in the process that sends large blobs."""


def push(
    store: ModelStore,
    name: str,
    target: str,
    *,
    settings: PullSettings | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> PushReport:
    """Bring a model to ``target``; blocks. What is there already is not sent again, an interrupted push goes on.

    A tag that exists there is moved; the report says from where. Nothing there means the model before all of it is.

    Args:
        target: ``oci://host[:port]/name[:tag]``, or ``hf:org/name[@branch]``.
        progress: called often, from this thread; what it raises (or KeyboardInterrupt) ends the push. Large blobs end
            their chunk first, in a process of their own.

    Raises:
        InvalidInput, ModelNotFound: target or name.
        ModelDamaged: a file here is not what its digest says; it was not sent.
        SourceDenied: no credentials, or the registry does not take it. SourceUnavailable: run it again to continue.
    """
    reference = parse(target)
    settings, report = settings or PullSettings(), Progress(progress or (lambda _: None), doing="uploading")
    if isinstance(reference, OciReference):
        from homelab_llm.store.oci.push import push_to_registry

        return push_to_registry(store, find_to_push(store, name), reference, settings, report)
    if isinstance(reference, HubReference):
        return _push_to_hub(find_to_push(store, name), reference, settings, progress)
    raise InvalidInput(
        f"models are not pushed to {target.partition(':')[0][:20]!r} references",
        hint="mlxctl push NAME oci://HOST/NAME:TAG",
        field="target",
    )


def _push_to_hub(
    model: StoredModel, reference: HubReference, settings: PullSettings, progress: Callable[[JobProgress], None] | None
) -> PushReport:
    from homelab_llm.store.hub_push import push_to_hub
    from homelab_llm.store.sources.huggingface import hub_token

    if reference.file or reference.quantization:
        raise InvalidInput("a model is pushed whole, to a repository", hint=f"hf:{reference.repo}", field="target")
    done = push_to_hub(
        model,
        reference.repo,
        revision=reference.revision,
        endpoint=settings.hub,
        token=hub_token(settings.environ),
        progress=progress,
    )
    target = f"hf:{done.repo_id}@{done.commit}"
    return PushReport(model.name, target, str(model.digest), model.size_bytes, done.sent_bytes, url=done.url)


def find_to_push(store: ModelStore, name: str) -> StoredModel:
    """The model of a name.

    Raises:
        ModelNotFound: there is none. ModelDamaged: there is one, and it cannot be read.
    """
    try:
        return store.resolve(name)
    except ModelNotFound:
        wanted = str(ModelRef.parse(name))
        for problem in store.problems():
            if problem.name == wanted:
                raise ModelDamaged(problem.message, hint=f"mlxctl repair {wanted}", model=wanted) from None
        raise
