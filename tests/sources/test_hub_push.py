"""Pushing to the hub with its own client library, against a hub that speaks the upload protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.errors import Cancelled, HomelabError
from homelab_llm.core.facts import Provenance, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.hub_push import HubPush, hub_name, model_card, push_to_hub
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

pytestmark = [
    pytest.mark.requirement("R-M7"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # inside the hub's client
]

TOKEN = "hf_secret"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(token=TOKEN) as running:
        yield running


@pytest.fixture
def store() -> Iterator[ModelStore]:
    with TemporaryDirectory(prefix="hl-push-") as folder:
        yield ModelStore(Path(folder) / "store")


@pytest.fixture
def model(store: ModelStore, tmp_path: Path) -> StoredModel:
    return store.import_path(write_fake_model(tmp_path / "t.gguf", weights_bytes=1 << 20), ModelRef.parse("tiny:1"))


def push(hub: FakeHub, model: StoredModel, repo_id: str = "me/tiny", token: str = TOKEN) -> HubPush:
    return push_to_hub(model, repo_id, endpoint=hub.url, token=token)


def test_what_is_pushed_to_the_hub_can_be_pulled_again(
    hub: FakeHub, store: ModelStore, model: StoredModel, tmp_path: Path
) -> None:
    done = push(hub, model)
    (blob,) = model.files.values()
    name = hub_name("model.gguf", model, "me/tiny")
    assert hub.repos["me/tiny"][name] == blob.read_bytes()
    assert b"# tiny:1" in hub.repos["me/tiny"]["README.md"]
    assert (done.files, done.sent_bytes) == (2, model.size_bytes)
    other = ModelStore(tmp_path / "other")
    settings = PullSettings(hf_endpoint=hub.url, environ={"HF_TOKEN": TOKEN}, free_floor_bytes=0)
    pulled = pull(other, "hf:me/tiny", settings=settings)
    assert [p.read_bytes() for p in pulled.files.values()] == [blob.read_bytes()]


def test_files_that_the_hub_has_are_not_sent_again(hub: FakeHub, model: StoredModel) -> None:
    push(hub, model)
    received = hub.pushes.received_bytes
    assert push(hub, model, "me/other").sent_bytes == 0
    assert hub.pushes.received_bytes == received


def test_a_large_file_goes_in_parts(hub: FakeHub, model: StoredModel) -> None:
    hub.pushes.part_bytes = 300_000
    push(hub, model)
    (blob,) = model.files.values()
    assert blob.read_bytes() in hub.repos["me/tiny"].values()


def test_progress_counts_what_is_sent_and_can_end_the_push(hub: FakeHub, model: StoredModel) -> None:
    seen: list[JobProgress] = []
    push_to_hub(model, "me/tiny", endpoint=hub.url, token=TOKEN, progress=seen.append)
    assert (seen[-1].stage, seen[0].total_bytes) == ("done", model.size_bytes)

    def stop(step: JobProgress) -> None:
        if step.done_bytes:
            raise Cancelled("enough")

    hub.pushes.uploaded.clear()
    with pytest.raises(Cancelled):
        push_to_hub(model, "me/second", endpoint=hub.url, token=TOKEN, progress=stop)
    assert set(hub.repos.get("me/second", {})) == set()


@pytest.mark.parametrize(("token", "refuse", "code"), [("", 0, "source_denied"), ("wrong", 0, "source_denied")])
def test_what_the_hub_refuses_is_said_with_the_next_command(
    hub: FakeHub, model: StoredModel, token: str, refuse: int, code: str
) -> None:
    with pytest.raises(HomelabError) as caught:
        push(hub, model, token=token)
    assert (caught.value.code, caught.value.hint) == (code, caught.value.hint)
    assert "mlxctl login huggingface.co" in caught.value.hint
    assert TOKEN not in str(caught.value.as_dict())


def test_a_model_card_says_what_a_model_was_made_from(model: StoredModel) -> None:
    made = Provenance("hf:org/base@1#x.gguf", "", "quantize", "homelab-llm 1", 1.0, {"perplexity_after": 20.125})
    card = model_card(StoredModel(model.name, model.digest, model.facts, provenance=made, source="hf:org/base@1"))
    assert "base_model: org/base\n" in card
    assert "- perplexity after: 20.125" in card
