"""uvicorn: ``uvicorn --interface wsgi``, or with a2wsgi or asgiref in the application."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from uvicorn.server import Server

from ..._core.inflight import RequestInfo
from ..adapter import Adapter, missing, watched_only
from ..discovery import instances
from . import LoopAdapter, is_child, request_info

# What the adapter uses of the server, and of a connection.
_OF_SERVER = ("config", "server_state", "servers", "should_exit")
_OF_CONNECTION = ("cycle", "scope", "transport")


def find() -> Adapter | None:
    """The adapter of the server that serves in this process."""
    for server in instances(Server):
        if getattr(server, "started", False) and getattr(server, "servers", ()):
            if not hasattr(server, "lifecycle_adapter"):
                server.lifecycle_adapter = _attach(server)  # one per server, because it has wrapped its objects
            adapter: Adapter = server.lifecycle_adapter
            return adapter
    return None


def _attach(server: Any) -> Adapter:
    lacking = missing((server, _OF_SERVER))
    if not lacking:
        protocol = server.config.http_protocol_class
        lacking = missing((protocol.__init__, _OF_CONNECTION), (protocol, ("shutdown",)))
    return watched_only("uvicorn", lacking) if lacking else Uvicorn(server)


def _in_gunicorn() -> bool:
    if "gunicorn.workers.base" not in sys.modules:
        return False
    from ..gunicorn import unhooked

    return unhooked.worker() is not None


class Uvicorn(LoopAdapter):
    """uvicorn. Its supervisor (``--workers``, ``--reload``) or gunicorn's other workers have copies of the listener."""

    name = "uvicorn"

    def __init__(self, server: Any) -> None:
        alone = not is_child() and server.config.fd is None and not _in_gunicorn()
        super().__init__(server.servers[0].get_loop(), server.servers, alone=alone)
        self._server = server

    def connections(self) -> Iterable[Any]:
        connections: set[Any] = self._server.server_state.connections
        return connections.copy()

    def under_way(self, connection: Any) -> Sequence[RequestInfo]:
        cycle, scope = getattr(connection, "cycle", None), getattr(connection, "scope", None)  # not of websockets
        if cycle is not None and not cycle.response_complete:
            return request_info(cycle.scope, "receiving" if cycle.more_body else "queued")
        if connection.transport.get_write_buffer_size():
            return request_info(cycle and cycle.scope, "sending")
        if scope is not None and scope is not (cycle and cycle.scope):  # httptools has read a part of a head
            return request_info(None, "receiving")
        parser = getattr(connection, "conn", None)  # of h11
        return request_info(None, "receiving") if parser is not None and parser.trailing_data[0] else ()

    def close_idle(self, connection: Any) -> None:
        connection.shutdown()

    def end(self) -> bool:
        self._server.should_exit = True
        return self.in_main
