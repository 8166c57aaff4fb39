"""cheroot, started by ``run`` or detected (``cheroot``, ``cheroot.wsgi.Server(...).start()``).

Theory of operation
-------------------

We do not change cheroot's loop, pool and connections. Its own stop resets connections and cuts responses, so we call it
only when no connection is left. A shutdown before that:

- *Responses say* ``Connection: close``, also those of requests that run already, unless the client has sent a further
  request. cheroot asks its connection manager for each response whether to keep the connection; once the shutdown has
  begun, our method answers.
- *Connections close* without a reset, which would destroy the end of the response: once the shutdown has begun, their
  class is ours, which shuts down for writing and reads until the client has closed. That occupies a worker, so if other
  connections wait for one it reads only until the client has acknowledged the response.
- *The listener* is removed from the loop's selector and closed in the shutdown's thread, when the loop has accepted all
  connections in the queue (``_servers/listener.py``).
- *The drain* waits until no connection is open. A kept connection without a new request is shut down after the linger;
  the loop then finds its end and closes it. cheroot gives a new connection to a worker before the client has sent
  anything; the kernel knows which connections have never received a byte. Between the loop and a worker a connection is
  in none of cheroot's lists, on a busy machine for a while: the drain would see nothing, and end; the thread would go
  on, and the guard refuse the request. So our class of connections lists them itself, and we wait for a loop that is
  inside its accept. A TLS handshake there is hung up after the linger.
- *cheroot's threads* are not daemons and would keep the interpreter open, because ``start()`` does not catch the
  ``SystemExit`` that ends the main thread. ``server.stop()`` ends them as soon as the loop has ended.

*Started by* ``run``, each socket has cheroot's own server, with its own pool. ``server.stop()`` would wait for the
timeout of the loop's ``select``, so we put a closed connection into the selector, which wakes the loop.

Limit: cheroot gives each connection a worker before the client has sent anything. Silent clients hold workers for
``timeout`` seconds, and a probe on the main port waits for a free worker.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cheroot import connections
from cheroot.connections import ConnectionManager
from cheroot.server import HTTPConnection, HTTPRequest, HTTPServer
from cheroot.workers.threadpool import ThreadPool
from cheroot.wsgi import Gateway_10, Server

from .._core.inflight import Load, RequestInfo
from . import bind, sockets
from .adapter import STARTED_HERE, Adapter, ConnectionAdapter, attach, put_ahead, watched_only
from .discovery import handshakes, inside, instances
from .listener import Listener
from .wsgi import as_error, guarded

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

NEEDS = (
    (HTTPServer, ("ConnectionClass", "process_conn", "stop")),
    (HTTPServer.prepare, ("_connections",)),
    (ConnectionManager, ("_expire", "_from_server_socket", "can_add_keepalive_connection", "run")),
    (ConnectionManager.__init__, ("_selector", "_serving")),
    (getattr(connections, "_ThreadsafeSelector", object).__init__, ("_lock", "_selector")),
    (ThreadPool.__init__, ("_queue", "_threads")),
    (HTTPRequest, ("respond",)),
)
_TICK = 0.01
# A loop in the main thread ends at once. After this time we stop one in another thread, which would keep the
# interpreter open.
_OWN_END = 0.5
# Idle threads of cheroot end at once, but on a busy machine it may take a while until each of them runs. A thread that
# still has a request is not waited for as long.
_THREADS_END, _BUSY_THREADS_END = 2.0, 0.2


def find() -> Adapter | None:
    """Attach to the cheroot servers of this process."""
    servers = [server for server in instances(HTTPServer) if server.ready and hasattr(server, "_connections")]
    if any(type(getattr(server, "ssl_adapter", None)).__module__ == "cheroot.ssl.pyopenssl" for server in servers):
        adapter = watched_only("cheroot", [])  # connections of pyOpenSSL do not behave like sockets
        adapter.advice = "more needs cheroot's built-in TLS adapter"
        return adapter
    return attach(Cheroot, servers, NEEDS)


class Cheroot(ConnectionAdapter):
    """cheroot, by its command, by ``start()`` or by ``run``."""

    name = "cheroot"

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__(listeners)
        self.opened: dict[Any, None] = {}  # in a shutdown: the connections, until we close them

    def serving(self) -> bool:
        return any(inside(ConnectionManager.run, self=server._connections) for server in self._servers)

    def announce(self) -> None:
        for server in self._servers:
            kind = server.ConnectionClass
            if not issubclass(kind, _Lingering):
                server._connections.__class__ = _StoppingManager
                server.ConnectionClass = type(kind.__name__, (_Lingering, kind), {"adapter": self})
        # Those that the loop has made of the old class, or makes: then a connection may have no server yet.
        for connection in instances(HTTPConnection):
            server = getattr(connection, "server", self._servers[0])
            if server in self._servers and not isinstance(connection, _Lingering):
                connection.__class__ = server.ConnectionClass
                self.opened[connection] = None

    def close_listener(self, listener: Listener) -> None:
        listener.server._connections._selector.unregister(listener.socket.fileno())
        listener.socket.setblocking(False)  # the loop may accept from it once more
        listener.socket.close()

    def requests(self) -> Iterator[tuple[Any, Sequence[RequestInfo]]]:
        # In the order in which a connection passes them. One between the loop and a worker counts as queued.
        stages: dict[Any, str | None] = dict.fromkeys(self._accepting())
        stages |= {each: "queued" for each in self.opened.copy() if _is_open(each)}
        responding = inside(HTTPRequest.respond)
        for server in self._servers:
            stages |= {each: "sending" if sockets.unsent(each.socket) else None for each in _kept(server)}
            stages |= dict.fromkeys(_queued(server), "queued")
            stages |= {each: _stage(each, worker.ident in responding) for each, worker in _busy(server).items()}
        for connection, stage in stages.items():
            yield connection, () if stage is None else [RequestInfo("-", "-", 0.0, stage=stage)]

    def _accepting(self) -> Iterator[Any]:
        """The servers whose loops are inside their accept, and the sockets of their TLS handshakes."""
        for server in self._servers:
            for thread in inside(ConnectionManager._from_server_socket, self=server._connections):
                yield server
                yield from handshakes(thread)

    def hang_up(self, connection: Any) -> None:
        if isinstance(connection, HTTPConnection):
            _hang_up(connection)
        elif isinstance(connection, socket.socket) and connection in handshakes():  # otherwise it is over
            sockets.end_input(connection)

    def load(self) -> Load:
        threads = sum(len(server.requests._threads) for server in self._servers)
        busy = sum(len(_busy(server)) for server in self._servers)
        return Load(sum(len(_queued(server)) for server in self._servers), threads, busy)

    def ping(self, done: Callable[[], None]) -> bool:
        step: Callable[[], object] = done
        for server in self._servers[1:]:
            step = functools.partial(_send_ahead, server, step)
        return _send_ahead(self._servers[0], step)

    def stop(self) -> None:
        threading.Thread(target=self._end_threads, name="lifecycle-cheroot", daemon=True).start()

    def _end_threads(self) -> None:
        pause = threading.Event()
        until = time.monotonic() + _OWN_END
        while any(server._connections._serving for server in self._servers) and time.monotonic() < until:
            pause.wait(_TICK)
        for server in self._servers:
            server.stop()


class _StoppingManager(ConnectionManager):  # type: ignore[misc]  # see setup.cfg
    """The class of the connection manager, which is the loop, during a shutdown."""

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Whether the client has sent a further request. Called by the worker that has the connection."""
        connection = threading.current_thread().conn  # type: ignore[attr-defined]  # a thread of cheroot's
        return sockets.at_request(connection.socket, connection.rfile)

    def _expire(self, threshold: float) -> None:
        # Not close(), which lingers. Meanwhile the loop would neither accept nor give connections to workers.
        for connection in _kept(self.server):
            if connection.last_used < threshold:
                _hang_up(connection)

    def _from_server_socket(self, server_socket: socket.socket) -> Any:
        try:
            return super()._from_server_socket(server_socket)
        except OSError:  # no descriptor is left; an error here would end the loop's turn for all other connections
            return None


