"""The program that turns a BERT embedding model in Hugging Face's format into one GGUF file for llama.cpp.

    python -m homelab_llm.inference.conversion.bert_to_gguf --file config.json=PATH --file … --target FILE [--type q8_0]

Only lower-casing WordPiece BERT with GELU and absolute positions: what llama.cpp's ``bert`` computes. Lengths and
shapes are compared with the configuration before anything is written, and one tensor is in memory at a time.

GGUF names and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.bert import SPECIAL, BertTensors, phantom
from homelab_llm.inference.conversion.gguf_output import TYPES, Planned, appearing, tensor_type, write_gguf

VERSION = 1  # of the output; the engine puts it into the target's name


def convert(files: Mapping[str, Path], target: Path, name: str, kind: str = "q8_0", licence: str = "") -> None:
    """Write ``target``; does nothing when it is there. Blocks, seconds for a small model.

    Raises:
        BadModelFile: the files contradict each other.
        UnsupportedRequest: a BERT that llama.cpp would compute wrongly.
    """
    if any(file.endswith(".gguf") for file in files):
        raise UnsupportedRequest("the model is a GGUF file already")
    model = BertTensors(files)
    with appearing(target, lambda: program.progress("convert", 0)) as path:
        if path is not None:
            write_gguf(
                path,
                "bert",
                kind,
                describe=lambda writer: _describe(writer, model, name, licence),
                tensors=list(_plan(model, kind)),
                progress=lambda done: program.progress("convert", done),
            )


def _plan(model: BertTensors, wanted: str) -> Iterator[Planned]:
    for source, there, shape in model.shape.tensors():
        model.check(source, shape)
        yield _planned(model, source, there, shape, tensor_type(there, shape, wanted, output="token_embd.weight"))


def _planned(model: BertTensors, source: str, there: str, shape: tuple[int, ...], kind: str) -> Planned:
    def blocks() -> Iterable[Any]:
        return [model.read(source, shape)]

    return Planned(there, shape, kind, blocks)


def _describe(writer: Any, model: BertTensors, name: str, licence: str) -> None:
    """All metadata."""
    from gguf import PoolingType, TokenType

    shape, tokens = model.shape, model.tokens
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType(model.pooling))
    ids = {token: number for number, token in enumerate(tokens)}
    if missing := [token for token in SPECIAL if token not in ids]:
        raise BadModelFile(f"the tokenizer has no {missing[0]}")
    writer.add_tokenizer_model("bert")
    writer.add_token_list([phantom(token) for token in tokens])
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_type_count(shape.token_types)
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids["[CLS]"])


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = program.parser("bert_to_gguf", "Turn a BERT folder into a GGUF file.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--type", choices=TYPES, default="q8_0")
    parser.add_argument("--name", default="bert", help="general.name of the result")
    parser.add_argument("--licence", default="", help="general.license of the result")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)
    return program.run(given, lambda: convert(files, given.target, given.name, given.type, given.licence))


if __name__ == "__main__":
    sys.exit(main())
