"""A Hugging Face tokenizer as the metadata of a GGUF file. Pure: values in, values out.

Byte-level BPE whose pre-tokenizer is one of ``gguf_tokenizer.PRE_TOKENIZERS`` (recognised by its rules, never guessed),
and SentencePiece's merges as transformers writes them (Llama 2, Mistral, Gemma). Another one is refused: llama.cpp
would cut text otherwise than the model learnt it, and nobody would notice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.documents import read_bounded, read_object
from homelab_llm.inference.conversion.gguf_tokenizer import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER_MERGED = -1e6
_OTHER_WAY = "mlxctl pull a GGUF version of the model"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF keeps of a tokenizer; ``scores`` for SentencePiece (model llama), ``merges`` for BPE (gpt2)."""

    model: str
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    chat_template: str

    def describe(self, writer: Any) -> None:
        """Add it to the metadata of a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        if self.model == "llama":
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_prefix)
        else:
            writer.add_token_merges(list(self.merges))
        for name, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(files: Mapping[str, Path], size: int) -> Vocabulary:
    """The tokenizer of a folder, filled up to ``size`` tokens.

    Raises:
        UnsupportedRequest: a tokenizer llama.cpp would not compute the same.
        BadModelFile: none, or one that contradicts itself or the model.
    """
    if "tokenizer.json" not in files:
        raise BadModelFile(
            "the model has no tokenizer.json", hint="save its tokenizer with transformers, or pull a GGUF version"
        )
    document = read_object(files, "tokenizer.json")
    settings = read_object(files, "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    model = _mapping(document.get("model"), "model")
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedRequest(f"tokenizers of the kind {str(model['type'])[:40]!r} are not converted")
    ids = _ids(model, document)
    tokens, kinds = _tokens(ids, document, size)
    opening, closing = _added_around(document)
    special = _special(ids, settings, opening)
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    spm = model.get("byte_fallback") is True
    return Vocabulary(
        model="llama" if spm else "gpt2",
        pre="default" if spm else recognise(document),
        tokens=_unspaced(tokens, kinds) if spm else tokens,
        kinds=_spm_kinds(tokens, kinds, model) if spm else kinds,
        scores=_scores(tokens, _merges(model)) if spm else (),
        merges=() if spm else [f"{a} {b}" for a, b in _merges(model)],
        special=special,
        add_bos=add_bos if isinstance(add_bos, bool) else opening is not None,
        add_eos=add_eos if isinstance(add_eos, bool) else closing,
        space_prefix=spm and _space_prefix(document),
        chat_template=read_template(files, settings),
    )


def recognise(document: Mapping[str, Any]) -> str:
    """llama.cpp's name of a byte-level BPE's pre-tokenizer.

    Raises:
        UnsupportedRequest: none of those that were compared with llama.cpp.
    """
    wanted = _rules(document.get("pre_tokenizer"))
    normalizer = _kind(document.get("normalizer"))
    whole_words = _mapping(document.get("model"), "model").get("ignore_merges") is True
    for name, known in PRE_TOKENIZERS.items():
        if _rules(known.rules) == wanted and known.whole_words == whole_words:
            if normalizer in ("", "NFC" if name == "qwen2" else ""):
                return name
            break
    raise UnsupportedRequest(
        f"the tokenizer cuts text by rules that are none of {', '.join(PRE_TOKENIZERS)}; it is not converted",
        hint=_OTHER_WAY,
    )


def _rules(given: Any) -> tuple[Any, ...]:
    """What matters of a pre-tokenizer: its steps and their patterns, not the offsets they report."""
    match given:
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            return tuple(rule for step in steps for rule in _rules(step))
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            return (("Split", pattern, bool(given.get("invert"))),)
        case {"type": "ByteLevel"}:
            prefix, regex = given.get("add_prefix_space"), given.get("use_regex", True)
            return (("ByteLevel", bool(prefix), bool(regex)),)
        case {"type": "Digits"}:
            return (("Digits", bool(given.get("individual_digits"))),)
    return (("unknown", str(_kind(given))),)


def _kind(given: Any) -> str:
    if given is None:
        return ""
    if isinstance(given, dict) and given.get("type") == "Sequence":
        steps = given.get("normalizers")
        return "+".join(map(_kind, steps)) if isinstance(steps, list) else "?"
    return str(given.get("type", "?"))[:40] if isinstance(given, dict) else "?"


def _ids(model: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, int]:
    ids = dict(_mapping(model.get("vocab"), "vocab"))
    for entry in _added(document):
        if ids.setdefault(entry["content"], entry["id"]) != entry["id"]:
            raise BadModelFile(f"the token {entry['content'][:40]!r} has two ids")
    if not ids or not all(type(number) is int and 0 <= number < 1 << 26 for number in ids.values()):
        raise BadModelFile("the token ids of tokenizer.json are no numbers")
    if len(set(ids.values())) != len(ids):
        raise BadModelFile("two tokens of tokenizer.json have one id")
    return ids


def _added(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("added_tokens") or []
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("content"), str) and type(e.get("id")) is int for e in entries
    ):
        raise BadModelFile("the added tokens of tokenizer.json cannot be read")
    return entries


def _tokens(ids: Mapping[str, int], document: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    if max(ids.values()) >= size:
        raise BadModelFile(f"the tokenizer has the token {max(ids.values())}, and the model ends at {size - 1}")
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in ids.items():
        tokens[number], kinds[number] = token, NORMAL
    for entry in _added(document):
        kinds[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    return tokens, kinds


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise BadModelFile("a merge rule is not a pair of tokens")
        found.append((pair[0], pair[1]))
    return found


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores by which llama.cpp merges in the same order: the earlier a token is made, the higher.

    Raises:
        UnsupportedRequest: the rules for one token do not follow one another, which scores cannot say.
    """
    ranks: dict[str, int] = {}
    last = ""
    for first, second in merges:
        made = first + second
        if made != last and made in ranks:
            raise UnsupportedRequest("the tokenizer's merges are not those of SentencePiece", hint=_OTHER_WAY)
        ranks.setdefault(made, len(ranks))
        last = made
    return [-float(ranks[token]) if token in ranks else _NEVER_MERGED for token in tokens]


