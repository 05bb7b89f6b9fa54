"""The program that turns a decoder in Hugging Face's format into one GGUF file.

    python -m homelab_llm.inference.conversion.hf_to_gguf --file config.json=PATH --file … --type f16 --target FILE

Llama (SmolLM2 and Mistral too), Qwen2, Qwen2.5, Qwen3, Gemma 1 to 3 (of a multimodal one the language part). MLX
folders too, with ``--force`` where they are quantized. Names and keys: llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.documents import read_object
from homelab_llm.inference.conversion.gguf_output import TYPES, Planned, appearing, tensor_type, write_gguf
from homelab_llm.inference.conversion.hf_tokenizer import Vocabulary, read_vocabulary
from homelab_llm.inference.conversion.names import gguf_name, heads_permuted, norm_offset, permuted
from homelab_llm.inference.conversion.opened import OpenDecoder, is_gguf, open_decoder
from homelab_llm.inference.conversion.shapes import OTHER_WAY, DecoderShape, llama_cpp_scale
from homelab_llm.inference.conversion.tensors import pieces, whole_tensor


def convert(files: Mapping[str, Path], target: Path, kind: str, *, name: str, licence: str, force: bool) -> None:
    """Write ``target``; does nothing when it is there.

    Raises:
        UnsupportedRequest: what llama.cpp would compute otherwise, or quantized weights without ``force``.
        BadModelFile: files that contradict each other.
    """
    if is_gguf(files):
        raise UnsupportedRequest("the model is a GGUF file already")
    if not force and isinstance(read_object(files, "config.json").get("quantization"), dict):
        raise UnsupportedRequest(
            "the model is quantized already: what was lost does not come back",
            hint="start from the original model, or use --force",
        )
    opened = open_decoder(files)
    refuse_other_scale(opened.shape)
    vocabulary = read_vocabulary(files, opened.shape.vocabulary)
    with appearing(target, lambda: program.progress("converting", 0)) as path:
        if path is not None:
            write_gguf(
                path,
                opened.shape.family,
                kind,
                describe=lambda writer: _describe(writer, opened.shape, vocabulary, name, licence),
                tensors=list(_plan(opened, kind)),
                progress=lambda done: program.progress("converting", done),
            )


def refuse_other_scale(shape: DecoderShape) -> None:
    """GGUF does not carry Gemma's attention scale; llama.cpp works it out.

    Raises:
        UnsupportedRequest: it would work out another one.
    """
    if abs(llama_cpp_scale(shape) / shape.attention_scale - 1) > 1e-3:
        raise UnsupportedRequest("llama.cpp would scale this model's attention otherwise", hint=OTHER_WAY)


def _plan(opened: OpenDecoder, wanted: str) -> Iterator[Planned]:
    shape = opened.shape
    output = "token_embd.weight" if shape.tied else "output.weight"
    for name, dimensions in shape.tensors().items():
        there = gguf_name(name, shape)
        yield _planned(opened, name, there, dimensions, tensor_type(there, dimensions, wanted, output=output))
    if shape.rope_divisors:
        yield Planned("rope_freqs.weight", (len(shape.rope_divisors),), "f32", lambda: [_array(shape.rope_divisors)])


def _planned(opened: OpenDecoder, name: str, there: str, dimensions: tuple[int, ...], kind: str) -> Planned:
    def blocks() -> Iterable[Any]:
        if heads := heads_permuted(name, opened.shape):
            return [permuted(whole_tensor(opened.tensors, name), heads)]
        added = norm_offset(name, opened.shape)
        return (block + block.dtype.type(added) for block in pieces(opened.tensors, name))

    return Planned(there, dimensions, kind, blocks)


def _array(values: Sequence[float]) -> Any:
    import numpy

    return numpy.array(values, dtype="<f4")


def _describe(writer: Any, shape: DecoderShape, vocabulary: Vocabulary, name: str, licence: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocabulary)
    if shape.family == "llama":
        writer.add_rope_dimension_count(shape.head_width)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.attention_softcap:
        writer.add_attn_logit_softcapping(shape.attention_softcap)
        writer.add_final_logit_softcapping(shape.final_softcap)
    if shape.rope_linear != 1:
        writer.add_string(f"{shape.family}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(shape.rope_linear)
    vocabulary.describe(writer)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = program.parser("hf_to_gguf", "Turn a folder in Hugging Face's format into a GGUF file.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--type", choices=TYPES, default="f16")
    parser.add_argument("--name", default="model", help="general.name of the result")
    parser.add_argument("--licence", default="", help="general.license of the result")
    parser.add_argument("--force", action="store_true", help="also what is quantized already")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)
    return program.run(
        given,
        lambda: convert(files, given.target, given.type, name=given.name, licence=given.licence, force=given.force),
    )


if __name__ == "__main__":
    sys.exit(main())
