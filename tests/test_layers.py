"""Where things are: imports point down, optional packages stay where they belong, and the page on the architecture
names files and functions that are there.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute name, and where it stands."""

    line: int
    module: str
    at_run_time: bool
    at_module_level: bool


def _imports(source: str, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import of a module's source; ``package`` is what its relative imports start from."""

    def walk(node: ast.AST, at_run_time: bool, at_module_level: bool) -> Iterator[Import]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            start = [*base, *(node.module.split(".") if node.module else ())]
            # What is imported may be a submodule: "from . import _state" is an import of _state.
            names = [".".join([*start, alias.name]) for alias in node.names]
        for name in names:
            yield Import(getattr(node, "lineno", 0), name, at_run_time, at_module_level)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                yield from walk(statement, False, at_module_level)
            for statement in node.orelse:
                yield from walk(statement, at_run_time, at_module_level)
            return
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_run_time, at_module_level and not inside)

    yield from walk(ast.parse(source), True, True)


def _unit(parts: tuple[str, ...]) -> str | None:
    """The unit of an absolute name within the package; ``None`` for a name of another package."""
    if parts[0] != "flask_lifecycle":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"


def _violations(file: str, source: str) -> list[str]:
    """What one file of the package, given by its path within it, does against the rules."""
    path = Path(file)
    unit = path.parts[0].removesuffix(".py")
    layer = LAYERS[unit]
    found = []
    for item in _imports(source, ("flask_lifecycle", *path.parent.parts)):
        top = item.module.split(".")[0]
        other = _unit(tuple(item.module.split(".")))
        where = f"{file}:{item.line}"
        if other is not None:
            if other != unit and LAYERS[other] >= layer:
                found.append(f"{where}: {unit} (layer {layer}) imports {other}")
        elif not (item.at_module_level and item.at_run_time):
            continue
        elif top == "flask" and layer < LAYERS["_probes"]:
            found.append(f"{where}: {unit} (layer {layer}) imports flask at module level")
        elif top not in sys.stdlib_module_names | REQUIRED | _at_home(path):
            found.append(f"{where}: {unit} imports the optional package {top} at module level")
    return found


def _at_home(path: Path) -> set[str]:
    """The optional packages that a file may import at the top."""
    if path.parts[0] != "_servers" or len(path.parts) < 2:
        return set()
    return AT_HOME.get(path.parts[1].removesuffix(".py"), set())


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
        # Downward imports, a package's own submodules and imports inside functions pass.
        ("_core/shutdown.py", "from .state import State", None),
        ("_servers/waitress/__init__.py", "import waitress\nfrom .. import listener\nfrom ..._core import state", None),
        ("_servers/__init__.py", "def f():\n    from .waitress import x\n    import waitress", None),
        (
            "_core/inflight.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flask import Flask", None,
        ),
        ("_core/inflight.py", "def f():\n    import flask", None),
    ],
)  # fmt: skip
def test_what_the_check_sees(file: str, source: str, complaint: str | None) -> None:
    """The check itself sees upward and sideways imports and packages in the wrong place, and only these."""
    found = [text.partition(": ")[2] for text in _violations(file, source)]
    assert found == ([] if complaint is None else [complaint])


def test_import_of_the_package_imports_nothing_optional() -> None:
    """``import flask_lifecycle`` does not import waitress."""
    assert run_python("import sys, flask_lifecycle; print('waitress' in sys.modules)").stdout == "False\n"


# -- docs/architecture.md -------------------------------------------------------------------------------------------

PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
# A name directly behind a file is in that file: `_core/exit.py` `Exit.leave`.
PAIRS = sorted(set(re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", PAGE)))
NAMED = sorted({name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if not name.startswith("tests/")})


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


@pytest.mark.parametrize("file", NAMED)
def test_a_file_is_there(file: str) -> None:
    """Each file exists."""
    assert (PACKAGE / file).is_file()


def test_what_is_not_there_is_noticed() -> None:
    """The check sees a name that is missing, also in a class."""
    tree = ast.parse("class A:\n    def b(self): ...\nC = 1\n")
    assert [_has(tree, name) for name in ("A", "A.b", "C", "A.c", "b")] == [True, True, True, False, False]
    assert len(PAIRS) > 30
