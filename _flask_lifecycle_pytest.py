"""The fixtures of ``flask_lifecycle.testing``.

pytest imports this module in every run where the package is installed, before coverage measures and before gevent may
patch. So it stands beside the package, and a fixture imports the package when a test uses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_lifecycle.testing import AppFactory, ServerFactory


@pytest.fixture
def lifecycle_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerFactory]:
    """Start an application or a server's command in a process, with free ports; see docs/testing.md."""
    from flask_lifecycle.testing import ServerFactory

    def show(name: str, text: str) -> None:
        request.node.add_report_section("teardown", name, text)  # pytest shows it if the test fails

    with contextlib.closing(ServerFactory(tmp_path_factory.mktemp("lifecycle"), show)) as factory:
        yield factory


@pytest.fixture
def lifecycle_app() -> Iterator[AppFactory]:
    """Start an application in the process of the test, and stop it when the test asks; see docs/testing.md."""
    from flask_lifecycle.testing import AppFactory

    with contextlib.closing(AppFactory()) as factory:
        yield factory
