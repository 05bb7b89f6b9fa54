"""Many pulls of one model at the same time, in threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import Cancelled
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.testing.hub import FakeHub

Settings = Callable[..., PullSettings]
FULL = os.environ.get("HOMELAB_SIZE") == "full"
REFERENCE = "hf:Org/Large-GGUF"
PROGRAM = """
import sys
from pathlib import Path
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
settings = PullSettings(hf_endpoint=sys.argv[2], free_floor_bytes=0, environ={}, backoff_s=0.001)
pull(ModelStore(Path(sys.argv[1])), "hf:Org/Large-GGUF", name=sys.argv[3], settings=settings)
"""


@pytest.mark.requirement("R-M3")
@pytest.mark.parametrize(("in_threads", "in_processes"), [(46, 4) if FULL else (10, 2)])
def test_fifty_pulls_of_one_model_are_one_download(
    in_threads: int, in_processes: int, hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    stages: list[set[str]] = []
    seen_bytes: list[int] = []

    def run(number: int) -> None:
        seen: set[str] = set()

        def look(report: JobProgress) -> None:
            seen.add(report.stage)
            if report.stage == "waiting":
                seen_bytes.append(report.done_bytes)

        pull(ModelStore(store.root), REFERENCE, name=f"thread:{number}", settings=settings(), progress=look)
        stages.append(seen)

    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(store.root), hub.url, f"process:{number}"])
        for number in range(in_processes)
    ]
    threads = [threading.Thread(target=run, args=(number,)) for number in range(in_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0] * in_processes
    assert hub.file_bytes_sent < 2 * len(content)  # the rest of a slow connection may have been taken over
    assert len(stages) == in_threads
    assert sum("waiting" in seen for seen in stages) >= in_threads - 2
    assert max(seen_bytes) > 0
    assert len(store.models()) == in_threads + in_processes
    assert len({model.digest for model in store.models()}) == 1


@pytest.mark.requirement("R-M3")
def test_when_the_one_who_fetches_is_cancelled_another_goes_on_from_there(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    waiting, cancel = threading.Event(), threading.Event()
    outcome: list[str] = []
    taken_over: list[int] = []
    slow = settings(rate_limit_bytes_per_s=20_000_000)

    def first(report: JobProgress) -> None:
        if report.done_bytes > 5_000_000 and waiting.is_set():
            cancel.set()
            raise Cancelled("no more")

    def lead() -> None:
        with pytest.raises(Cancelled):
            pull(ModelStore(store.root), REFERENCE, name="first:1", settings=slow, progress=first)
        outcome.append("cancelled")

    def second(report: JobProgress) -> None:
        if report.stage == "waiting":
            waiting.set()
        if report.stage == "fetching":
            taken_over.append(report.done_bytes)

    thread = threading.Thread(target=lead)
    thread.start()
    while not store.blobs.kept_bytes(str(Digest.of(content))) and thread.is_alive():
        threading.Event().wait(0.005)
    pull(store, REFERENCE, name="second:1", settings=settings(), progress=second)
    thread.join(30)
    assert outcome == ["cancelled"]
    assert cancel.is_set()
    assert [model.name for model in store.models()] == ["second:1"]
    assert taken_over[0] > 5_000_000


@pytest.mark.requirement("R-M3")
def test_two_models_that_share_a_file_fetch_it_once(
    hub: FakeHub, store: ModelStore, settings: Settings, content: bytes
) -> None:
    hub.repos["Org/Other-GGUF"] = {"other-F32.gguf": content}
    names = ["hf:Org/Large-GGUF", "hf:Org/Other-GGUF"]
    threads = [threading.Thread(target=pull, args=(store, name), kwargs={"settings": settings()}) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.models()) == 2
    assert hub.file_bytes_sent == len(content)
