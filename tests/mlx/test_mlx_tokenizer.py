"""The tokenizer made from a GGUF file cuts text exactly as llama.cpp does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import aiohttp
import pytest

WRITTEN = [
    "Hello world",
    "  two before, two after  ",
    "a\n\n\nb\r\n\tc",
    "don't I'LL we've 'S 'rE",
    "123456 7.89 ½ ² Ⅷ 一二三",
    "日本語のテキスト。 한국어 문장 हिन्दी में مرحبا بالعالم Привет!",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 é ﬁ ſ İ \u00a0nbsp\u2003em\u200b",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x<|im_end",
    "\x01\x7f\u2028",
    "x" * 300,
    "    def f(x):\n        return x ** 2  # ok\n",
]
POOLS = [
    list("abc ABC  \n\t'.,!?0123456789-_<|>"),
    [chr(code) for low, high in ((0x20, 0x250), (0x300, 0x320), (0x370, 0x530), (0x900, 0x980), (0x2150, 0x2190),
                                 (0x4E00, 0x4E40), (0x1F600, 0x1F640)) for code in range(low, high)],
]  # fmt: skip


def texts() -> list[str]:
    draw = random.Random(2)  # noqa: S311 — nothing secret
    return WRITTEN + ["".join(draw.choices(POOLS[i % 2], k=draw.randint(1, 40))) for i in range(300)]


@pytest.mark.requirement("R-I1")
async def test_every_text_gets_the_tokens_llama_cpp_gives_it(
    smollm2_mlx: Path, llama_cpp: aiohttp.ClientSession
) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2_mlx / "tokenizer.json"))
    for text in texts():
        async with llama_cpp.post("/tokenize", json={"content": text}) as response:
            expected = (await response.json())["tokens"]
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, repr(text)


def test_the_chat_template_and_the_special_tokens_come_along(smollm2_mlx: Path) -> None:
    settings = json.loads((smollm2_mlx / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"
    assert "<|im_start|>assistant" in settings["chat_template"]
    assert json.loads((smollm2_mlx / "config.json").read_text())["eos_token_id"] == [2, 0]
