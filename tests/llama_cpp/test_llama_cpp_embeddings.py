"""Embeddings of the real MiniLM: converted, served by llama.cpp, compared with 32-bit arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France.",
    "How do I reset my router to its factory settings?",
    "café naïve résumé ÀÉÎ — “quotes” and dashes…",
    "don't stop_believing #1 $5.00 <tag> a/b c:\\d",
    "   spaced   out\ttabs\nnew lines  ",
    "北京是中国的首都",
    "日本語のテキスト",
    "Ελληνικά κείμενο, русский текст с ёлкой",
    "العربية نص",
    "emoji 😀 between words 🚀 and ﬁ ligatures № ½",
    "İstanbul ŞIĞ ß",
    "math: ∑∫ √2 ≤ 3 × 4",
    "a",
    "The storm, having crossed the river at night, left the villages without power; " * 20,
]


def embedded(worker: Any, texts: list[str]) -> Any:
    reply = worker.post("/v1/embeddings", {"input": texts})
    assert [item["index"] for item in reply["data"]] == list(range(len(texts)))
    return numpy.array([item["embedding"] for item in reply["data"]])  # (texts, width)


@pytest.mark.requirement("R-I8")
@pytest.mark.requirement("B-16")
def test_every_vector_is_that_of_32_bit_arithmetic(embedding_worker: Any, minilm_reference: Any) -> None:
    vectors = embedded(embedding_worker, TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert float(vector @ minilm_reference.embed(text)) >= 0.999, text
        assert math.isclose(float(numpy.linalg.norm(vector)), 1, abs_tol=1e-4)


@pytest.mark.requirement("R-I8")
def test_texts_become_the_tokens_bert_means(embedding_worker: Any, minilm_reference: Any) -> None:
    for text in TEXTS:
        found = embedding_worker.post("/tokenize", {"content": text, "add_special": True})["tokens"]
        assert found == minilm_reference.tokenizer.encode(text), text


@pytest.mark.requirement("R-I8")
def test_a_text_means_the_same_alone_and_among_others(embedding_worker: Any) -> None:
    together = embedded(embedding_worker, TEXTS[:6])
    for text, vector in zip(TEXTS[:6], together, strict=True):
        assert float(embedded(embedding_worker, [text])[0] @ vector) > 0.9999


@pytest.mark.requirement("R-I8")
def test_near_texts_are_nearer_than_far_ones(embedding_worker: Any) -> None:
    asked, near, far = embedded(
        embedding_worker, ["How can I reset my router?", TEXTS[2], "The recipe needs two eggs and some butter."]
    )
    assert asked @ near > asked @ far + 0.4


@pytest.mark.requirement("R-I8")
def test_the_longest_text_fits_and_one_beyond_is_an_error_with_the_count(embedding_worker: Any) -> None:
    assert len(embedded(embedding_worker, ["word " * 510])[0]) == 384
    status, answer = embedding_worker.call("POST", "/v1/embeddings", {"input": "word " * 600})
    assert status >= 400
    assert "602 tokens" in answer["error"]["message"]
    assert "512" in answer["error"]["message"]
