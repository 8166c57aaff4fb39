"""The layers of the package: imports point down, and optional packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flask_lifecycle"

# A unit is a module, or a package with all its submodules, which may import each other.
LAYERS = {
    "_state": 0,
    "_reloader": 0,
    "_record": 0,
    "_tally": 0,
    "_stacks": 0,
    "_config": 0,
    "_sockets": 0,
    "_callbacks": 0,
    "_deadline": 0,
    "_duration": 0,
    "_rhythm": 0,
    "_audience": 0,
    "_words": 1,
    "_inflight": 1,
    "_work": 1,
    "_fork": 1,
    "_resource": 1,
    "_scheduler": 1,
    "_control": 1,
    "_hooks": 1,
    "_crash": 2,
    "checks": 2,
    "_access_log": 1,
    "_activation": 1,
    "_self_test": 1,
    "_signals": 1,
    "_probe_server": 1,
    "_startup": 2,
    "_report": 2,
    "_control_dir": 2,
    "_operators": 3,
    "_probers": 2,
    "_receipt": 3,
    "_parties": 3,
    "_shutdown": 4,
    "_notice": 3,
    "_advice": 3,
    "_hangup": 3,
    "_render": 3,
    "_remote": 1,
    "_status_table": 2,
    "_status_watch": 3,
    "_doctor": 5,
    "_operator_cli": 5,
    "_run_cli": 7,
    "_run_simple": 5,
    "_supervisor": 6,
    "_handover": 5,
    "servers": 5,
    "_stuck": 5,
    "_systemd": 5,
    "_page": 3,
    "_registration": 3,
    "_figures": 5,
    "_status": 6,
    "metrics": 6,
    "_views": 6,
    "_process": 6,
    "_cli": 6,
    "_app": 7,
    "gunicorn": 7,
    "_extension": 8,
    "__init__": 9,
}
# Flask itself brings the other three, so they cost nothing and are always there.
REQUIRED = {"flask", "werkzeug", "blinker", "click"}
# A file that is imported only once its own package is wanted may import it at the top.
AT_HOME = {(f"servers/{name}.py", "waitress") for name in ("waitress", "_loop", "_channel", "found/waitress")}
AT_HOME |= {(f"servers/{name}.py", "cheroot") for name in ("cheroot", "found/cheroot")}
AT_HOME |= {(f"servers/{name}.py", "gevent") for name in ("gevent", "_greenlets", "found/gevent")}
AT_HOME |= {(f"servers/found/{name}.py", name) for name in ("uvicorn", "uwsgi", "hypercorn", "mod_wsgi", "gunicorn")}


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
        elif top == "flask" and layer <= 5:
            found.append(f"{where}: {unit} (layer {layer}) imports flask at module level")
        elif top not in sys.stdlib_module_names | REQUIRED and (path.as_posix(), top) not in AT_HOME:
            found.append(f"{where}: {unit} imports the optional package {top} at module level")
    return found


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_every_module_has_a_layer() -> None:
    """A module is in the table of layers, and what is in the table exists."""
    assert {Path(file).parts[0].removesuffix(".py") for file in FILES} == set(LAYERS)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    """A module imports lower layers only, no Flask below layer 6, optional ones in functions."""
    assert _violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("_state.py", "from ._shutdown import x", "_state (layer 0) imports _shutdown"),
        ("_state.py", "from . import _shutdown", "_state (layer 0) imports _shutdown"),
        ("_state.py", "import flask_lifecycle._config", "_state (layer 0) imports _config"),
        ("_state.py", "from flask_lifecycle import State", "_state (layer 0) imports __init__"),
        ("_state.py", "def f():\n    from . import _cli", "_state (layer 0) imports _cli"),
        ("servers/_closing.py", "from .. import _process", "servers (layer 5) imports _process"),
        ("checks/__init__.py", "from flask import g", "checks (layer 2) imports flask at module"),
        (
            "_views.py",
            "try:\n    import waitress\nexcept ImportError:\n    pass",
            "_views imports the optional package waitress at module level",
        ),
    ],
)
def test_a_violation_is_found(file: str, source: str, complaint: str) -> None:
    """The check itself sees upward and sideways imports and packages in the wrong place."""
    (found,) = _violations(file, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("_shutdown.py", "from ._state import State"),
        (
            "servers/waitress.py",
            "import waitress\nfrom . import _closing\nfrom .._state import State",
        ),
        ("servers/__init__.py", "def f():\n    from .waitress import x\n    import waitress"),
        (
            "_inflight.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flask import Flask",
        ),
        ("_inflight.py", "def f():\n    import flask"),
    ],
)
def test_what_is_allowed_is_not_a_violation(file: str, source: str) -> None:
    """Downward imports, a package's own submodules and imports inside functions pass."""
    assert _violations(file, source) == []


def test_import_of_the_package_imports_nothing_optional() -> None:
    """``import flask_lifecycle`` does not import waitress."""
    code = "import sys, flask_lifecycle; print('waitress' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "False\n"
