"""The real SmolLM2 and MiniLM through the conversions, judged by llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from homelab_llm.inference.conversion.bert import BertTensors
from homelab_llm.inference.conversion.decoder import Decoder
from homelab_llm.inference.conversion.encoder import Encoder
from homelab_llm.inference.conversion.opened import open_decoder, open_tokens
from homelab_llm.inference.conversion.similarity import tokenizer
from homelab_llm.testing.llama_worker import llama_worker
from homelab_llm.testing.programs import files_in, run_program

QUESTION = "What is the capital of France? Answer with the name of the city."
PROMPT = "Paris is the capital of France, and Berlin is the capital of"


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in Hugging Face's format, 16 bits."""
    target = tmp_path_factory.mktemp("smollm2") / "hf"
    assert run_program("gguf_to_hf", {"model.gguf": smollm2_f16}, "--target", str(target)).status == 0
    return target


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_smollm2_from_hugging_faces_format_answers_the_capital_question(
    kind: str, smollm2_folder: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    target = tmp_path / "model.gguf"
    assert run_program("hf_to_gguf", files_in(smollm2_folder), "--type", kind, "--target", str(target)).status == 0
    with llama_worker(target) as worker:
        assert "Paris" in worker.answer(QUESTION)
        if kind != "f16":
            return
        ids = open_tokens({"model.gguf": target}).encode(PROMPT)
        assert worker.tokens(PROMPT) == ids
        found = worker.log_probabilities(ids, ids[-1], count=20)
    source = open_decoder({"model.gguf": smollm2_gguf})  # the same weights, before any conversion
    last = Decoder(source.shape, source.tensors).logits(ids)[-1].astype("<f8")
    wanted = last - numpy.log(numpy.exp(last - last.max()).sum()) - last.max()
    assert max(abs(wanted[token] - value) for token, value in found.items()) < 0.05


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize(("kind", "least"), [("f16", 0.999), ("q8_0", 0.99), ("q4_0", 0.9)])
def test_minilm_keeps_its_embeddings(kind: str, least: float, minilm_folder: Path, tmp_path: Path) -> None:
    files, target = files_in(minilm_folder), tmp_path / "model.gguf"
    assert run_program("bert_to_gguf", files, "--type", kind, "--target", str(target)).status == 0
    model = BertTensors(files)
    library, encoder = tokenizer(model.tokens), Encoder(model)
    texts = ["A cat sleeps on the warm roof.", "Quarterly revenue fell by 3 %.", "Où est la gare?"]
    with llama_worker(target, embedding=True) as worker:
        reply = worker.post("/v1/embeddings", {"input": texts})["data"]
    for text, each in zip(texts, reply, strict=True):
        found = numpy.array(each["embedding"])
        assert found @ encoder.embed(library.encode(text).ids) / numpy.linalg.norm(found) >= least
    measured = run_program("similarity", files, *(part for part in ("--other", f"model.gguf={target}"))).result
    assert measured["cosine_min"] >= least
