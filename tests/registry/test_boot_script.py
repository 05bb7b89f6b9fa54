import contextlib
import plistlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, RegistryInvalid
from homelab_llm.core.registry.boot_script import is_boot_script, read_boot_script
from homelab_llm.core.registry.slots import ALIASES, SlotTable

SLOTS = SlotTable.of("8100-8109", ALIASES)
SCRIPT = b"""#!/bin/bash
# the studio's models
export HF_HOME=/models
cd /opt && nohup mlx-openai-server launch \\
    --model-path /models/hub/models--mlx-community--Qwen3-235B-6bit/snapshots/abc --model-type lm \\
    --host 0.0.0.0 --port 8100 --tool-call-parser qwen3 --reasoning-parser=qwen3 > /tmp/8100.log 2>&1 &
vllm serve halley-ai/gpt-oss-120b --port=8101 --max-model-len 32768 &
mlx_lm.server --model "/models/my own.gguf" --port 8102; echo "done --port"
python -m http.server --port 9000
"""


@pytest.mark.requirement("R-F7")
def test_a_script_becomes_what_the_registry_shall_serve() -> None:
    document = read_boot_script(SCRIPT.replace(b"my own", b"my-own"), SLOTS)
    assert dict(document.ports) == {"qwen3-235b-6bit": 8100, "gpt-oss-120b": 8101, "my-own": 8102}
    first = document.entries["qwen3-235b-6bit"]
    assert (first.repo_id, first.model_id) == ("mlx-community/Qwen3-235B-6bit", "mlx-community/qwen3-235b-6bit:latest")
    assert (first.tool_call_parser, first.reasoning_parser, first.is_intent) == ("qwen3", "qwen3", True)
    assert document.entries["gpt-oss-120b"].context_length == 32768
    last = document.entries["my-own"]
    assert (last.format, last.source_path) == ("gguf", "/models/my-own.gguf")


@pytest.mark.requirement("R-F7")
@pytest.mark.parametrize("form", [plistlib.FMT_XML, plistlib.FMT_BINARY])
def test_a_launchd_job_is_read_as_an_argv_or_as_a_shell_line(form: plistlib.PlistFormat) -> None:
    argv = ["/opt/bin/mlx-openai-server", "launch", "--model-path", "org/name", "--port", "8103"]
    jobs = ({"ProgramArguments": argv}, {"ProgramArguments": ["/bin/zsh", "-lc", " ".join(argv)]})
    for job in jobs:
        content = plistlib.dumps(job, fmt=form)
        assert is_boot_script(content)
        assert dict(read_boot_script(content, SLOTS).ports) == {"name": 8103}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (b"mlx_lm.server --model org/name --port $PORT", "line 1: $PORT"),
        (b"\n\nmlx_lm.server --model `cat model` --port 8100", "line 3"),
        (b"mlx_lm.server --model org/name --port http", "is no number"),
        (b"mlx_lm.server --model 'org/name --port 8100", "quote"),
        (b"mlx_lm.server --model 'a b' --port 8100", "is no name"),
        (b"mlx_lm.server --model org/name --port 9000", "no slot"),
        (b"m --model org/a --port 8100\nm --model org/a --port 8101", "started twice"),
        (b"m --model org/a --port 8100\nm --model org/b --port 8100", "already"),
        (b"echo hello", "starts no model server"),
        (b"\xff\xfe", "not UTF-8"),
        (b"<?xml version='1.0'?><plist><dict/></plist>", "ProgramArguments"),
        (b"<broken", "property list"),
        (b"bplist00garbage", "property list"),
        (b"x" * 1_000_001, "at most"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_with_the_reason(script: bytes, words: str) -> None:
    with pytest.raises(HomelabError) as caught:
        read_boot_script(script, SLOTS)
    assert caught.value.code == "registry_invalid"
    assert words in caught.value.message


def test_a_registry_is_no_script() -> None:
    assert not is_boot_script(b' {"version": 1}')
    assert not is_boot_script(b"")
    assert not is_boot_script(bytes(100))
    assert is_boot_script(SCRIPT)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=80).map(lambda tail: b"bplist00" + tail),
        st.text(max_size=200).map(str.encode),
    )
)
def test_no_bytes_do_more_than_be_refused(content: bytes) -> None:
    with contextlib.suppress(RegistryInvalid):
        read_boot_script(content, SLOTS)


@given(st.text("m -=\"'$\\\n;&|()#/.port\u00e9", max_size=120))
def test_no_shell_text_does_more_than_be_refused(tail: str) -> None:
    with contextlib.suppress(RegistryInvalid):
        read_boot_script(f"m --model org/name --port {tail}".encode(), SLOTS)
