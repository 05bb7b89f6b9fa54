"""Facts of a folder in Hugging Face's format: config.json, safetensors (one or shards), tokenizer, template."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile
from homelab_llm.core.facts import Capability, Format, ModelFacts
from homelab_llm.store.inspect.chat_tokens import folder_chat_tokens
from homelab_llm.store.inspect.config import ModelConfig, read_config, refuse_code, refuse_modules
from homelab_llm.store.inspect.documents import MAX_JSON_BYTES, parse_json, read_bounded, read_object
from homelab_llm.store.inspect.regular import open_regular
from homelab_llm.store.inspect.safetensors import SafeTensor, SafetensorsHeader, read_safetensors
from homelab_llm.store.inspect.template import chat_capabilities, folder_template

INDEX = "model.safetensors.index.json"
# Names of transformers; the GGUF names of the same models are in gguf_facts.
ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "electra",
        "eurobert",
        "modernbert",
        "mpnet",
        "new",
        "nomic_bert",
        "roberta",
        "xlm-roberta",
    }
)
_LICENCE = re.compile(rb"^license:[ \t]*([\w.+-]{1,60})[ \t]*\r?$", re.MULTILINE)
_PART = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")
_README_BYTES = 64 << 10


def folder_facts(files: Mapping[str, Path]) -> ModelFacts:
    """The facts of a model whose files are ``files``; every safetensors header and every configuration is checked.

    Raises:
        BadModelFile: something is missing or contradicts itself.
        UnsafeModel: a configuration asks for remote code.
    """
    if "config.json" not in files and "adapter_config.json" in files:
        raise BadModelFile(
            "a LoRA adapter alone is not a model",
            hint="name it as ADAPTER in a Modelfile, then mlxctl create",
            kind="adapter",
        )
    if "config.json" not in files:
        raise BadModelFile("there is no config.json beside the weights")
    config = read_config(files["config.json"])
    refuse_code_in(files)
    headers = {name: read_safetensors(path) for name, path in files.items() if name.endswith(".safetensors")}
    if not any(header.tensors for header in headers.values()):
        raise BadModelFile("the model has no tensors in safetensors format")
    _check_shards(files, headers)
    tensors = [tensor for header in headers.values() for tensor in header.tensors]
    template, knows_tools = folder_template(files)
    layers = config.number("num_hidden_layers")
    capabilities = _capabilities(files, config, chat_capabilities(template, knows_tools))
    chat_tokens, end_tokens = folder_chat_tokens(files) if "completion" in capabilities and not template else ((), ())
    return ModelFacts(
        format=_format(config, headers),
        architecture=config.model_type,
        size_bytes=sum(path.stat().st_size for path in files.values()),
        parameters=_parameters(tensors, config),
        quantization=_quantization(tensors, config),
        context_tokens=config.number("max_position_embeddings"),
        embedding_width=config.number("hidden_size"),
        layers=layers,
        heads=config.number("num_attention_heads"),
        kv_heads=config.number("num_key_value_heads") or config.number("num_attention_heads"),
        vocabulary_tokens=config.number("vocab_size"),
        kv_bytes_per_token=_kv_bytes_per_token(config, layers),
        licence=_licence(files),
        chat_template=template,
        template_knows_tools=knows_tools,
        capabilities=capabilities,
        chat_tokens=chat_tokens,
        end_tokens=end_tokens,
    )


def refuse_code_in(files: Mapping[str, Path]) -> None:
    """Look for keys that ask for the model's own code in every configuration among ``files``.

    Raises:
        UnsafeModel: there is one. BadModelFile: a configuration cannot be read.
    """
    for name, path in files.items():
        if name.endswith(("config.json", "index.json", "chat_template.json")):
            refuse_code(parse_json(read_bounded(path, MAX_JSON_BYTES, name[:80]), name[:80]), name[:80])
        elif name == "modules.json":
            refuse_modules(parse_json(read_bounded(path, MAX_JSON_BYTES, name), name), name)


def _check_shards(files: Mapping[str, Path], headers: Mapping[str, SafetensorsHeader]) -> None:
    """Every shard that the index or a ``-00001-of-00002`` name announces is here and holds what is promised."""
    series = {(name[: match.start(1)], match[2]) for name in headers if (match := _PART.fullmatch(name))}
    for prefix, total in series:
        for number in range(1, int(total) + 1):
            _need(f"{prefix}{number:05}-of-{total}.safetensors", headers)
    if INDEX not in files:
        return
    weight_map = read_object(files[INDEX], INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadModelFile(f"{INDEX} has no weight_map")
    held = {name: {tensor.name for tensor in header.tensors} for name, header in headers.items()}
    for tensor, shard in weight_map.items():
        if "/" in shard or "\\" in shard or shard.startswith("."):
            raise BadModelFile(f"{INDEX} points outside the model: {shard[:80]!r}")
        _need(shard, headers)
        if tensor not in held[shard]:
            raise BadModelFile(f"{shard[:80]} does not hold the tensor {tensor[:80]!r}", tensor=tensor[:80])


def _need(shard: str, headers: Mapping[str, SafetensorsHeader]) -> None:
    if shard not in headers:
        raise BadModelFile(f"the shard {shard[:80]!r} is missing", hint="all shards are needed", shard=shard[:80])


def _quantized(config: ModelConfig) -> dict[str, Any]:
    found = config.root.get("quantization") or config.root.get("quantization_config")
    return found if isinstance(found, dict) else {}


def _format(config: ModelConfig, headers: Mapping[str, SafetensorsHeader]) -> Format:
    marked = any(header.metadata.get("format") == "mlx" for header in headers.values())
    return "mlx" if marked or isinstance(config.root.get("quantization"), dict) else "safetensors"


def _bits(value: Any, default: int) -> int:
    return value if type(value) is int and 1 <= value <= 32 else default


def _parameters(tensors: list[SafeTensor], config: ModelConfig) -> int:
    """Weights, not storage: packed integers count as the weights they hold, their scales not at all."""
    quantization = _quantized(config)
    if not quantization:
        return sum(tensor.elements for tensor in tensors)
    names = {tensor.name for tensor in tensors}
    bits = _bits(quantization.get("bits"), 4)
    total = 0
    for tensor in tensors:
        stem, _, leaf = tensor.name.rpartition(".")
        if leaf == "weight" and tensor.dtype == "U32" and f"{stem}.scales" in names:
            own = quantization.get(stem)
            total += tensor.elements * 32 // _bits(own.get("bits") if isinstance(own, dict) else None, bits)
        elif leaf in {"qweight", "weight_packed"} and tensor.dtype in {"I32", "U32"}:
            total += tensor.elements * 32 // bits
        elif tensor.name.endswith("_blocks") and tensor.dtype == "U8":
            total += tensor.elements * 2
        elif leaf not in {"scales", "biases", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_shape"}:
            total += tensor.elements if not tensor.name.endswith("_scales") else 0
    return total


def _quantization(tensors: list[SafeTensor], config: ModelConfig) -> str:
    found = _quantized(config)
    if found:
        method = found.get("mode") or found.get("quant_method")
        name = method if isinstance(method, str) and method.isprintable() else "affine"
        bits = _bits(found.get("bits"), 0)
        return f"{bits}bit" if name == "affine" and bits else (f"{name}-{bits}bit" if bits else name)[:40]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.end - tensor.begin
    return sizes.most_common(1)[0][0]


def _kv_bytes_per_token(config: ModelConfig, layers: int) -> int:
    if config.model_type in ENCODERS:
        return 0
    kinds = config.text.get("layer_types")
    if isinstance(kinds, list):
        attending = sum(isinstance(kind, str) and "linear" not in kind and "attention" in kind for kind in kinds)
    else:
        attending = layers // (config.number("full_attention_interval") or 1)
    if latent := config.number("kv_lora_rank"):
        return attending * (latent + config.number("qk_rope_head_dim")) * 2
    heads = config.number("num_attention_heads")
    head_width = config.number("head_dim") or (config.number("hidden_size") // heads if heads else 0)
    return attending * (config.number("num_key_value_heads") or heads) * head_width * 2 * 2


def _capabilities(
    files: Mapping[str, Path], config: ModelConfig, generating: tuple[Capability, ...]
) -> tuple[Capability, ...]:
    architectures = config.root.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if any("SequenceClassification" in name for name in names):
        return ()
    if config.model_type in ENCODERS or "modules.json" in files:
        return ("embedding",)
    return (*generating, "vision") if isinstance(config.root.get("vision_config"), dict) else generating


def _licence(files: Mapping[str, Path]) -> str:
    """The licence in the front matter of the model card, if the card came along."""
    if "README.md" not in files:
        return ""
    with open_regular(files["README.md"]) as stream:
        head = stream.read(_README_BYTES)
    if not head.startswith(b"---"):
        return ""
    match = _LICENCE.search(head.split(b"\n---", 1)[0])
    return match[1].decode("ascii", "replace") if match else ""
