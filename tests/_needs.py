"""What some tests need beyond what pip installs: it is skipped by name where it is missing, and fails in the gate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test, or with ``CI_REQUIRE_ALL`` in the environment fail it."""
    message = f"{what} is missing"
    if os.environ.get("CI_REQUIRE_ALL"):
        pytest.fail(message)
    pytest.skip(message)


def program(name: str, *directories: str) -> str:
    """Return the path of a program, which may be in one of those directories instead of ``PATH``."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *directories])
    return shutil.which(name, path=path) or missing(f"the program '{name}'")


def need_root() -> None:
    """Skip or fail the test unless it runs as root."""
    if os.geteuid() != 0:
        missing("root")


def nginx_http(home: Path) -> str:
    """The beginning of nginx's block ``http``, with what stands before it: it writes to this directory alone."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in kinds)
    return f"pid {home}/pid;\nerror_log stderr;\nhttp {{\naccess_log off;\n{paths}"
