from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DigestMismatch, DiskFull, InvalidDigest, StoreBusy, TransferError
from homelab_llm.store.blocks import BLOCK_BYTES
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.part_file import CHECKPOINT_BYTES
from homelab_llm.store.sources.base import GitBlobHash, RemoteFile
from homelab_llm.store.writer import BlobWriter

CONTENT = bytes(range(256)) * 64
DIGEST = Digest.of(CONTENT)


def tmp_files(store: ModelStore, *suffixes: str) -> list[str]:
    """The files below ``tmp`` with these endings; without any, all but pins of this process."""
    found = [path.name for path in (store.root / "tmp").iterdir()]
    return sorted(name for name in found if (name.endswith(suffixes) if suffixes else not name.endswith(".pins")))


@pytest.mark.requirement("R-M1")
def test_a_blob_lies_under_its_digest_in_the_place_of_the_oci_layout(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        writer.write(CONTENT[:100])
        assert writer.offset == 100
        assert not store.blobs.has(DIGEST)
        writer.write(memoryview(CONTENT)[100:])
        assert writer.commit() == DIGEST
    assert store.blobs.path(DIGEST) == store.root / "blobs" / "sha256" / DIGEST.hex
    assert store.blobs.path(DIGEST).read_bytes() == CONTENT
    assert tmp_files(store) == []


def test_a_blob_of_no_bytes_is_a_blob(store: ModelStore) -> None:
    with store.blobs.open_writer("key", size_bytes=0) as writer:
        writer.write(b"")
        assert writer.commit() == Digest.of(b"")
    assert store.blobs.size_bytes(Digest.of(b"")) == 0


@pytest.mark.requirement("R-M4")
def test_bytes_with_another_digest_are_discarded_and_named(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:-1] + b"!")
        with pytest.raises(DigestMismatch) as caught:
            writer.commit()
    assert caught.value.facts["expected"] == str(DIGEST)
    assert not store.blobs.has(DIGEST)
    assert tmp_files(store) == []


@pytest.mark.requirement("R-M4")
def test_more_bytes_than_promised_are_refused_when_they_arrive(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        writer.write(CONTENT)
        with pytest.raises(DigestMismatch):
            writer.write(b"x")
        assert writer.offset == 0
    assert tmp_files(store) == []


def test_fewer_bytes_than_promised_are_kept_for_the_next_try(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        writer.write(CONTENT[:1000])
        with pytest.raises(TransferError) as caught:
            writer.commit()
    assert caught.value.facts == {"received_bytes": 1000, "expected_bytes": len(CONTENT)}
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        assert writer.offset == 1000
        writer.write(CONTENT[1000:])
        assert writer.commit() == DIGEST


def test_bytes_kept_with_a_validator_continue_when_it_is_the_same_and_start_over_when_not(store: ModelStore) -> None:
    with store.blobs.open_writer("key", validator='"etag-1"') as writer:
        writer.write(CONTENT[:500])
    with store.blobs.open_writer("key", validator='"etag-1"') as writer:
        assert writer.offset == 500
    with store.blobs.open_writer("key", validator='"etag-2"') as writer:
        assert writer.offset == 0
        writer.write(CONTENT)
        assert writer.commit() == DIGEST


def test_bytes_that_nothing_proves_to_belong_together_are_not_kept(store: ModelStore) -> None:
    with store.blobs.open_writer("key") as writer:
        writer.write(CONTENT[:500])
    assert tmp_files(store) == []
    with store.blobs.open_writer("key") as writer:
        assert writer.offset == 0


def test_another_expected_digest_or_a_shorter_promise_starts_over(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:500])
    with store.blobs.open_writer("key", expected=Digest.of(b"other")) as writer:
        assert writer.offset == 0
        writer.write(CONTENT[:500])
    with store.blobs.open_writer("key", expected=Digest.of(b"other"), size_bytes=5) as writer:
        assert writer.offset == 0


def forget(writer: BlobWriter) -> None:
    """What a kill leaves: no close, no last checkpoint. A second store cannot take the lock until it is gone."""
    os.close(writer._held)
    writer._closed = True


def after_a_power_cut(store: ModelStore) -> None:
    """Let the records look as if they had been written before the machine was started."""
    for path in (store.root / "tmp").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))


