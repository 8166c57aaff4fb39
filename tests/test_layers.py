"""Where things are: imports point down, and the page on the architecture names what is there."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests._fakes import run_python

PACKAGE = Path(__file__).parent.parent / "flask_lifecycle"

# From top to bottom. A unit is a module, or a folder with all that is in it, whose modules may import each other.
ROWS = (
    {"__init__"},
    {"_extension", "testing"},
    {"_app", "_cli", "gunicorn"},
    {"_status", "metrics", "_operators", "_monitors", "_restart", "_verify"},
    {"_probes"},
    {"checks", "_servers", "_doctor"},
    {"_core"},
    {"_config"},
)
LAYERS = {unit: len(ROWS) - row for row, units in enumerate(ROWS) for unit in units}
# Flask itself brings the other three, so they cost nothing and are always there.
REQUIRED = {"flask", "werkzeug", "blinker", "click"}
# What is imported only once a server is there may import that server at the top, by the first part of its path.
AT_HOME = {name: {name} for name in ("cheroot", "gevent", "gunicorn", "mod_wsgi", "uwsgi", "waitress")}
AT_HOME |= {"asgi": {"uvicorn", "hypercorn", "h11", "granian"}}  # hypercorn requires h11


class Import(NamedTuple):
    """One imported module, by its absolute name, and where it stands."""

    line: int
    module: str
    at_once: bool
    """Whether it is imported when the module is, and not in a function or for type checkers alone."""


def _imports(source: str, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import of a module's source; ``package`` is what its relative imports start from."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            start = [*base, *(node.module.split(".") if node.module else ())]
            # What is imported may be a submodule: "from . import _state" is an import of _state.
            names = [".".join([*start, alias.name]) for alias in node.names]
        for name in names:
            yield Import(getattr(node, "lineno", 0), name, at_once)
        later: list[ast.AST] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            later = list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            later = list(node.body)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_once and child not in later)

    yield from walk(ast.parse(source), True)


def _violations(file: str, source: str) -> list[str]:
    """What one file of the package, given by its path within it, does against the rules."""
    path = Path(file)
    unit = path.parts[0].removesuffix(".py")
    layer = LAYERS[unit]
    optional = AT_HOME.get(path.parts[1].removesuffix(".py"), set()) if unit == "_servers" else set()
    found = []
    for item in _imports(source, ("flask_lifecycle", *path.parent.parts)):
        top, *inner = item.module.split(".")
        where = f"{file}:{item.line}"
        if top == "flask_lifecycle":
            other = inner[0] if inner and inner[0] in LAYERS else "__init__"
            if other != unit and LAYERS[other] >= layer:
                found.append(f"{where}: {unit} (layer {layer}) imports {other}")
        elif not item.at_once:
            continue
        elif top == "flask" and layer < LAYERS["_probes"]:
            found.append(f"{where}: {unit} (layer {layer}) imports flask at module level")
        elif top not in sys.stdlib_module_names | REQUIRED | optional:
            found.append(f"{where}: {unit} imports the optional package {top} at module level")
    return found


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_every_module_has_a_layer() -> None:
    """A module is in the table of layers, and what is in the table exists."""
    assert {Path(file).parts[0].removesuffix(".py") for file in FILES} == set(LAYERS)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    """A module imports lower layers only, no Flask below the probes, optional ones in functions."""
    assert _violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("_core/state.py", "from ..checks import x", "_core (layer 2) imports checks"),
        ("_core/state.py", "from .. import _servers", "_core (layer 2) imports _servers"),
        ("_config.py", "import flask_lifecycle.checks", "_config (layer 1) imports checks"),
        ("_core/state.py", "from flask_lifecycle import State", "_core (layer 2) imports __init__"),
        ("_core/state.py", "def f():\n    from .. import _cli", "_core (layer 2) imports _cli"),
        ("_servers/listener.py", "from ..checks import x", "_servers (layer 3) imports checks"),
        ("checks/__init__.py", "from flask import g", "checks (layer 3) imports flask at module level"),
        (
            "_servers/cheroot.py", "try:\n    import waitress\nexcept ImportError:\n    pass",
            "_servers imports the optional package waitress at module level",
        ),
    ],
)  # fmt: skip
def test_what_the_check_sees(file: str, source: str, complaint: str) -> None:
    """The check itself sees upward and sideways imports and packages in the wrong place."""
    assert [text.partition(": ")[2] for text in _violations(file, source)] == [complaint]


def test_import_of_the_package_imports_nothing_optional() -> None:
    """``import flask_lifecycle`` does not import waitress."""
    assert run_python("import sys, flask_lifecycle; print('waitress' in sys.modules)").stdout == "False\n"


PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
# A name directly behind a file is in that file: `_core/exit.py` `Exit.leave`.
PAIRS = sorted(set(re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", PAGE)))
NAMED = sorted({name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if not name.startswith("tests/")})


def _defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """The names that a module defines, dotted for what is in a class."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names |= _defined(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign):
            names.add(prefix + ast.unparse(node.targets[0]))
    return names


@pytest.mark.parametrize("file", NAMED)
def test_what_the_page_names_is_there(file: str) -> None:
    """Each file exists, and defines each function and class that stands behind it."""
    defined = _defined(ast.parse((PACKAGE / file).read_text()).body)
    assert {name for each, name in PAIRS if each == file} <= defined
    assert len(PAIRS) > 30
