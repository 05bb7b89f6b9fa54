"""A GGUF file's tokenizer as the files of a Hugging Face folder: tokenizer.json and tokenizer_config.json.

Byte-level BPE only (``tokenizer.ggml.model`` = gpt2), with the pre-tokenizers that were compared with
llama.cpp's own tokenization. Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest

CONTROL, USER_DEFINED = 3, 4

# Names llama.cpp takes for the end of a turn or text whatever the file's own eos says (llama-vocab.cpp).
_END_TOKENS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"}
)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(digits: str) -> dict[str, Any]:
    """The pre-tokenizer of Llama 3 and Qwen 2, which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before the merges; ``whole_words``: a piece that is a token skips the merges.

    ``add_bos`` is what llama.cpp does where the file does not say.
    """

    rules: dict[str, Any]
    whole_words: bool = False
    add_bos: bool = False


# by tokenizer.ggml.pre
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_BYTE_LEVEL),
    "smollm": PreTokenizer({"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]}),
    "llama-bpe": PreTokenizer(_split(r"\p{N}{1,3}"), whole_words=True, add_bos=True),
    "qwen2": PreTokenizer(_split(r"\p{N}")),
}


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer keys of a GGUF file; None where the file does not give them."""

    model: str
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    chat_template: str

    def check(self) -> None:
        """Refuse what the other methods cannot express.

        Raises:
            UnsupportedRequest: another kind of tokenizer, or a pre-tokenizer that was never compared.
            BadModelFile: the lists contradict each other.
        """
        if self.model != "gpt2":
            raise UnsupportedRequest(
                f"the tokenizer is of the kind {self.model[:40]!r}; only byte-level BPE (gpt2) is converted to MLX",
                hint="run this model with llama.cpp, or pull it in MLX format",
            )
        if self.pre not in PRE_TOKENIZERS:
            raise UnsupportedRequest(
                f"the pre-tokenizer {self.pre[:40]!r} is not converted to MLX; known are {', '.join(PRE_TOKENIZERS)}",
                hint="run this model with llama.cpp, or pull it in MLX format",
            )
        if len(self.kinds) != len(self.tokens) or len(set(self.tokens)) != len(self.tokens):
            raise BadModelFile("the token list repeats itself or does not match the list of token types")
        for name, token in (("bos", self.bos_id), ("eos", self.eos_id)):
            if token is not None and not 0 <= token < len(self.tokens):
                raise BadModelFile(f"the {name} token id is outside the vocabulary", token=token)
        if any(merge.count(" ") != 1 for merge in self.merges):
            raise BadModelFile("a merge rule is not a pair of tokens")

    def end_ids(self) -> list[int]:
        """Ids that end a reply: the file's own first, then the well-known names, as llama.cpp takes them."""
        own = [] if self.eos_id is None else [self.eos_id]
        return own + [i for i, token in enumerate(self.tokens) if token in _END_TOKENS and i not in own]

    def as_tokenizer_json(self) -> dict[str, Any]:
        """The content of tokenizer.json; ``check`` passed."""
        pre = PRE_TOKENIZERS[self.pre]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": self.tokens[i],
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": kind == CONTROL,
                }
                for i, kind in enumerate(self.kinds)
                if kind in (CONTROL, USER_DEFINED)
            ],
            "normalizer": None,
            "pre_tokenizer": pre.rules,
            "post_processor": self._post_processor(pre.add_bos if self.add_bos is None else self.add_bos),
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": pre.whole_words,
                "vocab": {token: i for i, token in enumerate(self.tokens)},
                "merges": [merge.split(" ") for merge in self.merges],
            },
        }

    def as_tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.bos_id is not None:
            config["bos_token"] = self.tokens[self.bos_id]
        if self.eos_id is not None:
            config["eos_token"] = self.tokens[self.eos_id]
        if self.chat_template:
            config["chat_template"] = self.chat_template
        return config

    def _post_processor(self, add_bos: bool) -> dict[str, Any] | None:
        if not add_bos or self.bos_id is None:
            return None
        bos = self.tokens[self.bos_id]
        text = {"Sequence": {"id": "A", "type_id": 0}}
        return {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, text],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [self.bos_id], "tokens": [bos]}},
        }
