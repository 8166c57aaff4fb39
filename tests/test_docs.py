"""The documentation has a place for everything."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._verify import scenarios

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", API, re.DOTALL | re.MULTILINE))
MODULES = ["", ".checks", ".metrics", ".gunicorn", ".testing"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_api_reference(module: str) -> None:
    """``docs/api.md`` has a directive for each name of ``__all__``."""
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", API, re.MULTILINE)
    assert set(importlib.import_module(f"flask_lifecycle{module}").__all__) <= set(documented)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_example(module: str) -> None:
    """The examples of ``docs/api.md`` use each name of ``__all__``."""
    used = set(re.findall(r"\w+", EXAMPLES))
    assert set(importlib.import_module(f"flask_lifecycle{module}").__all__) - used == set()


def test_every_method_of_the_lifecycle_has_an_example() -> None:
    """The examples of ``docs/api.md`` use each public method and property of ``Lifecycle``."""
    public = {name for name in dir(Lifecycle) if not name.startswith("_")}
    assert public - set(re.findall(r"\blifecycle\.(\w+)", EXAMPLES)) == set()


def test_the_examples_of_the_api_reference(tmp_path: Path) -> None:
    """They are one session, and print what the page says."""
    page = tmp_path / "api.txt"
    page.write_text(EXAMPLES, encoding="utf-8")
    command = [sys.executable, "-m", "doctest", "-o", "ELLIPSIS", str(page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_the_comparison_names_scenarios_of_verify() -> None:
    """Each scenario that ``docs/peers.md`` names is in the catalogue."""
    page = (DOCS / "peers.md").read_text(encoding="utf-8")
    families = {scenario.family for scenario in scenarios.CATALOGUE.values()}
    named = re.findall(rf"`((?:{'|'.join(families)})/[\w*.-]+)`", page)
    assert named
    assert [name for name in named if name not in scenarios.CATALOGUE and not name.endswith("/*")] == []
