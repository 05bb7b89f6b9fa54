"""What servers and disks do wrong while several connections fetch one file."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DigestMismatch, DiskFull, SourceUnavailable, TransferError
from homelab_llm.core.failpoints import arm
from homelab_llm.core.http import HttpLimits
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.verify import verify
from homelab_llm.testing.hub import FakeHub, Faults, Request

Settings = Callable[..., PullSettings]
REFERENCE = "hf:Org/Large-GGUF"
FIRST = "bytes=0-"


def pulled(store: ModelStore, settings: PullSettings, content: bytes, reference: str = REFERENCE) -> None:
    model = pull(store, reference, name="large:1", settings=settings)
    assert model.files["model.gguf"].read_bytes() == content
    assert verify(store).ok
    assert [path for path in (store.root / "tmp").iterdir() if path.suffix not in {".pins", ".json", ".lock"}] == []


def ranges(hub: FakeHub) -> list[str]:
    return [request.range for request in hub.requests if request.path.endswith(".gguf")]


def once(fault: Faults, when: Callable[[Request], bool]) -> Callable[[Request], Faults | None]:
    """The fault for the first request that is meant."""
    lock, left = threading.Lock(), [fault]

    def answer(request: Request) -> Faults | None:
        with lock:
            return left.pop() if left and when(request) else None

    return answer


def later(request: Request) -> bool:
    """A part, not the first."""
    return bool(request.range) and not request.range.startswith(FIRST)


@pytest.mark.requirement("R-M2", "R-M4")
def test_a_large_file_comes_in_parts_over_several_connections_each_byte_once(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    pulled(store, settings(), content)
    assert len({request.port for request in hub.requests if request.range}) > 1
    assert hub.file_bytes_sent == len(content)


@pytest.mark.requirement("R-M3")
@pytest.mark.parametrize(
    "fault",
    [
        Faults(drop_after_bytes=100_000),
        Faults(drop_after_bytes=0),
        Faults(wrong_part=7),
        Faults(wrong_length=10),
        Faults(status=500),
        Faults(status=429, retry_after="0"),
        Faults(html=True),
        Faults(compressed=True),
    ],
    ids=["cut", "nothing", "wrong part", "wrong length", "500", "429", "web page", "compressed"],
)
@pytest.mark.parametrize("when", [lambda _: True, later], ids=["first", "later"])
def test_a_reply_that_fails_is_asked_for_again(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes, fault: Faults, when: Callable[[Request], bool]
) -> None:
    hub.on_file = once(fault, when)
    pulled(store, settings(), content)


@pytest.mark.requirement("R-M3")
@pytest.mark.parametrize("when", [lambda _: True, later], ids=["first", "later"])
def test_a_server_that_knows_no_ranges_or_forgets_them_sends_the_whole(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes, when: Callable[[Request], bool]
) -> None:
    hub.on_file = lambda request: Faults(ignore_range=True) if when(request) else None
    pulled(store, settings(), content)


@pytest.mark.requirement("R-M3")
def test_a_connection_that_stalls_is_taken_over_by_the_others(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    hub.on_file = once(Faults(hold_after_bytes=300_000), later)
    pulled(store, settings(limits=HttpLimits(read_s=60)), content)


@pytest.mark.requirement("R-M3", "R-M4")
def test_content_that_changes_between_two_parts_starts_over_where_only_a_validator_proves_it(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    other = content[:-1000] + bytes(range(1, 251)) * 4
    files = hub.repos["Org/Large-GGUF"]

    def change(request: Request) -> None:
        if later(request):
            files["m-F32.gguf"] = other

    hub.on_file = change
    address = f"{hub.url}/Org/Large-GGUF/resolve/main/m-F32.gguf"
    pulled(store, settings(allow_private_hosts=True), other, address)


@pytest.mark.requirement("R-M4")
def test_wrong_bytes_in_one_part_are_noticed_discarded_and_fetched_anew(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    hub.on_file = once(Faults(wrong_bytes=True), later)
    with pytest.raises(DigestMismatch) as caught:
        pull(store, REFERENCE, settings=settings())
    assert caught.value.facts["expected"] == str(Digest.of(content))
    assert store.blobs.kept_bytes(str(Digest.of(content))) == 0
    pulled(store, settings(), content)


@pytest.mark.requirement("R-M3")
def test_a_server_that_is_too_busy_for_some_of_the_connections_is_asked_by_fewer(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    at_once, lock = [0], threading.Lock()

    def crowded(_: Request) -> Faults | None:
        with lock:
            at_once[0] += 1
            return Faults(status=503) if at_once[0] % 3 == 0 else None

    hub.on_file = crowded
    pulled(store, settings(limits=HttpLimits(attempts=1, read_s=5)), content)


def test_a_server_that_is_gone_in_the_middle_is_given_up_and_what_came_is_kept(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    gone = 10_000_000

    def begins_late(request: Request) -> bool:
        return bool(request.range) and int(request.range[6:].partition("-")[0]) >= gone

    hub.on_file = lambda request: Faults(status=500) if begins_late(request) else None
    with pytest.raises(SourceUnavailable):
        pull(store, REFERENCE, settings=settings(limits=HttpLimits(attempts=1)))
    kept = store.blobs.kept_bytes(str(Digest.of(content)))
    assert kept >= gone
    hub.on_file, hub.file_bytes_sent = None, 0
    pulled(store, settings(), content)
    assert hub.file_bytes_sent == len(content) - kept


@pytest.mark.usefixtures("disarmed")
@pytest.mark.requirement("R-M5")
@pytest.mark.parametrize("passage", [1, 5, 20])
@pytest.mark.parametrize(("action", "error"), [("enospc", DiskFull), ("raise", TransferError)])
def test_a_disk_that_is_full_or_fails_is_typed_and_what_is_there_is_kept(
    hub: FakeHub,
    store: ModelStore,
    settings: Settings,
    content: bytes,
    passage: int,
    action: str,
    error: type[Exception],
) -> None:
    arm(f"store.blob.chunk={action}@{passage}")
    with pytest.raises(error) as caught:
        pull(store, REFERENCE, settings=settings())
    if isinstance(caught.value, DiskFull):
        assert 0 < int(str(caught.value.facts["needed_bytes"])) <= len(content)
    else:
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EIO
    kept = store.blobs.kept_bytes(str(Digest.of(content)))
    assert kept >= (passage - 1) * 1000
    arm("")
    hub.file_bytes_sent = 0
    pulled(store, settings(), content)


@pytest.mark.requirement("R-M3")
def test_a_pull_is_cancelled_at_once_while_servers_say_nothing(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    hub.on_file = lambda request: Faults(hold_after_bytes=2_000_000) if later(request) else None

    def cancel(report: JobProgress) -> None:
        if report.done_bytes > 8_000_000:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        pull(store, REFERENCE, settings=settings(limits=HttpLimits(read_s=600)), progress=cancel)
    assert threading.active_count() <= threads + 1 + 2 * 8  # the hub's own; ours end by themselves
    assert store.blobs.kept_bytes(str(Digest.of(content))) > 8_000_000
    hub.on_file = None
    pulled(store, settings(), content)


def test_what_the_report_raises_is_not_taken_for_an_error_of_the_disk(store: ModelStore, settings: Settings) -> None:
    def broken(report: JobProgress) -> None:
        if report.stage == "fetching":
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        pull(store, REFERENCE, settings=settings(), progress=broken)


@pytest.mark.requirement("R-M2")
def test_several_files_come_at_the_same_time(hub: FakeHub, store: ModelStore, settings: Settings) -> None:
    meeting = threading.Barrier(3)
    hub.repos["Org/Folder"] = {
        "config.json": b'{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8}',
        "tokenizer.json": b"{}" + b" " * 5000,
        "tokenizer_config.json": b"{}",
        "model.safetensors": b"",
    }

    def meet(request: Request) -> None:
        if not request.path.endswith(".safetensors"):
            meeting.wait(10)

    hub.on_file = meet
    with pytest.raises(Exception, match="safetensors"):
        pull(store, "hf:Org/Folder", settings=settings())
    assert not meeting.broken
