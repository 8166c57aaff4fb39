"""gevent's WSGI server (``gevent.pywsgi``), started by ``run`` or detected.

Theory of operation
-------------------

pywsgi accepts each connection in a new greenlet, those of one server in one hub. Its own stop cuts running responses
unless ``spawn`` is a pool, and resets the accept queue. We close only the listener, and the hub runs until the last
connection ends.

Before a shutdown we track nothing. When it begins, we replace the handler class of each server with a derived one
(:class:`_Tracked`), and the ``__class__`` of existing handlers, in the hub. From then on responses say ``Connection:
close``, unless the client has sent a further request, and a connection lingers until its client has the response. The
attributes of an existing handler show what it was doing. One case looks idle although it is not: a kept connection that
has received a part of a head. It is hung up if the rest does not arrive within the linger.

Code that touches a server or its hub runs in the hub's thread, by ``run_callback_threadsafe``, the only method of a hub
that other threads may call. Callbacks run in order and before the next accept, so each accepted connection has its
handler when the listener is closed.

``run`` does not patch. If the process is patched (``python -m gevent.monkey --module flask ...``), our threads are
greenlets in the same hub, and probes are not answered while the application computes without a pause. Otherwise they
are real threads, but an application that does not call gevent's functions blocks all connections while it waits.

gevent's sockets can switch to another greenlet, so we query the plain sockets below them (``_sock``).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
from gevent.baseserver import BaseServer
from gevent.event import Event
from gevent.hub import Hub
from gevent.pywsgi import WSGIHandler, WSGIServer

from .._core.inflight import RequestInfo
from . import bind, sockets
from .adapter import STARTED_HERE, Adapter, ConnectionAdapter, attach
from .discovery import instances
from .listener import Listener
from .wsgi import as_error, guarded

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

NEEDS = (
    (WSGIServer, ("handler_class", "start_accepting", "stop_accepting")),
    (BaseServer.__init__, ("_stop_event",)),
    (WSGIHandler, ("read_request", "handle_one_request", "handle_one_response", "finalize_headers", "log_request")),
)
HUB_PATIENCE = 1.0  # seconds to wait for the hub to close a listener; if the application blocks it, it does so later
_access_log = logging.getLogger("gevent.pywsgi")


def find() -> Adapter | None:
    """Attach to the pywsgi servers of this process."""
    servers = [server for server in instances(WSGIServer) if _serves(server)]
    return attach(Gevent, servers, NEEDS)


def _serves(server: Any) -> bool:
    """Whether a server is open, and is not gunicorn's."""
    is_open = server.started and not server.closed and server.socket.fileno() >= 0
    return is_open and not type(server).__module__.startswith("gunicorn")


