"""The program that turns a GGUF decoder into a folder in Hugging Face's format: safetensors, 16 or 32 bits.

    python -m homelab_llm.inference.conversion.gguf_to_hf --file model.gguf=PATH --type f16 --target FOLDER

The other direction of ``hf_to_gguf``: what is quantized is read back into floats, with ``--force``, for programs that
read nothing else, and for fusing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.folder_output import appearing_folder, write_document, write_tensors
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.gguf_tokenizer import tokenizer_of_metadata
from homelab_llm.inference.conversion.opened import is_gguf, open_decoder
from homelab_llm.inference.conversion.shapes import DecoderShape
from homelab_llm.inference.conversion.tensors import pieces

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FULL = frozenset({"F32", "F16", "BF16"})


def convert(files: Mapping[str, Path], target: Path, kind: str, *, licence: str, force: bool) -> None:
    """Make the folder ``target``; does nothing when it is there.

    Raises:
        UnsupportedRequest: an architecture or tokenizer that is not known here, or quantized weights without ``force``.
        BadModelFile: a file that contradicts itself.
    """
    if not is_gguf(files):
        raise UnsupportedRequest("the model is not a GGUF file")
    source = GgufFiles.of(files)
    if not force:
        _refuse_quantized(source)
    opened = open_decoder(files)
    if opened.shape.rope_divisors:
        raise UnsupportedRequest("the scaling of this model's positions cannot be said in config.json")
    tokenizer = tokenizer_of_metadata({key: pair.value for key, pair in source.pairs.items()})
    with appearing_folder(target, lambda: program.progress("converting", 0)) as folder:
        if folder is None:
            return
        config = build_config(opened.shape, kind, tokenizer.bos_id, tokenizer.end_ids())
        write_document(folder / "config.json", config)
        write_document(folder / "tokenizer.json", tokenizer.as_tokenizer_json())
        write_document(folder / "tokenizer_config.json", tokenizer.as_tokenizer_config())
        if licence:
            (folder / "README.md").write_text(f"---\nlicense: {json.dumps(licence).strip(chr(34))}\n---\n", "utf-8")
        write_tensors(
            folder,
            {name: (kind.upper(), shape) for name, shape in opened.shape.tensors().items()},
            lambda name: pieces(opened.tensors, name),
            lambda done: program.progress("converting", done),
        )


def _refuse_quantized(source: GgufFiles) -> None:
    from gguf import GGMLQuantizationType

    kinds = {GGMLQuantizationType(stored.kind).name for stored in source.tensors.values()} - _FULL
    if kinds:
        raise UnsupportedRequest(
            f"the model is quantized ({', '.join(sorted(kinds))}): as floats it is larger and no better",
            hint="start from the original model, or use --force",
        )


def build_config(shape: DecoderShape, kind: str, bos: int | None, ends: Sequence[int]) -> dict[str, Any]:
    """The content of config.json."""
    model_type, architecture = _CLASSES[shape.family]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.context_tokens,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": _NAMES[kind],
        "eos_token_id": list(ends),
        **({} if bos is None else {"bos_token_id": bos}),
    }
    if not shape.is_gemma:
        return config | {"hidden_act": "silu"}
    config |= {"hidden_activation": "gelu_pytorch_tanh"}
    if shape.has_output_norms:
        config |= {"query_pre_attn_scalar": round(shape.attention_scale**-2, 6), "sliding_window": shape.window}
    if shape.family == "gemma2":
        caps = {"attn_logit_softcapping": shape.attention_softcap, "final_logit_softcapping": shape.final_softcap}
        config |= caps
    if shape.family == "gemma3":
        config |= {"sliding_window_pattern": shape.pattern, "rope_local_base_freq": 10000.0}
        if shape.rope_linear != 1:
            config["rope_scaling"] = {"rope_type": "linear", "factor": shape.rope_linear}
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = program.parser("gguf_to_hf", "Turn a GGUF file into a folder in Hugging Face's format.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--type", choices=tuple(_NAMES), default="f16")
    parser.add_argument("--licence", default="")
    parser.add_argument("--force", action="store_true", help="also what is quantized")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)

    def work() -> None:
        if not files:
            raise BadModelFile("no file was given")
        convert(files, given.target, given.type, licence=given.licence, force=given.force)

    return program.run(given, work)


if __name__ == "__main__":
    sys.exit(main())
