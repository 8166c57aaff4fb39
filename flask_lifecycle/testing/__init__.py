"""What the pytest fixtures ``lifecycle_server`` and ``lifecycle_app`` give to tests.

pytest finds the fixtures by itself where this package is installed. Import this module only to annotate them::

    from flask_lifecycle.testing import AppFactory, ServerFactory

    def test_shop(lifecycle_server: ServerFactory) -> None:
        server = lifecycle_server("shop:create_app")
        assert server.get("/").status_code == 200
        assert server.stop() == 0
"""

from __future__ import annotations

from ._app import AppFactory, AppUnderTest
from ._server import Server, ServerFactory

__all__ = ["AppFactory", "AppUnderTest", "Server", "ServerFactory"]