class _Lingering:
    """Mixed into a class of connections: they are listed, and closing does not cut the last response."""

    adapter: ClassVar[Cheroot]
    lingers = False
    server: Any
    socket: socket.socket

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapter.opened[self] = None  # the loop is still inside its accept

    def close(self) -> None:
        if not _is_silent(self.socket):
            self.lingers = True
            sockets.linger(self.socket, self._patience, time.sleep)
        super().close()  # type: ignore[misc]
        self.adapter.opened.pop(self, None)

    def _patience(self) -> float:
        """No patience if other connections wait for this worker: the client has acknowledged the response by then."""
        return _TICK if _queued(self.server) else self.adapter.patience()


def _flag(value: Any) -> bool:
    return value in (True, "1", "true", "yes", "on")


# cheroot's own names, except for the two that `flask lifecycle run` has for all servers.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "threads": int,
    "backlog": int,
    "timeout": float,
    "server_name": str,
    "max_request_header_size": int,
    "max_request_body_size": int,
    "keep_alive_conn_limit": int,
    "peercreds_enabled": _flag,
    "peercreds_resolve_enabled": _flag,
}


def create(app: WSGIApplication, host: str | None, port: int | None, options: dict[str, Any]) -> RunningCheroot:
    """Make the server, bound and listening."""
    where, own = bind.split_options("cheroot", options, _OPTIONS)
    return RunningCheroot(app, bind.bind(host, port, where, own.setdefault("backlog", 128)), own)


