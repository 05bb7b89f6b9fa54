"""The program that turns a GGUF file into an MLX folder, keeping its 4-bit and 8-bit weights as they are.

    python -m homelab_llm.inference.conversion.gguf_to_mlx --file model.gguf=PATH --target FOLDER

Llama architecture only. Prints ``@progress`` lines; ends with 0 when ``FOLDER`` is complete (also when it was
before), with 2 and one sentence when the file cannot be converted. The folder appears in one step. Weights of
kinds other than Q4_0, Q4_1 and Q8_0 become 16-bit. Nothing here is trusted: shapes are compared with the
configuration before anything is written.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, DiskFull, UnsupportedRequest
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.folder_output import appearing_folder, write_document
from homelab_llm.inference.conversion.gguf_tokenizer import GgufTokenizer

GROUP_SIZE = 32
_OTHER_ENGINE = "run this model with llama.cpp, or pull it in MLX format"
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The dimensions of a model of the llama architecture, as its GGUF metadata gives them."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_tokens: int
    rope_theta: float
    norm_eps: float

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> LlamaShape:
        """Read and check the metadata.

        Raises:
            UnsupportedRequest: not plain llama: another architecture, experts, scaled positions.
            BadModelFile: dimensions are missing or contradict each other.
        """
        architecture = _text(metadata, "general.architecture")
        if architecture != "llama":
            raise UnsupportedRequest(
                f"GGUF models of architecture {architecture[:40]!r} are not converted to MLX", hint=_OTHER_ENGINE
            )
        if _number(metadata, "llama.expert_count", 0):
            raise UnsupportedRequest("mixtures of experts are not converted to MLX", hint=_OTHER_ENGINE)
        if _text(metadata, "llama.rope.scaling.type") not in ("", "none"):
            raise UnsupportedRequest("scaled rotary positions are not converted to MLX", hint=_OTHER_ENGINE)
        heads, width = _whole(metadata, "llama.attention.head_count"), _whole(metadata, "llama.embedding_length")
        head_width = int(_number(metadata, "llama.attention.key_length", width // heads))
        shape = cls(
            layers=_whole(metadata, "llama.block_count"),
            width=width,
            inner=_whole(metadata, "llama.feed_forward_length"),
            heads=heads,
            kv_heads=int(_number(metadata, "llama.attention.head_count_kv", heads)),
            head_width=head_width,
            vocabulary=len(metadata.get("tokenizer.ggml.tokens", [])),
            context_tokens=_whole(metadata, "llama.context_length"),
            rope_theta=_number(metadata, "llama.rope.freq_base", 10000.0),
            norm_eps=float(f"{_number(metadata, 'llama.attention.layer_norm_rms_epsilon', 1e-5):.6g}"),
        )
        shape._check(
            int(_number(metadata, "llama.rope.dimension_count", head_width)),
            int(_number(metadata, "llama.attention.value_length", head_width)),
        )
        return shape

    def _check(self, rope_width: int, value_width: int) -> None:
        if rope_width != self.head_width or value_width != self.head_width:
            raise UnsupportedRequest("heads of unequal or partly rotated width are not converted", hint=_OTHER_ENGINE)
        if self.kv_heads < 1 or self.heads % self.kv_heads or self.head_width < 2 or self.head_width % 2:
            raise BadModelFile("the numbers of heads contradict each other")
        if not self.vocabulary:
            raise BadModelFile("the file has no token list")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight the model has, but for the optional output matrix, with its dense shape."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        layer: dict[str, tuple[int, ...]] = {
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.inner, self.width),
            "ffn_up": (self.inner, self.width),
            "ffn_down": (self.width, self.inner),
            "attn_norm": (self.width,),
            "ffn_norm": (self.width,),
        }
        shapes = {f"blk.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        shapes["token_embd"] = (self.vocabulary, self.width)
        shapes["output_norm"] = (self.width,)
        return shapes


def _scalar(metadata: Mapping[str, Any], key: str) -> Any:
    value = metadata.get(key)
    return value.item() if value is not None and getattr(value, "size", 0) == 1 else value


def _number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = _scalar(metadata, key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float):
        raise BadModelFile(f"{key} is missing or not one number", key=key)
    return value


def _whole(metadata: Mapping[str, Any], key: str) -> int:
    value = _number(metadata, key)
    if not 1 <= value <= 1 << 31:
        raise BadModelFile(f"{key} is out of range", key=key)
    return int(value)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""


def _token_id(metadata: Mapping[str, Any], key: str) -> int | None:
    value = _scalar(metadata, key)
    return value if isinstance(value, int) else None


def read_tokenizer(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer of the metadata ``mx.load`` returned, checked.

    Raises:
        UnsupportedRequest, BadModelFile: see ``GgufTokenizer.check``.
    """
    kinds = metadata.get("tokenizer.ggml.token_type")
    tokenizer = GgufTokenizer(
        model=_text(metadata, "tokenizer.ggml.model"),
        pre=_text(metadata, "tokenizer.ggml.pre"),
        tokens=metadata.get("tokenizer.ggml.tokens", []),
        kinds=[] if kinds is None or isinstance(kinds, str | list) else kinds.tolist(),
        merges=metadata.get("tokenizer.ggml.merges", []),
        bos_id=_token_id(metadata, "tokenizer.ggml.bos_token_id"),
        eos_id=_token_id(metadata, "tokenizer.ggml.eos_token_id"),
        add_bos=None if (told := _scalar(metadata, "tokenizer.ggml.add_bos_token")) is None else bool(told),
        chat_template=_text(metadata, "tokenizer.chat_template"),
    )
    tokenizer.check()
    return tokenizer


