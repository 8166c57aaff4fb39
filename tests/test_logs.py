"""What the package logs has fields, whichever line of it logs."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "flask_lifecycle"
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def test_every_record_has_fields() -> None:
    """Each call of the logger has ``extra``, whose keys, if they are written out there, begin with ``lifecycle_``."""
    files, bad = set(), []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
                continue
            if ast.unparse(node.func.value) == "logger":
                files.add(path.name)
                extra = {keyword.arg: keyword.value for keyword in node.keywords}.get("extra")
                keys = extra.keys if isinstance(extra, ast.Dict) else []
                if extra is None or not all(key is None or "lifecycle_" in ast.unparse(key)[:12] for key in keys):
                    bad.append(f"{path.name}:{node.lineno}")
    assert bad == []
    assert {"shutdown.py", "hooks.py", "state.py", "process.py"} <= files
