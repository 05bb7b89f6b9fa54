"""Patterns as automata: the same language as Python's, for the part both know."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.inference.kit.grammar import Grammar
from homelab_llm.inference.kit.patterns import add_pattern

Accepts = Callable[[Grammar, str], bool]
Write = Callable[[Grammar, int], str]


def compiled(source: str) -> Grammar:
    grammar = Grammar()
    grammar.rules["root"] = add_pattern(grammar, source, "pattern", "p")
    return grammar


def sources() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", "c", "[a-c]", "[^ab]", r"\d", r"\w", ".", "é", r"\.", "(?:ab)"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda options: f"({'|'.join(options)})"),
            st.tuples(inner, st.sampled_from("?*+") | st.just("{1,2}") | st.just("{2}")).map(
                lambda p: f"(?:{p[0]}){p[1]}"
            ),
        ),
        max_leaves=6,
    )


@pytest.mark.requirement("R-I6")
@settings(max_examples=200, deadline=None)
@given(source=sources(), seed=st.integers(0, 2**32), texts=st.lists(st.text("abc0é. ", max_size=6), max_size=5))
def test_an_anchored_pattern_allows_what_python_matches(
    source: str, seed: int, texts: list[str], write: Write, accepts: Accepts
) -> None:
    grammar = compiled(f"^({source})$")
    written = json.loads(f'"{write(grammar, seed)}"')
    assert re.fullmatch(source, written, re.ASCII), written
    for text in texts:
        assert accepts(grammar, text) is bool(re.fullmatch(source, text, re.ASCII)), text


def test_without_anchors_the_pattern_may_stand_anywhere(accepts: Accepts) -> None:
    grammar = compiled("ab+c")
    assert accepts(grammar, "xxabbcyy")
    assert not accepts(grammar, "xxacyy")
    assert accepts(compiled("^ab"), "abz")
    assert not accepts(compiled("^ab"), "zab")


def test_characters_that_json_escapes_are_written_as_escapes(accepts: Accepts) -> None:
    grammar = compiled(r'^"[\\/"]$')
    assert accepts(grammar, '\\"\\\\')
    assert accepts(grammar, '\\"/')
    assert not accepts(grammar, '""')


@pytest.mark.parametrize(
    "source",
    ["(", ")", "a)", "[", "[]", "[b-a]", "*a", "a**?", "a{2", "a{x}", "a{3,1}", "(?=a)", "(?<n>a)", r"\1", r"\b",
     r"\p{L}", "a^b", "a$b", "^a|b$", "\\", "a+?", r"[\D]", "\x01", r"\u12"],
)  # fmt: skip
def test_what_is_not_known_is_refused_and_never_guessed(source: str) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        compiled(source)
    assert caught.value.facts["field"] == "pattern"
