"""Fixtures of the live tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ._process import Starter


@pytest.fixture(params=["waitress", "werkzeug"])
def server(request: pytest.FixtureRequest) -> str:
    """Name the server; a test that asks for it runs on each."""
    name: str = request.param
    return name


@pytest.fixture(params=["waitress", "werkzeug", "waitress-serve"])
def lossless_server(request: pytest.FixtureRequest) -> str:
    """Name a server that guarantees all connections; the test runs on each."""
    name: str = request.param
    return name


# Replaces that fixture where servers that are not its own may differ.
each_lossless_server = pytest.mark.parametrize(
    "lossless_server", ["waitress", "waitress-serve", "werkzeug", "cheroot", "gevent"]
)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Starter]:
    """Start processes; whatever is left of them at the end of the test is ended by its pid."""
    if sys.platform == "win32":
        pytest.skip("POSIX signals are the subject")
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Close the connections of a test at its end."""
    with contextlib.ExitStack() as stack:
        yield stack
