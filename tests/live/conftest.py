"""Fixtures of the live tests."""

from __future__ import annotations

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
def full_server(request: pytest.FixtureRequest) -> str:
    """Name a server that keeps the full promise, whoever started it; a test of the promise runs on each."""
    name: str = request.param
    return name


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Starter]:
    """Start processes; whatever is left of them at the end of the test is ended by its pid."""
    if sys.platform == "win32":
        pytest.skip("POSIX signals are the subject")
    starter = Starter(tmp_path)
    yield starter
    starter.end()