class Gevent(ConnectionAdapter):
    """gevent's WSGI server."""

    name = "gevent"

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__(listeners)
        self.tracked: dict[_Tracked, None] = {}  # in a shutdown: the handlers of open connections
        self._alive: list[Any] = []  # timers
        self._announced = False
        for server in self._servers:
            if not issubclass(server.handler_class, (_Silent, _Unlogged)):
                server.handler_class = type("Handler", (_Silent, server.handler_class), {})

    def announce(self) -> None:
        if not self._announced:
            self._announced = True
            for server in self._servers:
                _in_hub(server, self._track, server, self.order())

    def _track(self, server: Any, tracked: threading.Event) -> None:
        """Track a server's open connections and all later ones."""
        # A hub without anything to wait for raises LoopExit, and the listeners are about to be closed.
        self._alive.append(server.loop.timer(1.0, 1.0))
        self._alive[-1].start(lambda: None)
        server.handler_class = type("Tracked", (_Tracked, server.handler_class), {"adapter": self})
        for handler in self._open():
            if handler.server is server:
                handler.__class__ = type("Tracked", (_Tracked, type(handler)), {"adapter": self})
                handler.begin_tracking()
        tracked.set()

    def _open(self) -> list[Any]:
        """The handlers whose connections are open."""
        handlers = instances(WSGIHandler)
        return [each for each in handlers if each.server in self._servers and "socket" in each.__dict__]

    def close_listener(self, listener: Listener) -> None:
        server, closed = listener.server, self.order()

        def close() -> None:
            server.start_accepting = lambda: None  # a pool calls it as soon as it has room
            server.stop_accepting()
            server.socket.close()  # and not server.close(), which would end serve_forever()
            closed.set()

        _in_hub(server, close)
        closed.wait(HUB_PATIENCE)

    def requests(self) -> Iterator[tuple[_Tracked, Sequence[RequestInfo]]]:
        # A handler that is older than the tracking does not remove itself.
        return ((each, each.under_way()) for each in self.tracked.copy() if "socket" in each.__dict__)

    def hang_up(self, connection: _Tracked) -> None:
        # Interleaving, if this thread did it: it sees an idle connection; the hub reads a request; this thread sees no
        # input, and hangs up.
        _in_hub(connection.server, self._hang_up, connection)

    def _hang_up(self, connection: _Tracked) -> None:
        if connection.stage == "sending" or not (connection.under_way() or connection.has_input()):
            sockets.hang_up(connection.raw)

    def stop(self) -> None:
        """End loops outside of the main thread, which would keep the interpreter open; the main thread ends itself."""
        if threading.get_ident.__module__ != "_thread":  # patched: all threads are greenlets of the main thread
            return
        loops = [hub.loop for hub in instances(Hub) if hub.thread_ident != threading.main_thread().ident]
        for server in self._servers:
            if any(server.loop is loop for loop in loops):
                _in_hub(server, server._stop_event.set)


def _in_hub(server: Any, function: Callable[..., object], *arguments: Any) -> None:
    server.loop.run_callback_threadsafe(function, *arguments)


class _Silent:
    """Mixed into a handler that writes its access log to a stream: applies the filters of gevent's logger."""

    requestline: str | None

    def log_request(self) -> None:
        record = logging.makeLogRecord({"name": "gevent.pywsgi", "args": (self.requestline or "",)})
        if logging.getLogger(record.name).filter(record):  # the filter leaves out probes
            super().log_request()  # type: ignore[misc]  # the handler's


class _Tracked:
    """Mixed into pywsgi's handler class during a shutdown: knows its connection's stage, and closes with a linger."""

    adapter: ClassVar[Gevent]
    stage = "silent"
    # Attributes of pywsgi's handler.
    server: Any
    socket: Any
    rfile: Any
    command: str | None
    path: str | None
    close_connection: bool
    code: int | None
    headers_sent: bool
    result: Any
    response_headers: list[tuple[bytes, bytes]]
    wsgi_input: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin_tracking()

    def begin_tracking(self) -> None:
        """Find the stage of a connection, which may be an old one."""
        self.raw = getattr(self.socket, "_sock", self.socket)
        if "environ" in self.__dict__:  # of this request, or of the last one
            self.stage = "idle" if self.headers_sent and self.result is None else "running"
        elif sockets.bytes_received(self.raw):
            self.stage = "receiving"
        self.adapter.tracked[self] = None

    def under_way(self) -> Sequence[RequestInfo]:
        """Its request, if it has one."""
        stage = self.stage
        if stage in ("silent", "idle", "sending"):
            if not sockets.unsent(self.raw):
                return ()
            stage = "sending"
        return [RequestInfo(self.command or "-", self.path or "-", 0.0, stage=stage)]

    def handle(self) -> None:
        try:
            super().handle()  # type: ignore[misc]
        finally:
            self.adapter.tracked.pop(self, None)

    def has_input(self) -> bool:
        """Whether the kernel has bytes, an end of file or an error to read."""
        try:
            self.raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def handle_one_request(self) -> Any:
        result = super().handle_one_request()  # type: ignore[misc]
        if isinstance(result, tuple):  # an error, after which pywsgi closes
            self.close_connection = True
        return result

    def read_requestline(self) -> str:
        self.stage = "idle" if "environ" in self.__dict__ else "silent"
        if not sockets.skip_empty_lines(self.rfile):
            return ""
        self.stage = "receiving"
        line: str = super().read_requestline()  # type: ignore[misc]
        return line

    def read_request(self, *arguments: Any) -> Any:
        self.stage = "receiving"  # the handler may have read the request line before it was tracked
        return super().read_request(*arguments)  # type: ignore[misc]

    def handle_one_response(self) -> None:
        self.stage = "running"
        super().handle_one_response()  # type: ignore[misc]

    def finalize_headers(self) -> None:
        if self.code != 101:
            if self._unread() or not sockets.at_request(self.socket, self.rfile):
                self.close_connection = True
            if self.close_connection:
                headers = [(name, value) for name, value in self.response_headers if name.lower() != b"connection"]
                self.response_headers = [*headers, (b"Connection", b"close")]
        super().finalize_headers()  # type: ignore[misc]

    def _unread(self) -> bool:
        """Whether the request's body is unread, so that the input need not be a further request."""
        body = self.wsgi_input
        if body.chunked_input:
            return bool(body.chunk_length != 0)
        return bool(body.position < (body.content_length or 0))

    def log_request(self) -> None:
        """Linger; pywsgi calls this when a response is complete."""
        super().log_request()  # type: ignore[misc]
        if self.close_connection and self.code != 101:
            self.stage = "sending"
            sockets.linger(self.socket, self.adapter.patience, gevent.sleep)


