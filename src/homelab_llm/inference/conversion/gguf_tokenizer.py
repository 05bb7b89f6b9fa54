"""A GGUF file's tokenizer as the files of a Hugging Face folder: tokenizer.json and tokenizer_config.json.

Byte-level BPE (``tokenizer.ggml.model`` = gpt2), with the pre-tokenizers that were compared with llama.cpp's own
tokenization, and SentencePiece's merges by score (llama). Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest

_NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"

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


def tokenizer_of_metadata(metadata: Mapping[str, Any]) -> GgufTokenizer | SpmTokenizer:
    """The tokenizer of a GGUF file's metadata, checked.

    Raises:
        UnsupportedRequest, BadModelFile: see ``check`` of either.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return SpmTokenizer.of(metadata)
    tokenizer = GgufTokenizer(
        model=str(model or ""),
        pre=str(metadata.get("tokenizer.ggml.pre") or ""),
        tokens=_list_of(metadata, "tokenizer.ggml.tokens", str),
        kinds=_list_of(metadata, "tokenizer.ggml.token_type", int),
        merges=_list_of(metadata, "tokenizer.ggml.merges", str),
        bos_id=_id_of(metadata, "bos"),
        eos_id=_id_of(metadata, "eos"),
        add_bos=found if isinstance(found := metadata.get("tokenizer.ggml.add_bos_token"), bool) else None,
        chat_template=str(metadata.get("tokenizer.chat_template") or ""),
    )
    tokenizer.check()
    return tokenizer


def _list_of(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    value = metadata.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value[:1]):
        raise BadModelFile(f"{key} is not a list", key=key)
    return value


def _id_of(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) else None


@dataclass(frozen=True, slots=True)
class SpmTokenizer:
    """A SentencePiece tokenizer of merges by score (``tokenizer.ggml.model`` = llama): Llama 2, Mistral, Gemma."""

    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    space_prefix: bool
    chat_template: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> SpmTokenizer:
        """Raises ``BadModelFile`` when the lists contradict each other."""
        found = cls(
            tokens=_list_of(metadata, "tokenizer.ggml.tokens", str),
            scores=_list_of(metadata, "tokenizer.ggml.scores", float),
            kinds=_list_of(metadata, "tokenizer.ggml.token_type", int),
            bos_id=_id_of(metadata, "bos"),
            eos_id=_id_of(metadata, "eos"),
            unk_id=_id_of(metadata, "unknown"),
            add_bos=metadata.get("tokenizer.ggml.add_bos_token") is not False,
            space_prefix=metadata.get("tokenizer.ggml.add_space_prefix") is not False,
            chat_template=str(metadata.get("tokenizer.chat_template") or ""),
        )
        if not len(found.tokens) == len(found.scores) == len(found.kinds) > 0:
            raise BadModelFile("the token list does not match the lists of scores and token types")
        for token in (found.bos_id, found.eos_id, found.unk_id):
            if token is not None and not 0 <= token < len(found.tokens):
                raise BadModelFile("a special token id is outside the vocabulary", token=token)
        return found

    def as_tokenizer_json(self) -> dict[str, Any]:
        """The content of tokenizer.json; the merges are worked out from the scores."""
        special = [i for i, kind in enumerate(self.kinds) if kind in (CONTROL, USER_DEFINED)]
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        prefix = [{"type": "Prepend", "prepend": _SPACE}] if self.space_prefix else []
        decoders = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if self.space_prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(i, self.tokens[i], special=self.kinds[i] == CONTROL) for i in special],
            "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
            "pre_tokenizer": None,
            "post_processor": None
            if not self.add_bos or self.bos_id is None
            else _begins_with(self.tokens[self.bos_id], self.bos_id),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None if self.unk_id is None else self.tokens[self.unk_id],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(self.tokens)},
                "merges": self._merges(),
            },
        }

    def as_tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        return _tokenizer_config(self.tokens, self.bos_id, self.eos_id, self.chat_template)

    def end_ids(self) -> list[int]:
        """As ``GgufTokenizer.end_ids``."""
        return _end_ids(self.tokens, self.eos_id)

    def _merges(self) -> list[list[str]]:
        ids = {token: i for i, token in enumerate(self.tokens) if self.kinds[i] == _NORMAL}
        found = []
        for token, i in ids.items():
            cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
            known = sorted((ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids)
            found += [(-self.scores[i], n, [a, b]) for n, (_, _, a, b) in enumerate(known)]
        return [pair for _, _, pair in sorted(found, key=lambda item: item[:2])]


def _added(number: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **flags, "special": special}


def _begins_with(bos: str, number: int) -> dict[str, Any]:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, text],
        "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _tokenizer_config(tokens: Sequence[str], bos: int | None, eos: int | None, template: str) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if bos is not None:
        config["bos_token"] = tokens[bos]
    if eos is not None:
        config["eos_token"] = tokens[eos]
    return config | ({"chat_template": template} if template else {})


def _end_ids(tokens: Sequence[str], eos: int | None) -> list[int]:
    own = [] if eos is None else [eos]
    return own + [i for i, token in enumerate(tokens) if token in _END_TOKENS and i not in own]


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
        return _end_ids(self.tokens, self.eos_id)

    def as_tokenizer_json(self) -> dict[str, Any]:
        """The content of tokenizer.json; ``check`` passed."""
        pre = PRE_TOKENIZERS[self.pre]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(i, self.tokens[i], special=kind == CONTROL)
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
        return _tokenizer_config(self.tokens, self.bos_id, self.eos_id, self.chat_template)

    def _post_processor(self, add_bos: bool) -> dict[str, Any] | None:
        if not add_bos or self.bos_id is None:
            return None
        return _begins_with(self.tokens[self.bos_id], self.bos_id)