class RunningCheroot(Cheroot):
    """cheroot, started by ``run``."""

    means = STARTED_HERE

    def __init__(self, app: WSGIApplication, bound: list[Listener], options: dict[str, Any]) -> None:
        for listener in bound:
            listener.server = _OnSocket(listener.socket, guarded(app), options)
        super().__init__(bound)
        self._stopper = threading.Thread(target=self._stop_servers, name="lifecycle-cheroot", daemon=True)
        self._threads_end = _THREADS_END
        sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close."""
        connected = [each for server in self._servers for each in (*_busy(server), *_kept(server))]
        return [each.socket for each in (*self._servers, *connected) if each.socket is not None]

    def serve(self) -> None:
        first, *others = self._servers
        for server in others:
            threading.Thread(target=server.serve, name="lifecycle-cheroot", daemon=True).start()
        first.serve()
        self._stopper.join(self._threads_end)  # otherwise cheroot's threads keep the interpreter open, with a warning

    def close(self) -> None:
        self._stop_servers()
        super().close()

    def stop(self) -> None:
        if any(map(_busy, self._servers)):
            self._threads_end = _BUSY_THREADS_END
        for server in self._servers:
            # serve() loops without a pause until server.stop() ends it, which is the next step.
            server._connections._stop_requested = True
            _wake(server)
        self._stopper.start()

    def _stop_servers(self) -> None:
        for server in self._servers:
            server.stop()


class _OnSocket(Server):  # type: ignore[misc]  # see setup.cfg
    """cheroot's own server, on a bound socket."""

    def __init__(self, sock: socket.socket, app: WSGIApplication, options: dict[str, Any]) -> None:
        self._given = sock
        own = ("timeout", "server_name", "peercreds_enabled", "peercreds_resolve_enabled")
        threads = options.get("threads", 10)
        super().__init__(
            sock.getsockname() if sock.family == socket.AF_UNIX else sock.getsockname()[:2],
            app,
            numthreads=threads,
            max=threads,
            request_queue_size=options["backlog"],
            **{name: options[name] for name in own if name in options},
        )
        for name in ("max_request_header_size", "max_request_body_size", "keep_alive_conn_limit"):
            setattr(self, name, options.get(name, getattr(self, name)))
        self.gateway = _Gateway
        self.prepare()

    def bind(self, family: Any, type: Any, proto: int = 0) -> None:  # noqa: A002  cheroot's own name
        self.socket = self._given
        # As cheroot's own bind() does; connections inherit it. Without it responses wait 40 ms for acknowledgements.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(self.nodelay))

    def bind_unix_socket(self, bind_addr: Any) -> None:
        self.socket = self._given