def check_tensors(weights: Mapping[str, Any], shape: LlamaShape) -> dict[str, int]:
    """Compare every tensor with the configuration; return the bits of the quantized ones (4 or 8) by name.

    Raises:
        UnsupportedRequest: tensors this conversion does not know, such as biases or scaled positions.
        BadModelFile: one is missing or has another shape than the configuration says.
    """
    expected = shape.tensor_shapes()
    if "output.weight" in weights:
        expected["output"] = (shape.vocabulary, shape.width)
    bits: dict[str, int] = {}
    for name, dense in expected.items():
        if f"{name}.weight" not in weights:
            raise BadModelFile(f"the tensor {name}.weight is missing", tensor=f"{name}.weight")
        found = tuple(weights[f"{name}.weight"].shape)
        if f"{name}.scales" in weights:
            bits[name] = _packed_bits(name, found, dense, weights)
        elif found != dense:
            raise BadModelFile(f"{name}.weight has the shape {found}, not {dense}", tensor=f"{name}.weight")
    known = {f"{name}.{leaf}" for name in expected for leaf in _leaves(name in bits)}
    if unknown := sorted(set(weights) - known):
        raise UnsupportedRequest(f"the tensor {unknown[0][:80]!r} is not converted to MLX", hint=_OTHER_ENGINE)
    return bits


def _leaves(quantized: bool) -> tuple[str, ...]:
    return ("weight", "scales", "biases") if quantized else ("weight",)


