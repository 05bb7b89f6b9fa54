"""Moves of the registry: each alone, and any number of them against a simple model."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.document import Document, read_document, write_document
from homelab_llm.core.registry.entry import Entry, parse_entry_slug
from homelab_llm.core.registry.merge import differences, merge, replace_all
from homelab_llm.core.registry.state import (
    RegistryState,
    adopt_foreign,
    assign,
    clear,
    duplicates,
    fail,
    forget,
    free_slug,
    register,
    rename,
    serve,
)


def an_entry(slug: str) -> Entry:
    return Entry(slug, f"{slug}:latest", cache_path="/m")


def a_state(*slugs: str) -> RegistryState:
    state = RegistryState()
    for slug in slugs:
        state = register(state, an_entry(slug))
    return state


def refused(code: str) -> pytest.RaisesExc[HomelabError]:
    return pytest.RaisesExc(HomelabError, check=lambda error: error.code == code)


def test_an_entry_is_found_by_slug_and_by_model() -> None:
    state = a_state("a", "b")
    assert state.entry("a") is state.by_model("a:latest")
    assert state.by_model("c:latest") is None
    with refused("model_not_registered"):
        state.entry("c")


def test_registering_again_replaces_the_entry_and_the_same_changes_nothing() -> None:
    state = a_state("a")
    assert register(state, an_entry("a")) is state
    changed = register(state, Entry("a", "a:latest", context_length=1))
    assert changed.entry("a").context_length == 1


def test_one_model_has_one_entry() -> None:
    with refused("already_exists"):
        register(a_state("a"), Entry("other", "a:latest"))


def test_a_model_keeps_its_slug_and_a_taken_slug_gets_a_number() -> None:
    state = a_state("a", "a-2")
    assert free_slug(state, "anything", "a:latest") == "a"
    assert free_slug(state, "a", "new:latest") == "a-3"
    assert free_slug(state, "b", "new:latest") == "b"
    long = "x" * 128
    assert parse_entry_slug(free_slug(a_state(long), long, "new:latest")).endswith("x-2")


@pytest.mark.requirement("R-F1")
def test_a_used_port_and_a_model_elsewhere_need_force() -> None:
    state = serve(serve(a_state("a", "b"), 8100, "a", 1), 8101, "b", 1)
    with refused("slot_in_use"):
        assign(state, 8100, "b", 2)
    with refused("slot_in_use"):
        assign(state, 8102, "a", 2)
    with refused("model_not_registered"):
        assign(state, 8102, "c", 2)
    forced = assign(state, 8100, "b", 2, force=True)
    assert [forced.assignment(port).desired for port in (8100, 8101)] == ["b", ""]
    assert forced.assignment(8100).actual == "a", "it answers until the other is proven"
    assert forced.port_of("b") == 8100


def test_a_model_that_answers_is_desired_actual_and_last_good_and_saying_so_again_changes_nothing() -> None:
    state = serve(fail(a_state("a"), 8100, "no memory", 1), 8100, "a", 2)
    held = state.assignment(8100)
    assert (held.desired, held.actual, held.last_good, held.last_failure) == ("a", "a", "a", "")
    assert (held.failed_unix_s, held.changed_unix_s) == (1, 2)
    assert serve(state, 8100, "a", 3) is state


def test_a_failure_is_noted_and_changes_nothing_else() -> None:
    state = fail(serve(a_state("a"), 8100, "a", 1), 8100, "out\0 of memory \ud800" + "x" * 5000, 5)
    held = state.assignment(8100)
    assert (held.desired, held.actual, held.failed_unix_s, held.changed_unix_s) == ("a", "a", 5, 1)
    assert held.last_failure.startswith("out of memory ?x")
    assert len(held.last_failure) < 2001


def test_an_emptied_port_remembers_its_last_good_model() -> None:
    state = clear(fail(serve(a_state("a"), 8100, "a", 1), 8100, "crash", 2), 8100, 3)
    held = state.assignment(8100)
    assert (held.desired, held.actual, held.last_good, held.last_failure) == ("", "", "a", "")
    assert clear(state, 8100, 4) is state


@pytest.mark.requirement("R-F3")
def test_a_foreign_server_keeps_only_a_port_that_is_not_ours() -> None:
    state = serve(a_state("a"), 8100, "a", 1)
    with refused("slot_in_use"):
        adopt_foreign(state, 8100, "other", 2)
    adopted = adopt_foreign(state, 8101, "other/model\0", 2)
    assert adopted.assignment(8101).foreign == "other/model"
    assert assign(adopted, 8101, "a", 3, force=True).assignment(8101).foreign == ""


def test_an_entry_on_a_port_stays_and_one_that_goes_is_forgotten_everywhere() -> None:
    state = serve(a_state("a", "b"), 8100, "a", 1)
    with refused("slot_in_use"):
        forget(state, "a")
    with refused("slot_in_use"):
        forget(merge(state, Document({}, {"a": None}), 2), "a")  # it still answers there
    gone = forget(clear(state, 8100, 2), "a")
    assert gone.assignment(8100).last_good == ""
    assert list(gone.entries) == ["b"]
    with refused("model_not_registered"):
        forget(gone, "a")


@pytest.mark.requirement("R-F2")
def test_a_merge_takes_what_the_document_says_and_leaves_the_rest() -> None:
    state = serve(serve(a_state("a", "b"), 8100, "a", 1), 8101, "b", 1)
    new = Entry("c", "c:latest")
    merged = merge(state, Document({"c": new}, {"c": 8100, "a": None}), 5)
    assert [merged.assignment(port).desired for port in (8100, 8101)] == ["c", "b"]
    assert merged.assignment(8100).actual == "a", "what answers there follows when it is brought about"
    assert merged.assignment(8101) == state.assignment(8101)
    with refused("slot_in_use"):
        merge(state, Document({"c": new}, {"c": 8100}), 5)
    assert merge(state, Document({"c": new}, {}), 5).assignments == state.assignments
    assert merge(state, Document.of(state), 5) == state


def test_an_entry_gets_another_slug_and_ports_follow() -> None:
    state = rename(serve(a_state("a", "b"), 8100, "a", 1), "a", "c")
    held = state.assignment(8100)
    assert (held.desired, held.actual, held.last_good) == ("c", "c", "c")
    assert (sorted(state.entries), state.entry("c").model_id) == (["b", "c"], "a:latest")
    with refused("already_exists"):
        rename(state, "b", "c")
    with refused("model_not_registered"):
        rename(state, "a", "d")


@pytest.mark.requirement("R-F2")
def test_a_merge_knows_a_model_by_its_name_and_takes_the_slug_of_the_document() -> None:
    state = serve(a_state("a"), 8100, "a", 1)
    merged = merge(state, Document({"theirs": Entry("theirs", "a:latest", pinned=True)}, {"theirs": 8101}), 2)
    assert list(merged.entries) == ["theirs"]
    assert (merged.assignment(8100).actual, merged.port_of("theirs")) == ("theirs", 8101)
    assert merged.entry("theirs").pinned
    with refused("already_exists"):
        merge(a_state("a", "b"), Document({"b": Entry("b", "a:latest")}, {}), 2)


def test_a_document_can_swap_two_models_in_one_move() -> None:
    state = serve(serve(a_state("a", "b"), 8100, "a", 1), 8101, "b", 1)
    swapped = merge(state, Document({}, {"a": 8101, "b": 8100}), 2)
    assert (swapped.port_of("a"), swapped.port_of("b")) == (8101, 8100)
    served = serve(swapped, 8101, "a", 3)
    assert [served.assignment(port).actual for port in (8100, 8101)] == ["", "a"], "one model is on one port"


@pytest.mark.requirement("R-F2")
def test_a_replacement_leaves_nothing_that_the_document_does_not_say() -> None:
    state = serve(serve(a_state("a", "b"), 8100, "a", 1), 8101, "b", 1)
    only = replace_all(state, Document({"b": an_entry("b")}, {"b": 8102}), 2)
    assert list(only.entries) == ["b"]
    assert {port: held.desired for port, held in only.assignments.items()} == {8100: "", 8101: "", 8102: "b"}
    assert (only.assignment(8100).actual, only.assignment(8101).actual) == ("", "b")


def test_differences_are_said_in_words() -> None:
    before = Document.of(serve(a_state("a", "b", "c"), 8100, "a", 1))
    entries = {"a": Entry("a", "a:latest", cache_path="/m", pinned=True, context_length=1), "c": an_entry("c")}
    after = Document({**entries, "d": an_entry("d")}, {"a": 8101, "c": None, "d": 8100})
    assert differences(before, after) == [
        "a has another context_length, pinned",
        "a is on port 8101 in place of 8100",
        "b is gone",
        "d is new, on port 8100",
    ]
    assert differences(before, before) == []
    assert differences(before, Document(before.entries, {})) == [], "a port that is not mentioned is no other port"


_SLUGS = ("a", "b", "c", "d")
_PORTS = (8100, 8101, 8102)
_slug, _port = st.sampled_from(_SLUGS), st.sampled_from(_PORTS)


class Moves(RuleBasedStateMachine):
    """Any sequence of moves against a dictionary from port to slug."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RegistryState()
        self.known: set[str] = set()
        self.on: dict[int, str] = {}
        self.now = 0.0

    def moved(self, slug: str, port: int) -> None:
        self.on = {p: s for p, s in self.on.items() if s != slug} | {port: slug}

    @rule(slug=_slug)
    def register(self, slug: str) -> None:
        self.state = register(self.state, an_entry(slug))
        self.known.add(slug)

    @rule(slug=_slug)
    def forget(self, slug: str) -> None:
        with contextlib.suppress(HomelabError):
            self.state = forget(self.state, slug)
            assert slug not in self.on.values()
            self.known.discard(slug)

    @rule(slug=_slug, port=_port, force=st.booleans())
    def assign(self, slug: str, port: int, force: bool) -> None:
        free = self.on.get(port, slug) == slug and all(p == port for p, s in self.on.items() if s == slug)
        if slug in self.known and (force or free):
            self.state = assign(self.state, port, slug, self.tick(), force=force)
            self.moved(slug, port)
        else:
            with pytest.raises(HomelabError):
                assign(self.state, port, slug, self.tick(), force=force)

    @rule(slug=_slug, port=_port)
    def serve(self, slug: str, port: int) -> None:
        if slug in self.known:
            self.state = serve(self.state, port, slug, self.tick())
            self.moved(slug, port)
            assert self.state.assignment(port).actual == slug

    @rule(port=_port)
    def fail(self, port: int) -> None:
        self.state = fail(self.state, port, "reason", self.tick())

    @rule(port=_port)
    def clear(self, port: int) -> None:
        self.state = clear(self.state, port, self.tick())
        self.on.pop(port, None)

    @rule(port=_port)
    def adopt(self, port: int) -> None:
        if port not in self.on:
            self.state = adopt_foreign(self.state, port, "theirs", self.tick())

    @rule(slugs=st.lists(_slug, unique=True, max_size=3), ports=st.permutations(_PORTS), whole=st.booleans())
    def take_in(self, slugs: list[str], ports: list[int], whole: bool) -> None:
        ported = dict(zip(slugs, ports, strict=False))
        document = Document({slug: an_entry(slug) for slug in slugs}, {**ported})
        kept = {} if whole else {p: s for p, s in self.on.items() if s not in ported}
        if set(kept) & set(ported.values()):
            with pytest.raises(HomelabError):
                merge(self.state, document, self.tick())
            return
        self.state = (replace_all if whole else merge)(self.state, document, self.tick())
        self.known = set(slugs) | (set() if whole else self.known)
        self.on = kept | {port: slug for slug, port in ported.items()}

    @invariant()
    def one_port_has_one_model_and_one_model_one_port(self) -> None:
        assert {p: a.desired for p, a in self.state.assignments.items() if a.desired} == self.on
        assert duplicates(self.state.assignments.values()) == []
        answering = [a.actual for a in self.state.assignments.values() if a.actual]
        assert len(set(answering)) == len(answering)

    @invariant()
    def nothing_names_a_model_that_is_not_there(self) -> None:
        assert set(self.state.entries) == self.known
        for held in self.state.assignments.values():
            assert {held.desired, held.actual, held.last_good} <= {"", *self.known}

    @invariant()
    def the_export_is_read_back(self) -> None:
        document = Document.of(self.state)
        assert read_document(write_document(document)) == document

    def tick(self) -> float:
        self.now += 1
        return self.now


test_any_sequence_of_moves_keeps_the_registry_whole = pytest.mark.requirement("R-F1")(Moves.TestCase)
Moves.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