class _Gateway(Gateway_10):  # type: ignore[misc]  # see setup.cfg
    def respond(self) -> None:
        try:
            Gateway_10.respond(self)  # "super()" costs each request more, before Python 3.12
        except (SystemExit, KeyboardInterrupt) as error:  # it would stop cheroot
            raise as_error(error) from error


def _wake(server: Any) -> None:
    """Wake a server's loop, with a connection that its client has closed.

    Interleavings: usually the loop wakes for it, and ends. But if the loop is awake already, it may look for
    connections to expire, and compare the times of their last use, before it ends.
    """
    ours, theirs = socket.socketpair()
    theirs.close()
    connection = HTTPConnection(server, ours)
    connection.last_used = time.time()
    server._connections._selector.register(ours.fileno(), selectors.EVENT_READ, data=connection)


def _queued(server: Any) -> list[Any]:
    """The connections that wait for a worker."""
    return [each for each in list(server.requests._queue.queue) if hasattr(each, "rfile")]


def _busy(server: Any) -> dict[Any, Any]:
    """The connections of busy workers, each with its worker."""
    return {conn: worker for worker in list(server.requests._threads) if hasattr(conn := worker.conn, "rfile")}


class _Ping:
    """Looks like a connection to cheroot's workers, and reports that a worker has taken it."""

    requests_seen = 0  # cheroot adds these up for its statistics

    def __init__(self, done: Callable[[], object]) -> None:
        self._done = done

    def communicate(self) -> bool:
        self._done()
        return False

    def close(self) -> None:
        """Nothing to close."""


def _send_ahead(server: Any, done: Callable[[], object]) -> bool:
    """Put a ping at the head of the workers' queue; ``False`` if the queue's lock is taken."""
    queue = server.requests._queue
    return put_ahead(queue.queue, queue.not_empty, _Ping(done))


def _is_open(connection: Any) -> bool:
    """Whether a connection is made and not closed. cheroot forgets some whose client has reset them."""
    file = getattr(connection, "rfile", None)
    return file is not None and not file.closed and not sockets.is_dead(connection.socket)


def _hang_up(connection: Any) -> None:
    """Hang up a connection, unless a request has arrived on it.

    Interleavings: the drain sees an idle connection; a request arrives, and a worker reads it; the drain sees no input,
    and hangs up. But a worker reads only after the loop has taken the connection out of the selector, and it cannot
    while we hold the selector's lock; and a connection that no byte has ever reached has no request.
    """
    selector, sock = connection.server._connections._selector, connection.socket
    with selector._lock, contextlib.suppress(OSError, ValueError):  # closed meanwhile
        key = (selector._selector.get_map() or {}).get(sock.fileno())
        if ((key is not None and key.data is connection) or _is_silent(sock)) and not sockets.has_input(sock):
            sockets.hang_up(sock)


def _kept(server: Any) -> list[Any]:
    """The kept connections, which wait in the loop for their next request."""
    selector = server._connections._selector
    try:
        return [connection for _descriptor, connection in selector.connections if connection is not server]
    except (RuntimeError, ValueError):  # the loop ends, and closes them
        return []


def _stage(connection: Any, responding: bool) -> str | None:
    """The stage of a worker's connection; ``None`` if the client has sent nothing."""
    if getattr(connection, "lingers", False):
        return "sending"
    if responding:
        return "running"
    return None if _is_silent(connection.socket) else "receiving"


def _is_silent(sock: socket.socket) -> bool:
    """Whether the client has never sent a byte; ``False`` for a Unix socket, where that is unknown."""
    return sockets.bytes_received(sock) == 0
