"""What uvicorn and hypercorn have in common: connections in an asyncio loop, the application in threads.

The loop runs, mostly in the main thread, until the shutdown, in its own thread, is over. Code that touches a connection
or a listener runs in the loop, by ``call_soon_threadsafe``. We stop the server only when no request is left and the
hooks have run, so its own time limits do not matter, and it does not close a pool while a request is half received,
waiting for a thread, running or half sent.

The loop accepts by itself, so we only watch its listeners (``_servers/listener.py``). If another process has copies of
them, they must not refuse connections, so they close after a quiet period.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..._core.inflight import RequestInfo
from ..._core.server import ACCEPTED
from ..._core.signals import in_main_thread
from ..adapter import ConnectionAdapter
from ..discovery import instances
from ..listener import Listener, close_listeners
from ..sockets import unread
from ..wsgi import WSGIWrapper

if TYPE_CHECKING:
    from ..._core.process import Process

# The classes that run a WSGI application for an ASGI server, each with the attribute that holds the application.
_MIDDLEWARES = (
    ("uvicorn.middleware.wsgi", "_WSGIMiddleware", "app"),
    ("a2wsgi.wsgi", "WSGIMiddleware", "app"),
    ("hypercorn.app_wrappers", "WSGIWrapper", "app"),
    ("asgiref.wsgi", "WsgiToAsgi", "wsgi_application"),
)
_TAKEN_WITHIN = 1.0  # seconds that the start-up waits for the loop to install our signal handlers
_STAGES = ("queued", "receiving", "sending")
_CLOSED_WITHIN = 1.0  # seconds that the drain waits for the loop to close a listener
_TURNS = 5  # of the loop, from accepting a connection to listing it, with some to spare


class LoopAdapter(ConnectionAdapter):
    """A server in an asyncio loop. A subclass lists connections and requests, and closes a connection in the loop.

    :param alone: whether no other process has a copy of the listeners.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Sequence[asyncio.Server], *, alone: bool) -> None:
        super().__init__([Listener(sock, server=server) for server in servers for sock in server.sockets])
        self.wrapper = WSGIWrapper()
        self.in_main = True  # whether the loop runs in the main thread, which then ends with it
        self._loop = loop
        self._alone = alone
        self._open = list(self._listeners)
        if not alone:
            self.guarantee = ACCEPTED

    def connections(self) -> Iterable[Any]:
        """The open connections."""
        raise NotImplementedError

    def under_way(self, connection: Any) -> Sequence[RequestInfo]:
        """The requests on a connection."""
        raise NotImplementedError

    def close_idle(self, connection: Any) -> None:
        """Close a connection. Called in the loop."""
        raise NotImplementedError

    def requests(self) -> Iterator[tuple[Any, Sequence[RequestInfo]]]:
        return ((connection, self.under_way(connection)) for connection in self.connections())

    def transport(self, connection: Any) -> Any:
        return connection.transport

    def begin(self, process: Process) -> None:
        taken = threading.Event()
        self._loop.call_soon_threadsafe(self._take_signals, process, taken)
        for module, name, attribute in _MIDDLEWARES:
            kind = getattr(sys.modules.get(module), name, None)
            for middleware in instances(kind) if kind is not None else ():
                setattr(middleware, attribute, self.wrapper.wrap(getattr(middleware, attribute)))
        if not in_main_thread():  # otherwise this is the loop
            # The application becomes READY after this, and then SIGTERM may arrive. Before the callback the loop's own
            # handler would get it, and stop without a delay; during the callback it has no handler and would kill us.
            taken.wait(_TAKEN_WITHIN)

    def _take_signals(self, process: Process, taken: threading.Event) -> None:
        self.in_main = in_main_thread()
        if self.in_main:
            process.take_signals()
        taken.set()

    def announce(self) -> None:
        self.wrapper.closing = True

    def stop_accepting(self, timeout: float) -> None:
        close_listeners(self._open[:], self.close_listener, timeout, refuse=self._alone)
        self._looks.clear()

    def close_listener(self, listener: Listener) -> None:
        self._open.remove(listener)
        if any(each.server is listener.server for each in self._open):
            return  # a server closes all of its listeners at once, so the last one closes it
        closed = self.order()

        async def close() -> None:
            listener.server.close()
            # The server does not list a connection that the loop has just accepted: the loop makes its transport,
            # protocol and task in the next turns. A drain that checked before that would think the server idle.
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            closed.set()

        asyncio.run_coroutine_threadsafe(close(), self._loop)
        closed.wait(_CLOSED_WITHIN)

    def hang_up(self, connection: Any) -> None:
        self._loop.call_soon_threadsafe(self._hang_up, connection)

    def _hang_up(self, connection: Any) -> None:
        sock = self.transport(connection).get_extra_info("socket")
        # An end of file is no request: hypercorn keeps a connection for keep_alive_timeout after its client left.
        if not self.under_way(connection) and not unread(sock):
            self.close_idle(connection)

    def unfinished(self) -> Sequence[RequestInfo]:
        # We cannot see which of the server's requests the application runs, but they are not being sent yet.
        busy = sorted(super().unfinished(), key=lambda info: _STAGES.index(info.stage))
        running = len(self.wrapper.running)
        return [*(info._replace(stage="running") for info in busy[:running]), *busy[running:]]


def is_child() -> bool:
    """Whether a supervisor has started this process, and has a copy of its listeners."""
    return multiprocessing.parent_process() is not None


def request_info(scope: Any, stage: str) -> Sequence[RequestInfo]:
    """The request of an ASGI scope, as far as known."""
    scope = scope or {}
    return [RequestInfo(str(scope.get("method", "-")), str(scope.get("path", "-")), 0.0, stage=stage)]
