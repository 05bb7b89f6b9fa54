"""The store against the simplest model of it: a dictionary of names and a set of blobs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import ModelNotFound
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore

FACTS = ModelFacts(format="gguf", architecture="x", size_bytes=1)
names = st.sampled_from(["a:1", "a:2", "a:latest", "org/b:1", "c:latest"])
contents = st.sampled_from([b"", b"one", b"two" * 40, b"three" * 400])
file_sets = st.dictionaries(st.sampled_from(["model.gguf", "config.json", "x/y.json"]), contents, min_size=1)
ref = ModelRef.parse


class StoreMachine(RuleBasedStateMachine):
    """Two store objects on one folder, as two processes have them, do whatever comes; both must always agree."""

    @initialize()
    def begin(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="hl-machine-", dir=memory))
        self.stores = [ModelStore(self.folder / "store") for _ in range(2)]
        self.expected: dict[str, dict[str, bytes]] = {}
        self.held: list[set[bytes]] = [set(), set()]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(who=st.integers(0, 1), content=contents, cut=st.integers(0, 3))
    def write_a_blob(self, who: int, content: bytes, cut: int) -> None:
        for part in (content[:cut], content):
            with self.stores[who].blobs.open_writer(f"key {content!r}", expected=Digest.of(content)) as writer:
                writer.write(part[writer.offset :])
                if part == content:
                    assert writer.commit() == Digest.of(content)
        self.held[who].add(content)

    @rule(who=st.integers(0, 1), name=names, files=file_sets)
    def add(self, who: int, name: str, files: dict[str, bytes]) -> None:
        for content in files.values():
            self.write_a_blob(who, content, 0)
        digests = {file: Digest.of(content) for file, content in files.items()}
        assert self.stores[who].add(ref(name), digests, FACTS, source="test").name == name
        self.held[who] -= set(files.values())
        self.expected[name] = files

    @rule(who=st.integers(0, 1), source=names, goal=names)
    def copy(self, who: int, source: str, goal: str) -> None:
        if source in self.expected:
            self.stores[who].copy(ref(source), ref(goal))
            self.expected[goal] = self.expected[source]
        else:
            with pytest.raises(ModelNotFound):
                self.stores[who].copy(ref(source), ref(goal))

    @rule(who=st.integers(0, 1), name=names)
    def remove(self, who: int, name: str) -> None:
        if name in self.expected:
            self.stores[who].remove(ref(name))
            del self.expected[name]
        else:
            with pytest.raises(ModelNotFound):
                self.stores[who].remove(ref(name))

    @rule(who=st.integers(0, 1))
    def prune(self, who: int) -> None:
        rehearsed = self.stores[1 - who].prune(keep_partials_s=0, dry=True)
        report = self.stores[who].prune(keep_partials_s=0)
        assert (report.items, report.problems) == (rehearsed.items, ())
        needed = {content for files in self.expected.values() for content in files.values()}
        needed |= self.held[0] | self.held[1]
        if (self.folder / "store").exists():
            found = {path.name for path in (self.folder / "store" / "blobs" / "sha256").iterdir()}
            contents_found = found - self.documents()
            assert contents_found == {Digest.of(content).hex for content in needed}

    @rule(who=st.integers(0, 1))
    def end_and_begin_again(self, who: int) -> None:
        self.stores[who] = ModelStore(self.folder / "store")
        self.held[who] = set()

    @rule(who=st.integers(0, 1), name=names)
    def view(self, who: int, name: str) -> None:
        if name in self.expected:
            view = self.stores[who].view(self.stores[who].resolve(name))
            assert {file: (view / file).read_bytes() for file in self.expected[name]} == self.expected[name]

    def documents(self) -> set[str]:
        """Manifests and configurations: exactly those of the models there are."""
        found = set()
        for model in self.stores[0].models():
            found.add(model.digest.hex)
            manifest = (self.folder / "store" / "blobs" / "sha256" / model.digest.hex).read_text()
            found.add(manifest.partition('"config":')[2].partition("sha256:")[2][:64])
        return found

    @invariant()
    def both_show_exactly_the_models_there_are(self) -> None:
        for store in getattr(self, "stores", []):
            assert store.problems() == []
            shown = {
                model.name: {file: path.read_bytes() for file, path in model.files.items()} for model in store.models()
            }
            assert shown == self.expected
            assert {name: store.resolve(name).name for name in self.expected} == {name: name for name in self.expected}


@pytest.mark.requirement("R-M1", "R-M5")
def test_whatever_is_done_in_whatever_order_the_store_is_a_dictionary_of_whole_models() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=100, stateful_step_count=30, deadline=None))
