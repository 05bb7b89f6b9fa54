from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidDigest, InvalidName
from homelab_llm.core.names import ModelRef, parse_slug, slug_of


@pytest.mark.requirement("R-M1")
@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("smollm2:135m", "smollm2", "135m"),
        ("smollm2", "smollm2", "latest"),
        ("Qwen/Qwen3-0.6B:Q4_K_M", "qwen/qwen3-0.6b", "Q4_K_M"),
        ("a.b_c__d--e/f", "a.b_c__d--e/f", "latest"),
    ],
)
def test_a_name_reads_as_repository_and_tag(text: str, repository: str, tag: str) -> None:
    ref = ModelRef.parse(text)
    assert (ref.repository, ref.tag) == (repository, tag)


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a/../b", "../etc/passwd", "/abs", "-flag", "a//b", "a/", "a:", "a:b:c", "a b", "a\n", "a\x00b",
        "a" * 129, "x" * 10_000, "a:" + "t" * 65, "smollm2:../x", "％2e", "аpple", "a\u202eb",
        "%2e%2e", "$(x)", ";rm", "a\\b",
        "a@sha256:" + "A" * 64, "a@sha256:" + "a" * 63, "a@md5:" + "a" * 32, "a/b/c/d/e",
    ],
)  # fmt: skip
def test_a_name_outside_the_grammar_is_refused_and_not_echoed_whole(text: str) -> None:
    with pytest.raises((InvalidName, InvalidDigest)) as caught:
        ModelRef.parse(text)
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


@given(st.text(max_size=300))
def test_every_accepted_name_parses_to_itself_again(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except HomelabError:
        return
    assert ModelRef.parse(str(ref)) == ref
    assert ".." not in ref.repository.split("/")


def test_a_digest_reference_keeps_its_digest() -> None:
    digest = Digest.of(b"x")
    assert ModelRef.parse(f"a@{digest}").digest == digest


@given(st.text(max_size=200))
def test_only_the_canonical_digest_form_is_read(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text if not text.startswith("sha256:") else "SHA256:" + text)


def test_slugs_fold_any_repository_id() -> None:
    assert slug_of("Qwen/Qwen3-0.6B") == "qwen-qwen3-0-6b"
    with pytest.raises(InvalidName):
        parse_slug("Not A Slug", what="key name")
