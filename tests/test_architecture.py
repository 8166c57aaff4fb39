"""The page on the architecture names files and functions: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flask_lifecycle"
PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
# A name directly behind a file is in that file: `_core/exit.py` `Exit.leave`.
PAIRS = sorted(set(re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", PAGE)))
FILES = sorted({name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if not name.startswith("tests/")})


def _has(tree: ast.Module, name: str) -> bool:
    """Whether a module defines this name, dotted for what is in a class."""
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = [
            node
            for node in body
            if (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part)
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == part)
        ]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


@pytest.mark.parametrize(("file", "name"), PAIRS)
def test_a_function_is_where_the_page_says(file: str, name: str) -> None:
    """Each function and class is defined in the file that stands before it."""
    assert _has(ast.parse((PACKAGE / file).read_text()), name)


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_there(file: str) -> None:
    """Each file exists."""
    assert (PACKAGE / file).is_file()


def test_what_is_not_there_is_noticed() -> None:
    """The check sees a name that is missing, also in a class."""
    tree = ast.parse("class A:\n    def b(self): ...\nC = 1\n")
    assert [_has(tree, name) for name in ("A", "A.b", "C", "A.c", "b")] == [True, True, True, False, False]
    assert len(PAIRS) > 30