def _spm_kinds(tokens: Sequence[str], kinds: Sequence[int], model: Mapping[str, Any]) -> list[int]:
    unknown = model.get("unk_token")
    found = []
    for token, kind in zip(tokens, kinds, strict=True):
        if token == unknown:
            kind = UNKNOWN
        elif kind == NORMAL and _BYTE_TOKEN.fullmatch(token):
            kind = BYTE
        found.append(kind)
    return found


def _unspaced(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """User-defined tokens are looked for in the text before its spaces are marked."""
    pairs = zip(tokens, kinds, strict=True)
    return [token.replace(_SPACE, " ") if kind == USER_DEFINED else token for token, kind in pairs]


def _space_prefix(document: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text.

    Raises:
        UnsupportedRequest: rules that are not SentencePiece's.
    """
    normalizer, pre = _kind(document.get("normalizer")), document.get("pre_tokenizer")
    if normalizer in ("Prepend+Replace", "Replace") and _kind(pre) in ("", "Split"):
        return normalizer.startswith("Prepend")
    if isinstance(pre, dict) and pre.get("type") == "Metaspace" and not normalizer:
        scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
        return bool(scheme != "never")
    raise UnsupportedRequest("the tokenizer's rules are not those of SentencePiece", hint=_OTHER_WAY)


def _added_around(document: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The token put before a text, and whether one is put behind it."""
    processor = document.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            match step.get("single"):
                case [{"SpecialToken": {"id": str(token)}}, *rest]:
                    return token, bool(rest) and "SpecialToken" in rest[-1]
                case [*_, {"SpecialToken": {}}]:
                    return None, True
    return None, False


def _special(ids: Mapping[str, int], settings: Mapping[str, Any], opening: str | None) -> dict[str, int]:
    """Ids by GGUF's names; what the settings name and the tokenizer has."""
    found = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        given = settings.get(f"{theirs}_token")
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str) and text in ids:
            found[ours] = ids[text]
    if opening is not None:
        if opening not in ids:
            raise BadModelFile(f"the token {opening[:40]!r} that begins a text is not in the vocabulary")
        found["bos"] = ids[opening]
    return found


def read_template(files: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
    """The chat template of a folder: a file of its own, or in the tokenizer's settings; empty when there is none."""
    if "chat_template.jinja" in files:
        return read_bounded(files["chat_template.jinja"], "chat_template.jinja").decode("utf-8", "replace")
    if "chat_template.json" in files:
        settings = read_object(files, "chat_template.json")
    given = settings.get("chat_template")
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else ""


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadModelFile(f"tokenizer.json has no {name}")
    return value