@pytest.mark.requirement("R-M3", "R-S2")
@pytest.mark.parametrize("expected", [None, DIGEST], ids=["validator only", "digest known"])
def test_after_a_kill_every_byte_is_there_and_after_a_power_cut_those_that_were_fsynced(
    store: ModelStore, expected: Digest | None
) -> None:
    writer = store.blobs.open_writer("key", expected=expected, validator="v")
    writer.write(bytes(CHECKPOINT_BYTES))
    writer.write(b"after the checkpoint")
    forget(writer)
    again = ModelStore(store.root).blobs.open_writer("key", expected=expected, validator="v")
    assert again.offset == CHECKPOINT_BYTES + 20
    forget(again)
    after_a_power_cut(store)
    with ModelStore(store.root).blobs.open_writer("key", expected=expected, validator="v") as last:
        assert last.offset == CHECKPOINT_BYTES
        last.write(b"rest")
        assert last.commit() == Digest.of(bytes(CHECKPOINT_BYTES) + b"rest") if expected is None else True


def test_a_failed_fsync_leaves_only_what_an_earlier_one_covered(
    store: ModelStore, armed: Callable[[str], None]
) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:100])
        writer.part.checkpoint()
        writer.part.write(BLOCK_BYTES, memoryview(CONTENT[:100]))
        armed("store.blob.checkpoint=raise")
        with pytest.raises(OSError, match="checkpoint"):
            writer.part.checkpoint()
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        assert (writer.offset, writer.part.there_bytes) == (100, 100)


@pytest.mark.requirement("R-M2", "R-M4")
def test_threads_write_at_places_of_their_own_and_the_hash_follows(store: ModelStore) -> None:
    content = CONTENT * 200 + b"and a rest"
    starts = list(range(0, len(content), BLOCK_BYTES))
    further = GitBlobHash(RemoteFile("x", "x", len(content), git_sha1="0" * 40))
    with store.blobs.open_writer("key", expected=Digest.of(content), size_bytes=len(content)) as writer:
        for start in reversed(starts[1:]):
            writer.part.write(start, memoryview(content)[start : start + BLOCK_BYTES])
        assert (writer.part.frontier, writer.follow()) == (0, 0)
        assert writer.part.gaps(len(content)) == [(0, BLOCK_BYTES)]
    with store.blobs.open_writer("key", expected=Digest.of(content), size_bytes=len(content)) as writer:
        assert writer.part.gaps(len(content)) == [(0, BLOCK_BYTES)]
        writer.part.write(0, memoryview(content)[:BLOCK_BYTES])
        assert writer.commit() == Digest.of(content)
    with store.blobs.open_writer("other", size_bytes=len(content), validator="v", further=further) as writer:
        writer.part.write(0, memoryview(content))
        with pytest.raises(DigestMismatch, match="hub promised"):
            writer.commit()
    assert tmp_files(store) == []


def test_a_part_whose_map_claims_more_than_there_is_is_cut(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:100])
    (name,) = tmp_files(store, ".map")
    for claimed, believed in (
        ([BLOCK_BYTES], 0),
        ([100, 5], 100),
        ([101], 0),
        ([100, BLOCK_BYTES + 1, 2**32 - 1], 100),
        ([], 0),
    ):
        (store.root / "tmp" / name).write_bytes(struct.pack(f"<{len(claimed)}I", *claimed))
        writer = store.blobs.open_writer("key", expected=DIGEST)
        assert writer.part.there_bytes == believed
        forget(writer)


def test_restart_throws_the_kept_bytes_away(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(b"something else")
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        assert writer.offset == 14
        writer.restart()
        assert writer.offset == 0
        writer.write(CONTENT)
        assert writer.commit() == DIGEST


@pytest.mark.parametrize(
    "record", [b"", b"\0" * 60, b"[1]", b'{"expected": 5}', b'{"durable_bytes": 5}', b'{"boot": 5}', b"[" * 9999]
)
def test_a_damaged_record_means_to_start_over(store: ModelStore, record: bytes) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:100])
    (name,) = tmp_files(store, ".json")
    (store.root / "tmp" / name).write_bytes(record)
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        assert writer.offset == 0


