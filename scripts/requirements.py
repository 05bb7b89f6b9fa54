"""Which promise is shown by which test, and which tests name no promise that exists.

Usage: requirements.py [--check]   (--check prints nothing and fails on an unknown id)
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "requirements.md"
_ROW = re.compile(r"^\| ([RB]-[A-Z]?\d+) \| (.+?) \|$", re.MULTILINE)


def promises() -> dict[str, str]:
    """Every id with its short text, in the page's order."""
    return dict(_ROW.findall(PAGE.read_text("utf-8")))


def marks() -> Iterator[tuple[str, str]]:
    """Every ``(requirement id, test)`` of the tree; a module-wide ``pytestmark`` counts for each of its tests."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        tests = [node for node in ast.walk(tree) if _is_test(node)]
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(ast.unparse(t) == "pytestmark" for t in node.targets):
                for found in _ids(node.value):
                    yield from ((found, f"{path.relative_to(ROOT)}::{test.name}") for test in tests)
        for test in tests:
            for decorator in test.decorator_list:
                yield from ((found, f"{path.relative_to(ROOT)}::{test.name}") for found in _ids(decorator))


def _is_test(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


def _ids(node: ast.AST) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("mark.requirement"):
            for argument in call.args:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


def main() -> int:
    """Print the map, or check it; the exit code says whether every id exists."""
    known = promises()
    shown: dict[str, list[str]] = defaultdict(list)
    for identity, test in marks():
        shown[identity].append(test)
    unknown = sorted(set(shown) - set(known))
    for identity in unknown:
        print(f"error: {identity} is not in {PAGE.relative_to(ROOT)}: {shown[identity][0]}", file=sys.stderr)
    if "--check" not in sys.argv:
        for identity, text in known.items():
            tests = sorted(set(shown.get(identity, [])))
            print(f"{identity:6} {len(tests):3} tests  {text}")
            for test in tests if "--tests" in sys.argv else []:
                print(f"               {test}")
        kept = sum(1 for identity in known if shown.get(identity))
        print(f"\n{kept} of {len(known)} promises have tests (--tests names them)")
    return 1 if unknown else 0


if __name__ == "__main__":
    raise SystemExit(main())
