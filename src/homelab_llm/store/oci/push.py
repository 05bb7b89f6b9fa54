"""Push to a registry: what the manifest names, then the manifest. Three lanes of blobs, the manifest last.

Of each blob it is asked whether it is there; if not, the registry may have it in another repository and mount it; if
not, it is sent: at once when it is small, else by a courier. One damaged blob, or anything else that goes wrong with
one, ends the others after the chunk under way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import Cancelled, InternalError, InvalidInput, ModelDamaged, SourceUnavailable
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.blobs import BlobStore
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small
from homelab_llm.store.manifests import Manifest, parse_manifest
from homelab_llm.store.oci import uploads
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.oci.courier import Courier, errand_of
from homelab_llm.store.oci.sending import Blob, Sender, Watch
from homelab_llm.store.progress import Progress
from homelab_llm.store.push_report import PushReport
from homelab_llm.store.references import OciReference, parse
from homelab_llm.store.settings import PullSettings
from homelab_llm.store.upload_records import places, remember_places

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

LANES = 3
SMALL_BYTES = 4 << 20
"""Blobs up to this size go out in one request: three of them, lost in an accident, are less than 16 MB."""

_COURIERS_LOST = 3
_POLL_S = 0.2
How = Literal["present", "mounted", "sent"]


def push_to_registry(
    store: ModelStore, model: StoredModel, reference: OciReference, settings: PullSettings, report: Progress
) -> PushReport:
    """See ``store.push.push``."""
    if reference.digest is not None:
        raise InvalidInput("a push goes to a tag, not to a digest", hint=f"oci://{reference.host}/{reference.name}:TAG")
    report.stage("resolving")
    layout = Layout(store.root)
    content, blobs = _contents(layout, model)
    holding = BlobStore(layout)  # pins of its own: releasing them must not release those of a pull in this process
    try:
        for blob in blobs:
            if not holding.hold(blob.digest):
                raise _damaged(model, blob)
        with open_registry(reference.host, settings, push=True, repository=reference.name) as client:
            pushing = _Push(layout, model, client, reference, settings, report, content, blobs)
            return pushing.run()
    finally:
        holding.release([blob.digest for blob in blobs])


def _contents(layout: Layout, model: StoredModel) -> tuple[bytes, list[Blob]]:
    """The manifest's bytes and the blobs it needs, the largest first, each once; their sizes are looked at."""
    path = layout.blob(model.digest)
    content = read_small(path, MAX_DOCUMENT_BYTES)
    manifest = parse_manifest(content, model.digest, path)
    blobs = sorted(_blobs(layout, manifest), key=lambda blob: (-blob.size_bytes, blob.digest))
    for blob in blobs:
        if not blob.path.is_file() or blob.path.stat().st_size != blob.size_bytes:
            raise _damaged(model, blob)
    return content, blobs


def _blobs(layout: Layout, manifest: Manifest) -> list[Blob]:
    config = layout.blob(manifest.config)
    size = config.stat().st_size if config.is_file() else -1
    found = {manifest.config: Blob(manifest.config, size, config, ("the configuration",))}
    for layer in manifest.layers:
        before = found.get(layer.digest)
        names = (*(before.names if before else ()), layer.name)
        found[layer.digest] = Blob(layer.digest, layer.size_bytes, layout.blob(layer.digest), names)
    return list(found.values())


