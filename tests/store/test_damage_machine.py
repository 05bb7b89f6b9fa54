"""Damage and repair in any order, against the simplest model of it: a set of contents that are broken."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import ModelDamaged
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.verify import check_model, verify
from homelab_llm.testing.damage import Damaging, cut_short, flip_a_bit, remove, zero_a_page

FACTS = ModelFacts(format="gguf", architecture="x", size_bytes=1)
MODELS = {
    "a:1": {"model.gguf": b"one" * 50, "x.json": b"shared" * 9},
    "b:1": {"model.gguf": b"two" * 4000, "x.json": b"shared" * 9},
    "c:1": {"model.gguf": b"three" * 400, "y.json": b"own"},
}
CONTENTS = sorted({content for files in MODELS.values() for content in files.values()})
who = st.integers(0, 1)
names = st.sampled_from(sorted(MODELS))


class DamageMachine(RuleBasedStateMachine):
    """Two store objects on one folder, and somebody who damages its bytes."""

    @initialize()
    def begin(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="hl-damage-", dir=memory))
        self.stores = [ModelStore(self.folder / "store") for _ in range(2)]
        self.broken: set[bytes] = set()
        for name, files in MODELS.items():
            for content in files.values():
                self.write(0, content)
            digests = {file: Digest.of(content) for file, content in files.items()}
            self.stores[0].add(ModelRef.parse(name), digests, FACTS, source="test")

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def write(self, store: int, content: bytes) -> None:
        expected = Digest.of(content)
        blobs = self.stores[store].blobs
        with blobs.open_writer(str(expected), expected=expected, size_bytes=len(content)) as writer:
            writer.write(content[writer.offset :])
            writer.commit()
        blobs.release([expected])

    @rule(content=st.sampled_from(CONTENTS), how=st.sampled_from([flip_a_bit, zero_a_page, cut_short, remove]))
    def damage(self, content: bytes, how: Damaging) -> None:
        if content not in self.broken:
            how(self.stores[0].blobs.path(Digest.of(content)))
            self.broken.add(content)

    @rule(store=who)
    def verify(self, store: int) -> None:
        found = {(damage.model, damage.file) for damage in verify(self.stores[store]).damages}
        assert found == {
            (name, file) for name, files in MODELS.items() for file, content in files.items() if content in self.broken
        }

    @rule(store=who, content=st.sampled_from(CONTENTS))
    def mend(self, store: int, content: bytes) -> None:
        """As a repair does: what was found damaged is written again, and what is whole keeps its bytes."""
        self.verify(store)
        path = self.stores[store].blobs.path(Digest.of(content))
        before = path.stat().st_ino if content not in self.broken else None
        self.write(store, content)
        assert before in (None, path.stat().st_ino)
        self.broken.discard(content)

    @rule(store=who, name=names)
    def check_before_a_load(self, store: int, name: str) -> None:
        expected = {file for file, content in MODELS[name].items() if content in self.broken}
        try:
            model = self.stores[store].resolve(name)
        except ModelDamaged:
            assert expected
            return
        found = {damage.file for damage in check_model(self.stores[store], model)}
        assert found <= expected  # what is known to be bad is told without hashing the rest
        assert bool(found) == bool(expected)

    @rule(store=who)
    def crash(self, store: int) -> None:
        self.stores[store].verification.distrust()

    @rule(store=who)
    def end_in_order(self, store: int) -> None:
        self.stores[store].verification.seal()

    @rule(store=who)
    def begin_again(self, store: int) -> None:
        self.stores[store] = ModelStore(self.folder / "store")

    @rule(store=who)
    def prune(self, store: int) -> None:
        assert self.stores[store].prune(keep_partials_s=0).blobs == 0

    @invariant()
    def nothing_that_is_whole_is_called_bad(self) -> None:
        for store in getattr(self, "stores", []):
            bad = set(store.verification.damaged())
            assert bad <= {Digest.of(content) for content in self.broken}


@pytest.mark.requirement("R-M4", "B-9")
def test_whatever_is_damaged_is_found_and_mended_in_whatever_order() -> None:
    run_state_machine_as_test(DamageMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))
