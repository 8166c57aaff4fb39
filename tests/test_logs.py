"""What the package logs has fields, whichever line of it logs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flask_lifecycle"
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls(path: Path) -> Iterator[ast.Call]:
    """The calls of the package's logger in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield from [node] if ast.unparse(node.func.value) == "logger" else []


FILES = sorted(path for path in PACKAGE.rglob("*.py") if any(calls(path)))


def test_the_files_that_log_are_found() -> None:
    """The test below looks at something."""
    assert {"shutdown.py", "hooks.py", "state.py", "process.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_every_record_has_fields(path: Path) -> None:
    """Each record has at least one field ``lifecycle_*``, so give each call of the logger its ``extra``."""
    without = [f"{path.name}:{call.lineno}" for call in calls(path) if "extra" not in {k.arg for k in call.keywords}]
    assert without == []


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_fields_are_named_for_the_package(path: Path) -> None:
    """Fields begin with ``lifecycle_``, wherever they are written out where the logger is called."""
    extras = [k.value for call in calls(path) for k in call.keywords if k.arg == "extra"]
    keys = [key for extra in extras if isinstance(extra, ast.Dict) for key in extra.keys if key is not None]
    assert [ast.unparse(key) for key in keys if not ast.unparse(key).startswith("'lifecycle_")] == []