def _damaged(model: StoredModel, blob: Blob) -> ModelDamaged:
    return ModelDamaged(
        f"{', '.join(blob.names)[:200]} of {model.name} is not what its digest says; nothing was pushed",
        hint=f"mlxctl repair {model.name}",
        model=model.name,
        files=list(blob.names),
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A lane's last word on a blob, or on itself."""

    blob: Blob
    how: How = "present"
    sent_bytes: int = 0
    error: BaseException | None = None


@dataclass(slots=True)
class _Push:
    """One push."""

    layout: Layout
    model: StoredModel
    client: RegistryClient
    reference: OciReference
    settings: PullSettings
    report: Progress
    content: bytes
    blobs: list[Blob]
    _stopping: threading.Event = field(default_factory=threading.Event)
    _events: queue.SimpleQueue[Callable[[], None] | _Ended] = field(default_factory=queue.SimpleQueue)
    _couriers: list[Courier] = field(default_factory=list)
    _done_bytes: dict[Digest, int] = field(default_factory=dict)
    _sent_bytes: int = 0

    def run(self) -> PushReport:
        """Blobs, then the manifest."""
        total = sum(blob.size_bytes for blob in self.blobs)
        self.report.total([total])
        before = self.client.manifest_digest(self.reference.name, self.reference.tag)
        failpoint("push.resolved")
        result = PushReport(self.model.name, str(self.reference), str(self.model.digest), total)
        if before == self.model.digest:  # a registry takes no manifest whose blobs it does not have
            self.report.stage("done")
            return replace(result, present_blobs=len(self.blobs))
        self.report.begin("", 0)
        self._done_bytes = dict.fromkeys((blob.digest for blob in self.blobs), 0)
        ended = self._send_all()
        failpoint("push.manifest.next")
        self.report.stage("storing")
        self.client.put_manifest(self.reference.name, self.reference.tag, self.content)
        failpoint("push.manifest.sent")
        host = self.client.host.name
        remember_places(self.layout, host, self.reference.name, [blob.digest for blob in self.blobs])
        failpoint("push.noted")
        self.report.stage("done")
        return replace(
            result,
            sent_bytes=sum(end.sent_bytes for end in ended),
            sent_blobs=sum(end.how == "sent" for end in ended),
            mounted_blobs=sum(end.how == "mounted" for end in ended),
            present_blobs=sum(end.how == "present" for end in ended),
            replaced=str(before or ""),
        )

    def _send_all(self) -> list[_Ended]:
        """All blobs there. Lanes work, this thread reports; whatever is raised here stops them."""
        waiting: queue.SimpleQueue[Blob] = queue.SimpleQueue()
        for blob in self.blobs:
            waiting.put(blob)
        lanes = [
            threading.Thread(target=self._lane, args=(waiting,), daemon=True)
            for _ in range(min(LANES, self.settings.connections_per_host, len(self.blobs)))
        ]
        for lane in lanes:
            lane.start()
        ended: list[_Ended] = []
        try:
            while len(ended) < len(self.blobs):
                try:
                    event = self._events.get(timeout=_POLL_S)
                except queue.Empty:
                    self.report.bytes(sum(self._done_bytes.values()))
                    continue
                if isinstance(event, _Ended):
                    if event.error is not None:
                        raise event.error
                    ended.append(event)
                    self._done_bytes[event.blob.digest] = event.blob.size_bytes
                    self.report.bytes(sum(self._done_bytes.values()))
                else:
                    event()
        except BaseException:
            self._stop()
            raise
        for lane in lanes:
            lane.join()
        return ended

    def _stop(self) -> None:
        self._stopping.set()
        for courier in list(self._couriers):
            courier.stop()

    # --- in a lane ----------------------------------------------------------------------------------------

    def _lane(self, waiting: queue.SimpleQueue[Blob]) -> None:
        couriers: list[Courier] = []  # the last one is at work; earlier ones were killed
        try:
            while not self._stopping.is_set():
                try:
                    blob = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    how, sent_bytes = self._there_already(blob), 0
                    if how is None and blob.size_bytes <= SMALL_BYTES:
                        how, sent_bytes = "sent", self._send_small(blob)
                    elif how is None:
                        how, sent_bytes = "sent", self._send_large(blob, couriers)
                    failpoint("push.blob.sent")
                    self._events.put(_Ended(blob, how, sent_bytes))
                except Exception as error:  # noqa: BLE001 — told to the thread that waits, which raises it
                    self._events.put(_Ended(blob, error=self._named(error)))
                    return
        finally:
            for courier in couriers:
                courier.end()

    def _there_already(self, blob: Blob) -> How | None:
        """Whether the registry has it, here or in a repository from where it can be mounted."""
        repository = self.reference.name
        if self.client.has_blob(repository, blob.digest):
            return "present"
        failpoint("push.blob.asked")
        for other in self._other_places(blob.digest):
            if uploads.mount(self.client, repository, blob.digest, other):
                failpoint("push.blob.mounted")
                return "mounted"
        return None

    def _other_places(self, digest: Digest) -> list[str]:
        host = self.client.host.name
        found = [places(self.layout, host).get(digest.hex, "")]
        if self.model.pulled_from.startswith("oci://"):
            origin = parse(self.model.pulled_from)
            if isinstance(origin, OciReference) and origin.host == self.reference.host:
                found.append(origin.name)
        return [name for name in dict.fromkeys(found) if name and name != self.reference.name]

    def _send_small(self, blob: Blob) -> int:
        sender = Sender(self.client, self.reference.name, blob, self._watch(blob))
        sender.send_at_once()
        return sender.sent_bytes

    def _send_large(self, blob: Blob, couriers: list[Courier]) -> int:
        """By the lane's courier, or a new one where that was killed."""
        for lost in range(_COURIERS_LOST):
            if not couriers or lost:
                couriers.append(self._courier())
            try:
                return couriers[-1].send(blob, self._watch(blob))
            except SourceUnavailable as error:
                if self._stopping.is_set() or "ended" not in error.facts:
                    raise
        raise SourceUnavailable(
            "the processes that send blobs are ended by something", hint="run the same command again", ended=True
        )

    def _courier(self) -> Courier:
        credentials = self.client.credentials
        courier = Courier(
            errand_of(self.layout.root, self.reference.host, self.reference.name, self.settings, credentials)
        )
        self._couriers.append(courier)
        if self._stopping.is_set():
            courier.stop()
        return courier

    def _watch(self, blob: Blob) -> Watch:
        def sent(done_bytes: int, _sent_bytes: int) -> None:
            self._done_bytes[blob.digest] = done_bytes

        return Watch(
            sent,
            lambda: self._events.put(lambda: self.report.stage("waiting")),
            lambda: self._events.put(lambda: self.report.stage("retrying")),
            self._stopping.is_set,
        )

    def _named(self, error: Exception) -> Exception:
        """The error with what a blob's sender could not know."""
        if isinstance(error, ModelDamaged):
            error.hint = f"mlxctl repair {self.model.name}"
            error.facts["model"] = self.model.name
        elif isinstance(error, OSError):
            return InternalError(f"the store cannot be read: {error.strerror}", hint="mlxctl doctor")
        elif isinstance(error, Cancelled):
            return Cancelled("the push was called off; what was sent is kept")
        return error