def _packed_bits(name: str, found: tuple[int, ...], dense: tuple[int, ...], weights: Mapping[str, Any]) -> int:
    rows, columns = dense if len(dense) == 2 else (0, 0)
    for bits in (4, 8):
        if found == (rows, columns * bits // 32) and columns % GROUP_SIZE == 0:
            groups = (rows, columns // GROUP_SIZE)
            if all(tuple(weights[f"{name}.{leaf}"].shape) == groups for leaf in ("scales", "biases")):
                return bits
    raise BadModelFile(f"{name}.weight does not hold {dense} packed weights", tensor=f"{name}.weight")


def mlx_name(name: str) -> str:
    """``blk.3.attn_q`` → ``model.layers.3.self_attn.q_proj``."""
    parts = name.split(".")
    return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}" if parts[0] == "blk" else _MODEL_NAMES[name]


def unpermute(array: Any, heads: int) -> Any:
    """Undo the row order llama.cpp's converter gives Q and K of llama: pairs side by side → two halves."""
    shape = array.shape
    return array.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def convert_weights(weights: Mapping[str, Any], shape: LlamaShape, bits: Mapping[str, int]) -> dict[str, Any]:
    """The tensors under the names mlx-lm knows; what is not packed becomes float16.

    Raises:
        BadModelFile: a value that float16 cannot hold.
    """
    import mlx.core as mx

    out: dict[str, Any] = {}
    for key, array in weights.items():
        name, _, leaf = key.rpartition(".")
        if name.endswith(".attn_q"):
            array = unpermute(array, shape.heads)
        elif name.endswith(".attn_k"):
            array = unpermute(array, shape.kv_heads)
        if name not in bits and array.dtype != mx.float16:
            array = array.astype(mx.float16)
            if not mx.isfinite(array).all().item():
                raise BadModelFile(f"{key} holds values that are not finite in 16 bits", tensor=key)
        out[f"{mlx_name(name)}.{leaf}"] = array
    return out


def build_config(shape: LlamaShape, bits: Mapping[str, int], tokenizer: GgufTokenizer, tied: bool) -> dict[str, Any]:
    """The content of config.json, with ``quantization`` and an entry for each layer that differs from the most."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.context_tokens,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.end_ids(),
    }
    if bits:
        (usual, _), *_ = Counter(bits.values()).most_common(1)
        quantization: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": usual}
        for name, own in bits.items():
            if own != usual:
                quantization[mlx_name(name)] = {"group_size": GROUP_SIZE, "bits": own}
        config["quantization"] = quantization
        config["quantization_config"] = quantization
    return config


def convert(gguf: Path, target: Path) -> None:
    """Make ``target`` from ``gguf``; does nothing when it is there. Blocks; other processes wait on a lock.

    Raises:
        HomelabError: the file cannot be converted; nothing is left behind.
        OSError: as the system says.
    """
    with appearing_folder(target, lambda: program.progress("convert", 0)) as folder:
        if folder is not None:
            for done in _write_folder(gguf, folder):
                program.progress("convert", done)


def _write_folder(gguf: Path, folder: Path) -> Iterator[float]:
    """Write all files of the model into ``folder``; yields how far it is."""
    import mlx.core as mx

    yield 0.0
    try:
        loaded: Any = mx.load(str(gguf), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise BadModelFile(f"MLX cannot read the file: {error}") from error
    weights, metadata = loaded
    shape = LlamaShape.of(metadata)
    tokenizer = read_tokenizer(metadata)
    bits = check_tensors(weights, shape)
    yield 0.3
    _write_tokenizer(folder, tokenizer)
    config = build_config(shape, bits, tokenizer, tied="output.weight" not in weights)
    write_document(folder / "config.json", config)
    converted = convert_weights(weights, shape, bits)
    yield 0.5
    try:
        mx.save_safetensors(str(folder / "model.safetensors"), converted, {"format": "mlx"})
    except RuntimeError as error:
        raise DiskFull(f"the converted weights could not be written: {error}") from error
    yield 1.0


def _write_tokenizer(folder: Path, tokenizer: GgufTokenizer) -> None:
    import tokenizers

    path = folder / "tokenizer.json"
    write_document(path, tokenizer.as_tokenizer_json())
    try:
        built = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise BadModelFile(f"the tokenizer's rules contradict each other: {error}") from error
    if built.get_vocab_size() != len(tokenizer.tokens):
        raise BadModelFile("the tokenizer does not have as many tokens as the model")
    write_document(folder / "tokenizer_config.json", tokenizer.as_tokenizer_config())


def main(argv: list[str] | None = None) -> int:
    """Convert as the arguments say; the exit status."""
    parser = program.parser("gguf_to_mlx", "Convert a GGUF file into an MLX folder.")
    parser.add_argument("--target", type=Path, required=True, help="the folder to make")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)

    def work() -> None:
        if len(files) != 1:
            raise UnsupportedRequest("one GGUF file is converted at a time", hint=_OTHER_ENGINE)
        (path,) = files.values()
        convert(path, given.target)

    return program.run(given, work)


if __name__ == "__main__":
    sys.exit(main())
