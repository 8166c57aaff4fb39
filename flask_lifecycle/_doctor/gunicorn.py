"""gunicorn: the settings of its command line and its configuration for a shutdown.

A ``gunicorn.conf.py`` is parsed and not run, so computed or conditional values are unknown.
"""

from __future__ import annotations

import ast
import contextlib
import math
import warnings
from collections.abc import Iterator

from .model import OK, Case, Finding, Notes, Number, Workload
from .source import UnreadableError, Value

# gunicorn's own default.
_DEFAULT = 30.0
# The hooks of flask_lifecycle.gunicorn.
HOOKS = ("on_exit", "post_fork", "post_request", "post_worker_init", "pre_fork", "when_ready", "worker_exit")
_MODULE = "flask_lifecycle.gunicorn"


def is_gunicorn(file: str) -> bool:
    return file.endswith(".py")


def read_gunicorn(text: str, notes: Notes) -> Workload:
    """The configuration, as a workload that has only options."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file
            tree = ast.parse(text)
    except SyntaxError as error:
        raise UnreadableError(error.lineno or 0, f"This is not Python: {error.msg}.") from None
    except (RecursionError, MemoryError):
        raise UnreadableError(0, "This is nested too deeply to be a configuration.") from None
    notes.subject = "gunicorn"
    options = dict([*_timeouts(tree), *_hooks(tree)])
    return Workload("gunicorn", notes.file, notes.subject, 1, Number(math.inf, 1, False), "", options=options)


def _timeouts(tree: ast.Module) -> Iterator[tuple[str, Value]]:
    """Each assignment; not a number unless it is a plain number at the top level of the file."""
    for statement in tree.body:
        for node in sorted(ast.walk(statement), key=lambda each: getattr(each, "lineno", 0)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "graceful_timeout":
                yield node.id, Value(node.lineno, _number(statement))


def _number(statement: ast.stmt) -> float:
    if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                return float(value)
    return math.nan


def _hooks(tree: ast.Module) -> Iterator[tuple[str, Value]]:
    """Whether the file imports our hooks, and the functions that replace one without calling it."""
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_ours(node)]
    if imports:
        yield "hooks", Value(imports[0].lineno, True)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in HOOKS and not _calls(node):
            yield node.name, Value(node.lineno, node.name)


def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return _MODULE in names
    return node.module == _MODULE or (node.module == "flask_lifecycle" and "gunicorn" in names)


def _calls(function: ast.FunctionDef) -> bool:
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(isinstance(each, ast.Attribute) and each.attr == function.name for each in called)


# -- rules --------------------------------------------------------------------------------------------------------


def graceful_timeout(case: Case) -> Iterator[Finding]:
    """gunicorn kills no worker within its grace period; the time begins after the delay."""
    work, delay, given = case.workload, case.settings.shutdown_delay, _given(case)
    if given is None:
        return
    needed = case.settings.grace_period - (0.0 if isinstance(delay, str) else delay)
    least = math.ceil(needed)
    text = f"graceful_timeout is {given.value:g} s{'' if given.given else ' by default'}, and"
    if math.isnan(given.value):
        text = "graceful_timeout is unknown without running the file, and"
    text = f"{text} a worker may need {needed:g} s after the delay"
    if given.value >= needed:
        if work.platform == "gunicorn":
            yield Finding(work.file, given.line, OK, "graceful-timeout", work.subject, text)
        return
    cure = f"set it to {least} or more"
    # The command line may have the option.
    report = case.error if given.given and not math.isnan(given.value) else case.warning
    yield report("graceful-timeout", given.line, text, cure, given.value, least)


def _given(case: Case) -> Number | None:
    """The timeout, not a number if it is computed; ``None`` for a command without it."""
    work = case.workload
    if work.platform == "gunicorn":
        value = work.options.get("graceful_timeout")
        return Number(_DEFAULT, work.line, False) if value is None else Number(value.data, value.line)
    if work.command is None or work.command.server != "gunicorn":
        return None
    text = work.command.option("--graceful-timeout")
    return Number(float(text), work.command.line) if text and text.isascii() and text.isdigit() else None


def hooks(case: Case) -> Iterator[Finding]:
    """The file has our hooks, and a function that replaces one calls it."""
    work = case.workload
    if "hooks" not in work.options:
        text = "the hooks of flask_lifecycle are missing, so connections in the accept queue are lost during a shutdown"
        yield case.warning("gunicorn-hooks", work.line, text, f"add 'from {_MODULE} import *'")
        return
    for name in HOOKS:
        if name in work.options:
            text = f"'{name}' replaces our hook and does not call it"
            yield case.error("gunicorn-hooks", work.options[name].line, text, f"call {_MODULE}.{name} in it", name)


CONFIGURATION_RULES = (graceful_timeout, hooks)
