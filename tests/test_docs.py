"""The documentation has a place for everything."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("module", ["", ".checks", ".metrics", ".gunicorn"])
def test_every_public_name_is_in_the_api_reference(module: str) -> None:
    """``docs/api.md`` has a directive for each name of ``__all__``."""
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(importlib.import_module(f"flask_lifecycle{module}").__all__) <= set(documented)


def test_every_page_is_in_the_index() -> None:
    """``docs/index.md`` links to each page in its text, and has it in a table of contents."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    contents = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL))
    assert set(re.findall(r"\]\((\S+)\.md\)", index)) == pages
    assert set(re.findall(r"^([a-z-]+)$", contents, re.MULTILINE)) == pages


def test_the_messages_that_are_explained_are_the_program_s() -> None:
    """``docs/logs.md`` explains no message whose constant parts are not in the code."""
    page = (DOCS / "logs.md").read_text(encoding="utf-8")
    section = page.split("## Messages and what to do", 1)[1].split("\n## ", 1)[0]
    first_cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    parts = [
        part.strip(" ,'") for cell in first_cells for each in re.findall("`(.*?)`", cell) for part in each.split("...")
    ]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "flask_lifecycle").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = "\n".join(text for text in texts if isinstance(text, str))
    assert [part for part in parts if part not in code] == []
