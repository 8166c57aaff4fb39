"""uvicorn that we did not start: ``uvicorn --interface wsgi``, or with a2wsgi in the application."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uvicorn.server import Server

from ..._inflight import RequestInfo
from . import instances
from ._asyncio import Loop, is_child


def find() -> FoundUvicorn | None:
    """The one in this process that serves."""
    for server in instances(Server):
        if server.started and server.servers:
            if not hasattr(server, "lifecycle_found"):
                server.lifecycle_found = FoundUvicorn(server)  # one for each: it remembers what it has wrapped
            found: FoundUvicorn = server.lifecycle_found
            return found
    return None


class FoundUvicorn(Loop):
    """uvicorn; ``--workers`` and ``--reload`` have a supervisor with a copy of the listener."""

    name = "uvicorn"

    def __init__(self, server: Any) -> None:
        alone = not is_child() and server.config.fd is None
        super().__init__(server.servers[0].get_loop(), server.servers, alone=alone)
        self._server = server

    def connections(self) -> Iterable[Any]:
        connections: set[Any] = self._server.server_state.connections
        return connections.copy()

    def doing(self, connection: Any) -> RequestInfo | None:
        cycle, scope = getattr(connection, "cycle", None), getattr(connection, "scope", None)
        if cycle is not None and not cycle.response_complete:
            return _info(cycle.scope, "receiving" if cycle.more_body else "queued")
        if connection.transport.get_write_buffer_size():
            return _info(cycle and cycle.scope, "sending")
        if scope is not None and scope is not (cycle and cycle.scope):  # httptools has begun a head
            return _info(None, "receiving")
        parser = getattr(connection, "conn", None)
        return _info(None, "receiving") if parser is not None and parser.trailing_data[0] else None

    def hang_up(self, connection: Any) -> None:
        connection.shutdown()

    def end(self) -> bool:
        self._server.should_exit = True
        return True


def _info(scope: Any, stage: str) -> RequestInfo:
    scope = scope or {}
    return RequestInfo(str(scope.get("method", "-")), str(scope.get("path", "-")), 0.0, stage=stage)
