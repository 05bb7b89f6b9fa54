"""The program that says how alike the embeddings of two models are, one of which was made from the other.

    python -m homelab_llm.inference.conversion.similarity --file NAME=PATH … --other NAME=PATH …

Cosine of the two vectors of each of some sentences; both are computed by ``encoder.py`` from the weights as they are
stored, each from its own tokens. The last line is ``@result`` with mean and minimum; 1 is the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.bert import BertTensors
from homelab_llm.inference.conversion.encoder import Encoder
from homelab_llm.inference.conversion.perplexity import read_text

SENTENCES = 32
_MOST_TOKENS = 96


def compare(before: Mapping[str, Path], after: Mapping[str, Path]) -> dict[str, float]:
    """Mean and minimum of the cosines, and of how many sentences.

    Raises:
        UnsupportedRequest, BadModelFile: not BERT models, or not of one width.
    """
    texts = [text for text in read_text(None).split("\n\n") if text][:SENTENCES]
    vectors = [_vectors(files, texts, at) for at, files in enumerate((before, after))]
    cosines = [float(a @ b) for a, b in zip(*vectors, strict=True)]
    return {"cosine_mean": sum(cosines) / len(cosines), "cosine_min": min(cosines), "sentences": len(cosines)}


def _vectors(files: Mapping[str, Path], texts: Sequence[str], which: int) -> list[Any]:
    model = BertTensors(files)
    library, encoder = tokenizer(model.tokens), Encoder(model)
    most = min(_MOST_TOKENS, model.shape.positions)
    found = []
    for number, text in enumerate(texts):
        ids = library.encode(text).ids
        found.append(encoder.embed([*ids[: most - 1], ids[-1]] if len(ids) > most else ids))
        program.progress("measuring", (which + (number + 1) / len(texts)) / 2)
    return found


def tokenizer(tokens: Sequence[str]) -> Any:
    """BERT's lower-casing WordPiece tokenizer over these tokens.

    Raises:
        EngineUnavailable: the ``tokenizers`` library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise EngineUnavailable(
            "measuring needs the tokenizers library", hint="pip install 'homelab-llm[gguf]'"
        ) from error
    ids = {token: number for number, token in enumerate(tokens)}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text, end],
            "pair": [begin, text, end],
            "special_tokens": special,
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as the command line says."""
    parser = program.parser("similarity", "Say how alike the embeddings of two models are.")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PATH", help="a file of the other model")
    given = parser.parse_args(argv)
    before, after = program.files_of(given.file), program.files_of(given.other)
    return program.run(given, lambda: program.result(compare(before, after)))


if __name__ == "__main__":
    sys.exit(main())
