from __future__ import annotations

import re

import pytest

from homelab_llm.core import errors


@pytest.mark.requirement("R-G3")
def test_every_error_has_a_code_of_its_own_and_stands_in_the_drawn_tree() -> None:
    classes = errors.error_classes()
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    drawn = set(re.findall(r"[A-Z][A-Za-z]+", errors.__doc__ or ""))
    assert {cls.__name__ for cls in classes} <= drawn


def test_every_error_says_what_it_means() -> None:
    assert [cls.__name__ for cls in errors.error_classes() if not cls.__doc__] == []


def test_an_error_travels_as_data_without_empty_facts() -> None:
    error = errors.DiskFull("no room", hint="mlxctl prune", needed_bytes=10, free_bytes=None)
    assert error.as_dict() == {
        "code": "disk_full",
        "message": "no room",
        "hint": "mlxctl prune",
        "retryable": False,
        "facts": {"needed_bytes": 10},
    }
