"""The call of ssh: pure argv building. What a real ssh and sshd make of it is shown in ``tests/interface``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import InvalidInput
from homelab_llm.ops.remote import FarSide, Terminals, far_line, ssh_argv

PRINT = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
ARGUMENTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)


@pytest.mark.requirement("R-F4")
@settings(max_examples=60, deadline=None)
@given(st.lists(ARGUMENTS, min_size=1, max_size=6))
def test_a_shell_reads_exactly_the_arguments_that_were_given(argv: list[str]) -> None:
    line = far_line(far_line(sys.executable, ["-c", PRINT]), argv)
    seen = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True).stdout
    assert seen.split(b"\0") == [argument.encode() for argument in argv]


def test_nothing_can_carry_a_nul() -> None:
    with pytest.raises(InvalidInput):
        far_line("mlxctl", ["a\0b"])


@pytest.mark.requirement("R-F4")
def test_ssh_may_ask_only_where_a_person_sits_and_makes_a_terminal_only_between_two() -> None:
    far = FarSide("me@mini", ssh_config="/c")
    assert ssh_argv(far, ["list"], Terminals()) == [
        *("ssh", "-F", "/c", "-T", "-o", "BatchMode=yes", "--", "me@mini", "mlxctl list")
    ]
    piped = ssh_argv(FarSide("mini", "~/bin/mlxctl"), ["run", "m", "it's"], Terminals(stdin=True, stderr=True))
    assert piped == ["ssh", "-T", "--", "mini", """~/bin/mlxctl run m 'it'"'"'s'"""]
    assert ssh_argv(FarSide("mini"), [], Terminals(True, True, True))[1] == "-t"


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a;b", "a\nb", "$(x)"])
def test_what_could_be_an_option_or_a_command_is_no_host(host: str) -> None:
    with pytest.raises(InvalidInput):
        ssh_argv(FarSide(host), ["list"], Terminals())