def test_a_kept_part_that_is_a_link_is_never_written_through(store: ModelStore, disk: Path) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[:100])
    (name,) = tmp_files(store, ".part")
    part = store.root / "tmp" / name
    for link in (part.symlink_to, part.hardlink_to):
        victim = disk / "victim"
        victim.write_bytes(b"precious")
        part.unlink()
        link(victim)
        with store.blobs.open_writer("key", expected=DIGEST) as writer:
            assert writer.offset == 0
            writer.write(CONTENT[:100])
        assert victim.read_bytes() == b"precious"


def test_the_writer_of_a_blob_that_is_there_is_complete(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT)
        writer.commit()
    with store.blobs.open_writer("another key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        assert writer.complete
        assert writer.offset == len(CONTENT)
        writer.restart()
        writer.write(b"ignored")
        assert writer.commit() == DIGEST
    assert store.blobs.path(DIGEST).read_bytes() == CONTENT


@pytest.mark.requirement("R-M4")
def test_a_blob_of_the_wrong_size_is_written_anew(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT)
        writer.commit()
    store.blobs.path(DIGEST).write_bytes(CONTENT[:10])
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        assert not writer.complete
        writer.write(CONTENT)
        writer.commit()
    assert store.blobs.path(DIGEST).read_bytes() == CONTENT


def test_a_blob_path_that_is_a_link_or_a_folder_is_no_blob(store: ModelStore, disk: Path) -> None:
    store.blobs.open_writer("key").close()
    (disk / "elsewhere").write_bytes(CONTENT)
    store.blobs.path(DIGEST).symlink_to(disk / "elsewhere")
    assert not store.blobs.has(DIGEST)
    store.blobs.path(DIGEST).unlink()
    store.blobs.path(DIGEST).mkdir()
    assert not store.blobs.has(DIGEST)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("text", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 63 + "/"])
def test_a_digest_built_by_hand_never_becomes_a_path(store: ModelStore, text: str) -> None:
    with pytest.raises(InvalidDigest):
        store.blobs.path(Digest(text))
    with pytest.raises(InvalidDigest):
        store.blobs.has(Digest(text))


@pytest.mark.requirement("R-M5")
def test_what_does_not_fit_is_refused_before_it_is_written(store: ModelStore) -> None:
    with pytest.raises(DiskFull) as caught:
        store.blobs.open_writer("key", expected=DIGEST, size_bytes=1 << 60)
    assert caught.value.facts["needed_bytes"] == 1 << 60
    assert isinstance(caught.value.facts["free_bytes"], int)
    assert tmp_files(store) == []


def test_a_disk_that_fills_up_while_writing_is_disk_full_and_the_next_try_continues(
    store: ModelStore, armed: Callable[[str], None]
) -> None:
    armed("store.blob.chunk=enospc@3")
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        writer.write(CONTENT[:10])
        writer.write(CONTENT[10:20])
        with pytest.raises(DiskFull) as caught:
            writer.write(CONTENT[20:])
    assert caught.value.facts["needed_bytes"] == len(CONTENT) - 20
    with store.blobs.open_writer("key", expected=DIGEST, size_bytes=len(CONTENT)) as writer:
        assert writer.offset == 20
        writer.write(CONTENT[20:])
        assert writer.commit() == DIGEST


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("point", ["store.blob.before_sync", "store.blob.pinned", "store.blob.committed"])
@pytest.mark.parametrize("action", ["enospc", "raise"])
def test_a_commit_that_fails_shows_no_wrong_blob_and_can_be_repeated(
    store: ModelStore, armed: Callable[[str], None], point: str, action: str
) -> None:
    armed(f"{point}={action}")
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT)
        with pytest.raises(DiskFull if action == "enospc" else OSError):
            writer.commit()
    if store.blobs.has(DIGEST):
        assert store.blobs.path(DIGEST).read_bytes() == CONTENT
    with store.blobs.open_writer("key", expected=DIGEST) as writer:
        writer.write(CONTENT[writer.offset :])
        assert writer.commit() == DIGEST
    assert tmp_files(store) == []