# -- by run -----------------------------------------------------------------------------------------------------------


def create(app: WSGIApplication, host: str | None, port: int | None, options: dict[str, Any]) -> RunningGevent:
    """Make the server, bound and listening."""
    where, own = bind.split_options("gevent", options, {"backlog": int})
    return RunningGevent(app, bind.bind(host, port, where, own.get("backlog", 128)))


class RunningGevent(Gevent):
    """gevent's WSGI server, started by ``run``."""

    means = STARTED_HERE

    def __init__(self, app: WSGIApplication, bound: list[Listener]) -> None:
        for listener in bound:
            listener.server = _server_on(listener, guarded(app))
        super().__init__(bound)
        self._ended = Event()
        sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close."""
        # The plain sockets: gevent's belong to the parent's hub.
        bound = [getattr(each.socket, "_sock", each.socket) for each in self._listeners]
        return [*bound, *(getattr(each.socket, "_sock", each.socket) for each in self._open())]

    def serve(self) -> None:
        for server in self._servers:
            server.loop = gevent.get_hub().loop  # of this thread; another one may have made the server
            server.start()
        while not self._ended.wait(1.0):  # wakes up to handle signals that another thread received
            pass

    def ping(self, done: Callable[[], None]) -> bool:
        _in_hub(self._servers[0], done)  # each connection has its own greenlet, so only the hub can be stuck
        return True

    def stop(self) -> None:
        _in_hub(self._servers[0], self._ended.set)


class _Handler(WSGIHandler):  # type: ignore[misc]
    def process_result(self) -> None:
        try:
            super().process_result()
        except (SystemExit, KeyboardInterrupt) as error:  # it would end the hub
            raise as_error(error) from error


class _Unlogged(_Handler):
    """A handler without an access log. pywsgi formats a line for each request even if it does not write it."""

    def log_request(self) -> None:
        """Log nothing."""


def _server_on(listener: Listener, app: WSGIApplication) -> WSGIServer:
    """A server on a bound socket."""
    log, handler = (_access_log, _Handler) if _access_log.isEnabledFor(logging.INFO) else (None, _Unlogged)
    # Without SERVER_NAME pywsgi asks the name service.
    name = str(listener.socket.getsockname()[0]) if listener.path is None else ""
    server = WSGIServer(listener.socket, app, handler_class=handler, log=log, environ={"SERVER_NAME": name})
    server.init_socket()
    return server
