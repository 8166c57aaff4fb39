"""The documentation site: ``sphinx-build -W docs docs/_build``, with the extra ``docs``."""

from __future__ import annotations

import inspect
import re

from flask_lifecycle import __version__

project = "flask_lifecycle"
copyright = "flask_lifecycle contributors"  # noqa: A001
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"flask_lifecycle {__version__}"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Extras that a build of the documentation does not need.
autodoc_mock_imports = ["gunicorn"]
# Users read these and do not build them, so a list of parameters would be the wrong form.
RECORDS = [
    "CheckContext",
    "CheckReport",
    "HealthReport",
    "HookRecord",
    "PhaseRecord",
    "ProberInfo",
    "RequestInfo",
    "ServerInfo",
    "ShutdownReport",
    "Transition",
    "WorkInfo",
]


def attributes_as_table(_app, what, _name, record, _options, lines):
    """Write the ``:param:`` lines of a record, and its properties, as a table of attributes."""
    if what != "class" or record.__name__ not in RECORDS:
        return
    text, *params = re.split(r"^:param (\w+): ", "\n".join(lines), flags=re.MULTILINE)
    meanings = dict(zip(params[::2], params[1::2], strict=True))
    kinds = record.__annotations__.items()  # of a NamedTuple these are forward references
    rows = [(name, getattr(kind, "__forward_arg__", kind), meanings[name]) for name, kind in kinds]
    for name, value in vars(record).items():
        if isinstance(value, property):
            rows.append((name, value.fget.__annotations__["return"], inspect.getdoc(value)))
    lines[:] = [*text.splitlines(), ".. list-table::", "   :header-rows: 1", ""]
    for cells in [("attribute", "type", "meaning"), *((f"``{name}``", f"``{kind}``", it) for name, kind, it in rows)]:
        for bullet, cell in zip("*  ", cells, strict=True):
            lines.append(f"   {bullet} - {' '.join(cell.split())}")
    lines.append("")


def no_signature_of_records(_app, _what, name, _record, _options, signature, returns):
    """Leave out the parameters of a record."""
    return ("", None) if name.rpartition(".")[2] in RECORDS else (signature, returns)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", no_signature_of_records)
    app.connect("autodoc-process-docstring", attributes_as_table)
