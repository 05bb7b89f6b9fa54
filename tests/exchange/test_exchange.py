"""Two stores and two pipes between them: what one lacks comes, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import ModelDefaults, Provenance, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.exchange.give import give
from homelab_llm.store.exchange.take import take
from homelab_llm.store.exchange.wire import Wire
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.testing.models import write_fake_model

pytestmark = pytest.mark.requirement("R-M5")

NAME = ModelRef.parse("tiny:1")


@dataclass(frozen=True)
class Ends:
    """Both ends of two pipes."""

    giver: Wire
    taker: Wire
    hang_up: Callable[[], None]
    close: Callable[[], None]


@pytest.fixture
def disk() -> Iterator[Path]:
    with TemporaryDirectory(prefix="hl-exchange-") as folder:
        yield Path(folder).resolve()


@pytest.fixture
def here(disk: Path) -> ModelStore:
    return ModelStore(disk / "here")


@pytest.fixture
def there(disk: Path) -> ModelStore:
    return ModelStore(disk / "there")


@pytest.fixture
def model(here: ModelStore, disk: Path) -> StoredModel:
    """A model with everything a manifest can say."""
    plain = here.import_path(write_fake_model(disk / "tiny.gguf", weights_bytes=3 << 20), ModelRef.parse("plain:1"))
    files = {name: Digest(path.name) for name, path in plain.files.items()}
    return here.add(
        NAME,
        files,
        plain.facts,
        source="hf:org/tiny@1",
        defaults=ModelDefaults({"temperature": 0.2}, system="Be brief."),
        provenance=Provenance("plain:1", str(plain.digest), "create", "test 1", 5.0, {"perplexity_before": 9.5}),
    )


def ends() -> Ends:
    down, up = os.pipe(), os.pipe()
    given, taken = os.fdopen(down[1], "wb"), os.fdopen(up[1], "wb")
    hears_giver, hears_taker = os.fdopen(down[0], "rb"), os.fdopen(up[0], "rb")

    def close() -> None:
        for file in (hears_giver, hears_taker, given, taken):
            with suppress(BrokenPipeError):
                file.close()

    return Ends(Wire(hears_taker, given), Wire(hears_giver, taken), given.close, close)


def exchange(
    here: ModelStore, model: StoredModel, there: ModelStore, *, limit_bytes: int = -1
) -> tuple[StoredModel | None, list[HomelabError], int]:
    """Give in a thread, take in this one; the model, the errors of both sides, and how many bytes travelled."""
    wires, failures, moved = ends(), list[HomelabError](), [0]

    def count(step: JobProgress) -> None:
        moved[0] = max(moved[0], step.done_bytes)

    def giving() -> None:
        try:
            give(here, model, wires.giver, count)
        except HomelabError as error:
            failures.append(error)

    thread = threading.Thread(target=giving)
    thread.start()
    taken = None
    try:
        taken = take(there, wires.taker, free_floor_bytes=limit_bytes if limit_bytes >= 0 else 0)
    except HomelabError as error:
        failures.append(error)
    thread.join(30)
    wires.close()
    return taken, failures, moved[0]


def test_a_model_arrives_bit_for_bit_with_all_it_says_about_itself(
    here: ModelStore, there: ModelStore, model: StoredModel
) -> None:
    taken, failures, moved = exchange(here, model, there)
    assert not failures
    assert taken is not None
    assert (taken.name, taken.digest, taken.defaults, taken.provenance) == (
        model.name,
        model.digest,
        model.defaults,
        model.provenance,
    )
    assert moved == model.size_bytes
    assert [p.read_bytes() for p in taken.files.values()] == [p.read_bytes() for p in model.files.values()]


def test_what_the_other_store_has_does_not_travel_again(
    here: ModelStore, there: ModelStore, model: StoredModel
) -> None:
    exchange(here, model, there)
    taken, failures, moved = exchange(here, model, there)
    assert (taken is not None, failures, moved) == (True, [], 0)


def test_a_copy_that_was_cut_goes_on_where_it_was(here: ModelStore, there: ModelStore, model: StoredModel) -> None:
    (path,) = model.files.values()
    content = path.read_bytes()
    half = 2 << 20
    digest = Digest(path.name)
    with there.blobs.open_writer(str(digest), expected=digest, size_bytes=len(content)) as writer:
        writer.write(content[:half])
    taken, failures, moved = exchange(here, model, there)
    assert (taken is not None, failures) == (True, [])
    assert moved == len(content) - half


def test_a_full_disk_is_said_on_both_sides_and_leaves_nothing(
    here: ModelStore, there: ModelStore, model: StoredModel
) -> None:
    taken, failures, _ = exchange(here, model, there, limit_bytes=1 << 60)
    assert taken is None
    assert [error.code for error in failures] == ["disk_full", "disk_full"]
    assert there.models() == []


def offered(there: ModelStore, *lines: dict[str, object], raw: bytes = b"") -> HomelabError:
    """What taking says to these lines of a giver."""
    wires = ends()

    def speak() -> None:
        with suppress(HomelabError):
            for line in lines:
                wires.giver.tell(line)
            wires.giver.pour(raw)
        with suppress(BrokenPipeError):
            wires.hang_up()

    thread = threading.Thread(target=speak)
    thread.start()
    with pytest.raises(HomelabError) as caught:
        take(there, wires.taker)
    wires.close()
    thread.join(10)
    assert there.models() == []
    return caught.value


def hello(manifest: bytes) -> dict[str, object]:
    return {"hello": 1, "name": "tiny:1", "manifest": base64.b64encode(manifest).decode()}


def test_nothing_that_is_offered_is_believed(here: ModelStore, there: ModelStore, model: StoredModel) -> None:
    manifest = here.blobs.path(model.digest).read_bytes()
    digest = next(iter(model.files.values())).name
    size = model.size_bytes
    assert offered(there, {"hello": 1, "name": "x", "manifest": "!"}).code == "bad_manifest"
    assert offered(there, {"hello": 1, "name": "x", "manifest": "\u00e9"}).code == "bad_manifest"
    assert offered(there, hello(b"{}")).code == "bad_manifest"
    assert offered(there, hello(manifest.replace(b"model.gguf", b"../../evil"))).code == "bad_manifest"
    assert offered(there, {**hello(manifest), "name": "../x"}).code == "invalid_name"
    assert offered(there, {"hello": 2}).code == "version_mismatch"
    assert offered(there, hello(manifest), {"blob": "sha256:" + "0" * 64}).code == "source_unavailable"
    blob = {"blob": f"sha256:{digest}", "offset": 0, "size_bytes": size}
    assert offered(there, hello(manifest), blob, raw=bytes(size)).code == "digest_mismatch"
    assert offered(there, hello(manifest), blob, raw=b"short").code == "source_unavailable"


def test_facts_that_are_not_those_of_the_files_are_not_taken_over(
    here: ModelStore, there: ModelStore, model: StoredModel
) -> None:
    document = json.loads(here.blobs.path(model.digest).read_bytes())
    facts = json.loads(document["annotations"]["homelab-llm.facts+json"]) | {"context_tokens": 10**9}
    document["annotations"]["homelab-llm.facts+json"] = json.dumps(facts)
    lie = here.blobs.put_locked(json.dumps(document).encode())
    wrong = StoredModel(model.name, lie, model.facts, model.files, model.size_bytes)
    taken, failures, _ = exchange(here, wrong, there)
    assert not failures
    assert taken is not None
    assert taken.facts == model.facts


def test_only_blobs_of_the_model_are_given(here: ModelStore, model: StoredModel, disk: Path) -> None:
    secret = here.blobs.put_locked(b"another model")
    wires = ends()
    wires.taker.tell({"need": str(secret), "offset": 0})
    with pytest.raises(HomelabError) as caught:
        give(here, model, wires.giver)
    wires.close()
    assert caught.value.code == "source_unavailable"


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("total", [10**400, -1, True, "1", None])
def test_a_total_that_cannot_be_is_passed_over(here: ModelStore, model: StoredModel, total: object) -> None:
    wires, failures = ends(), list[BaseException]()

    def giving() -> None:
        try:
            give(here, model, wires.giver, lambda _: None)
        except BaseException as error:  # noqa: BLE001 — the test looks at it
            failures.append(error)

    thread = threading.Thread(target=giving)
    thread.start()
    wires.taker.hear("hello")
    blob = next(iter(model.files.values()))
    wires.taker.tell({"need": f"sha256:{blob.name}", "offset": 0, "total_bytes": total})
    size = int(wires.taker.hear("blob")["size_bytes"])
    assert sum(len(chunk) for chunk in wires.taker.catch(size)) == blob.stat().st_size
    wires.taker.tell({"done": str(model.digest)})
    thread.join(30)
    wires.close()
    assert failures == []