@pytest.mark.requirement("R-M3")
@pytest.mark.parametrize("known", [True, False], ids=["digest known", "validator only"])
def test_a_second_writer_of_a_key_waits_and_finds_the_blob(store: ModelStore, known: bool) -> None:
    expected, validator = (DIGEST, "") if known else (None, "etag")
    first = store.blobs.open_writer("key", expected=expected, validator=validator)
    first.write(CONTENT)
    waiting = threading.Event()
    second: list[bool] = []

    def join() -> None:
        other = ModelStore(store.root)
        with other.blobs.open_writer("key", expected=expected, validator=validator, waiting=waiting.set) as writer:
            second.append(writer.complete)
            assert writer.commit() == DIGEST

    thread = threading.Thread(target=join)
    thread.start()
    assert waiting.wait(30)
    first.commit()
    thread.join(30)
    assert second == [True]


@pytest.mark.requirement("R-M3")
def test_who_waits_for_a_writer_that_gives_up_continues_its_bytes(store: ModelStore) -> None:
    first = store.blobs.open_writer("key", expected=DIGEST)
    first.write(CONTENT[:100])
    waiting = threading.Event()
    offsets: list[int] = []

    def join() -> None:
        with store.blobs.open_writer("key", expected=DIGEST, waiting=waiting.set) as writer:
            offsets.append(writer.offset)

    thread = threading.Thread(target=join)
    thread.start()
    assert waiting.wait(30)
    first.close()
    thread.join(30)
    assert offsets == [100]


def test_waiting_for_another_writer_can_be_bounded(store: ModelStore) -> None:
    with store.blobs.open_writer("key", expected=DIGEST):
        with pytest.raises(StoreBusy):
            store.blobs.open_writer("key", expected=DIGEST, wait_s=0.0)
        store.blobs.open_writer("another key", expected=DIGEST, wait_s=0.0).close()


@pytest.mark.requirement("R-M3")
def test_bytes_of_a_killed_process_are_continued_by_another(store: ModelStore) -> None:
    program = """
import sys
from pathlib import Path
from homelab_llm.core.digests import Digest
from homelab_llm.store.blocks import BLOCK_BYTES
from homelab_llm.store.model_store import ModelStore
writer = ModelStore(Path(sys.argv[1])).blobs.open_writer("key", expected=Digest.parse(sys.argv[2]))
writer.write(bytes(range(256)) * 16)
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(store.root), str(DIGEST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(StoreBusy):
            store.blobs.open_writer("key", expected=DIGEST, wait_s=0.0)
        child.kill()
    with store.blobs.open_writer("key", expected=DIGEST, wait_s=0.0) as writer:
        assert writer.offset == 4096
        writer.write(CONTENT[4096:])
        assert writer.commit() == DIGEST


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4), st.booleans())
def test_however_often_it_is_broken_off_the_blob_has_the_digest_of_the_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int], by_digest: bool
) -> None:
    store = ModelStore(tmp_path_factory.mktemp("s") / "store")
    expected, validator = (Digest.of(content), "") if by_digest else (None, "etag")
    for cut in cuts:
        with store.blobs.open_writer("key", expected=expected, validator=validator) as writer:
            writer.write(content[writer.offset : max(cut, writer.offset)])
    with store.blobs.open_writer("key", expected=expected, validator=validator) as writer:
        assert writer.offset == min(len(content), max(cuts, default=0))
        writer.write(content[writer.offset :])
        assert writer.commit() == Digest.of(content)
    assert store.blobs.path(Digest.of(content)).read_bytes() == content


def test_reading_an_absent_store_creates_nothing(store: ModelStore) -> None:
    assert not store.blobs.has(DIGEST)
    assert not store.blobs.hold(DIGEST)
    assert not store.root.exists()


def test_a_key_is_never_written_down(store: ModelStore) -> None:
    with store.blobs.open_writer("https://host/file?token=secret-token", expected=DIGEST) as writer:
        writer.write(CONTENT[:10])
    for path in (store.root / "tmp").iterdir():
        assert b"secret-token" not in path.read_bytes() + path.name.encode()
