"""The README says what the code does, and its commands are where a reader looks for them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flask_lifecycle import _config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SERVE = (
    "python3 -m venv .venv && .venv/bin/pip install '.[waitress]'"
    " && .venv/bin/flask --app examples/quickstart.py lifecycle run -p 8000"
)
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def _settings(document: str) -> list[list[str]]:
    """The rows of the table of settings in a document, with the code marks taken off."""
    lines = document.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| setting |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        rows.append([cell.replace("`", "").strip() for cell in cells])
    return rows


PYTHON = _blocks("python")


def test_the_table_of_settings_is_the_code_s() -> None:
    """``docs/settings.md`` lists every setting of the package, in its order, with its default."""
    documented = [(row[0], row[1]) for row in _settings(SETTINGS)]
    assert documented == [(name, key.default) for name, key in _config.KEYS.items()]


def test_every_setting_is_explained() -> None:
    """No row of the table of settings lacks its meaning."""
    assert [row[0] for row in _settings(SETTINGS) if len(row) != 3 or len(row[2]) < 15] == []


def test_the_defaults_that_are_written_are_the_ones_that_hold() -> None:
    """A default that reads as a Python value is the value of ``Settings()``."""
    settings = _config.Settings()
    for name, key in _config.KEYS.items():
        try:
            written = ast.literal_eval(key.default)
        except (SyntaxError, ValueError):
            continue
        assert getattr(settings, key.attribute) == written, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_no_setting_is_mentioned_that_does_not_exist(document: Path) -> None:
    """Every ``LIFECYCLE_*`` name in the documents is a setting."""
    named = re.findall(r"(?<![A-Z_])(?:FLASK_)?(LIFECYCLE_[A-Z_]+[A-Z])", document.read_text(encoding="utf-8"))
    assert set(named) <= set(_config.KEYS)


@pytest.mark.parametrize("command", [SERVE, TEST], ids=["serve", "test"])
def test_the_two_commands_are_near_the_top(command: str) -> None:
    """Either command is one line that can be copied as it is, within the first screen."""
    blocks = [block.strip() for block in _blocks("sh")[:2]]
    assert command in blocks
    assert README[: README.index(command)].count("\n") < 40


def test_the_gate_runs_the_readme_s_command() -> None:
    """``.ci/run`` takes the command from the README, and finds that one."""
    assert "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert next(line for line in README.splitlines() if "python -m pytest" in line) == TEST


def test_the_readme_is_short() -> None:
    """It has at most 1,200 words, code and tables included."""
    assert sum(bool(re.search(r"\w", word)) for word in README.split()) <= 1200


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_compile(block: str) -> None:
    """Every Python block of the README is whole."""
    compile(block, "README.md", "exec")


def test_the_examples_that_are_named_exist() -> None:
    """Every file of ``examples`` and ``benchmarks`` that the README names is there."""
    named = set(re.findall(r"(?:examples|benchmarks)/\w+\.\w+", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
