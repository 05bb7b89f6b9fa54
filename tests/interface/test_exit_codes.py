"""Exit codes: every error has one, and the table is documented."""

from __future__ import annotations

import pytest

from homelab_llm.core.errors import (
    Cancelled,
    DaemonUnavailable,
    HomelabError,
    InvalidName,
    ModelNotFound,
    WorkerCrashed,
    error_classes,
)
from homelab_llm.interface.cli.exit_codes import EXIT_CODES, exit_code_of, has_own_family


@pytest.mark.requirement("R-F4")
def test_every_error_of_the_tree_has_an_exit_code_of_its_family() -> None:
    unmapped = [cls.__name__ for cls in error_classes() if not has_own_family(cls)]
    assert unmapped == []


@pytest.mark.requirement("R-F4")
def test_every_exit_code_that_can_happen_is_documented_once() -> None:
    documented = [code.number for code in EXIT_CODES]
    assert len(documented) == len(set(documented))
    assert {exit_code_of(cls) for cls in error_classes()} <= set(documented)
    assert all(code.meaning for code in EXIT_CODES)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (HomelabError, 1),
        (InvalidName, 3),
        (ModelNotFound, 4),
        (WorkerCrashed, 8),
        (DaemonUnavailable, 10),
        (Cancelled, 130),
    ],
)
def test_the_codes_people_script_against_stay_what_they_are(cls: type[HomelabError], code: int) -> None:
    assert exit_code_of(cls) == code
