"""The catalogue: names that parse, references that parse, suggestions that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import ModelNotFound
from homelab_llm.core.names import ModelRef
from homelab_llm.store.catalogue import ENTRIES, find, suggest
from homelab_llm.store.references import HubReference, PackageReference, parse, parse_package


def test_every_entry_has_a_name_a_licence_sizes_and_references_that_parse() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert str(ModelRef.parse(entry.name)) == entry.name
        assert entry.licence
        assert entry.size_bytes > 0
        for reference in filter(None, (entry.reference, entry.apple_reference)):
            assert isinstance(parse(reference), HubReference | PackageReference)
        assert bool(entry.apple_reference) == bool(entry.apple_size_bytes)


@pytest.mark.requirement("R-M4", "B-16")
def test_models_in_packages_are_pinned_file_by_file() -> None:
    packaged = [entry for entry in ENTRIES if entry.reference.startswith("packages:")]
    assert [entry.name for entry in packaged] == ["smollm2:135m", "all-minilm:l6-v2"]
    for entry in packaged:
        assert entry.pins
        assert all(Digest.parse(f"sha256:{pin}") for pin in entry.pins.values())
        assert all(member.startswith(parse_package(entry.reference).member) for member in entry.pins)


def test_a_name_without_a_tag_is_not_guessed_but_the_family_is_named() -> None:
    with pytest.raises(ModelNotFound) as caught:
        find("qwen3")
    assert "qwen3:8b" in str(caught.value.facts["closest"])
    with pytest.raises(ModelNotFound) as caught:
        find("smolm2:135m")
    assert caught.value.facts["closest"] == ["smollm2:135m"]


def test_apple_silicon_gets_the_mlx_form_where_there_is_one() -> None:
    entry = find("qwen3:8b")
    assert entry.reference_for(True) == "hf:mlx-community/Qwen3-8B-4bit"
    assert entry.reference_for(False) == "hf:Qwen/Qwen3-8B-GGUF#Qwen3-8B-Q4_K_M.gguf"
    assert find("smollm2:135m").reference_for(True) == find("smollm2:135m").reference


def test_a_machine_with_16_gb_is_offered_three_models() -> None:
    names = [entry.name for entry in suggest(16 * 10**9, apple=False)]
    assert len(names) == 3
    assert "smollm2:135m" not in names


@given(memory_bytes=st.integers(0, 10**12), apple=st.booleans())
def test_suggestions_fit_grow_and_offer_a_choice(memory_bytes: int, apple: bool) -> None:
    found = suggest(memory_bytes, apple)
    assert len(found) <= 3
    assert all(entry.memory_bytes(apple) <= memory_bytes for entry in found)
    sizes = [entry.size_for(apple) for entry in found]
    assert sizes == sorted(sizes)
    families = [entry.name.partition(":")[0] for entry in found]
    assert all(families.count(family) <= 2 for family in families)
