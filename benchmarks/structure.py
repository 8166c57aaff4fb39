"""Figures of the source: size of the package, its core path and its tests, and what it adds to an import of Flask.

    python benchmarks/structure.py

A *private name* is one that tests import from a module whose path has an underscore, or that they replace by
``monkeypatch.setattr`` and that begins with an underscore. Each counts once.
"""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flask_lifecycle"
TESTS = ROOT / "tests"
# What a reader of the core path has to read beside the whole of ``_core``, and what of ``_core`` is beside the path.
CORE_PATH = ("_extension.py", "_app.py", "_core", "_servers/adapter.py")
BESIDE_THE_PATH = ("_core/work.py", "_core/report_file.py", "_core/scheduler.py")
IMPORTS = ("import flask", "import flask, flask_lifecycle")
ROUNDS = 15

Function = ast.FunctionDef | ast.AsyncFunctionDef
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def lines(*paths: Path) -> int:
    """Count the lines of Python files and of the Python files in folders."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files(*paths))


def files(*paths: Path) -> set[Path]:
    """The Python files among these, and of the folders among these."""
    return {file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))}


def code_lines(file: Path) -> int:
    """Count the lines that are neither blank nor comment nor docstring."""
    text = file.read_text(encoding="utf-8")
    documented = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None
    ]
    with file.open("rb") as source:
        tokens = [token for token in tokenize.tokenize(source.readline) if token.type not in _NO_CODE]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - {0}
    return len(code - {line for node in documented for line in range(node.lineno, (node.end_lineno or 0) + 1)})


def sizes(*paths: Path, without: Iterable[Path] = ()) -> str:
    """The lines of Python files and folders, and how many of them are code."""
    counted = files(*paths) - files(*without)
    return f"{lines(*counted):,}, code {sum(map(code_lines, counted)):,}"


def trees(folder: Path) -> dict[Path, ast.Module]:
    """Parse every module of a folder."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def nodes(parsed: dict[Path, ast.Module]) -> Iterator[ast.AST]:
    """All nodes of all modules."""
    for tree in parsed.values():
        yield from ast.walk(tree)


def is_protocol(node: ast.ClassDef) -> bool:
    """Whether a class is a Protocol itself."""
    return any("Protocol" in ast.unparse(base) for base in node.bases)


def attributes(node: ast.ClassDef) -> set[str]:
    """The instance attributes of a class: fields of its body, and what its methods assign to ``self``."""
    fields = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    assigned = {
        each.attr
        for method in node.body
        if isinstance(method, Function)
        for each in ast.walk(method)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }
    return fields | assigned


def body_lines(node: Function) -> int:
    """The lines of a function without its head and docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def private_names(parsed: dict[Path, ast.Module]) -> set[str]:
    """The private names of the package that tests import or replace."""
    names = set()
    for node in nodes(parsed):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flask_lifecycle"):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {path for path in paths if any(part.startswith("_") for part in path.split("."))}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "monkeypatch.setattr":
            texts = [str(each.value) for each in node.args[:2] if isinstance(each, ast.Constant)]
            owner = ast.unparse(node.args[0])
            names |= {f"{owner}.{text}" for text in texts if text.rpartition(".")[2].startswith("_")}
    return names


def import_ratio() -> float:
    """How much of a processor the import of the package with Flask takes, over that of Flask alone."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what is measured is no compilation
    spent: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for _ in range(ROUNDS):
        for code in IMPORTS:
            timed = f"import time; before = time.process_time(); {code}; print(time.process_time() - before)"
            done = subprocess.run(
                [sys.executable, "-c", timed], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
            )
            spent[code].append(float(done.stdout))
    alone, ours = (statistics.median(spent[code]) for code in IMPORTS)
    return ours / alone


def figures() -> Iterator[tuple[str, str]]:
    """Every figure, with its name."""
    parsed = trees(PACKAGE)
    classes = [node for node in nodes(parsed) if isinstance(node, ast.ClassDef)]
    largest = max(parsed, key=lines)
    bodies = sorted(body_lines(node) for node in nodes(parsed) if isinstance(node, Function))
    core = [PACKAGE / name for name in CORE_PATH if (PACKAGE / name).exists()]
    beside = [PACKAGE / name for name in BESIDE_THE_PATH if (PACKAGE / name).exists()]
    widest = sorted(classes, key=lambda node: len(attributes(node)), reverse=True)[:3]

    yield "files at the top of the package", str(len(list(PACKAGE.glob("*.py"))))
    yield "modules", str(len(parsed))
    yield "lines", sizes(PACKAGE)
    yield "lines of the core path", sizes(*core, without=beside)
    yield "lines of _servers", sizes(PACKAGE / "_servers")
    yield "largest module", f"{largest.relative_to(PACKAGE)} ({lines(largest)} lines)"
    yield "classes", str(len(classes))
    yield "Protocols", str(sum(is_protocol(node) for node in classes))
    yield "classes with most attributes", ", ".join(f"{node.name} {len(attributes(node))}" for node in widest)
    median, ninetieth = statistics.median(bodies), bodies[len(bodies) * 9 // 10]
    yield "function bodies, median/p90/max", f"{median:g}/{ninetieth}/{bodies[-1]}"
    yield "lines of tests", f"{lines(TESTS):,}"
    for folder in sorted(path for path in TESTS.iterdir() if path.is_dir() and lines(path)):
        yield f"  {folder.name}", f"{lines(folder):,}"
    yield "  at the top of tests", f"{lines(*TESTS.glob('*.py')):,}"
    yield "private names in tests", str(len(private_names(trees(TESTS))))
    yield "import ratio", f"{import_ratio():.2f}"


if __name__ == "__main__":
    for name, value in figures():
        print(f"{name:34}{value}", flush=True)
