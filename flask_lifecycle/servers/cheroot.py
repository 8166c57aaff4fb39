"""cheroot: run it, and stop it without losing a request.

Theory of operation
-------------------

Of cheroot this is what speaks HTTP: its connections, requests and gateway, on a server object that is never started.
Its loop, its pool and its stop are not used: the stop resets what waits in the accept queue and whoever is in the
middle of a kept connection, waits for a hung worker without a bound, and lets ``serve()`` return before it is through
(so that the interpreter ends under the requests that still run). Its loop gives a connection to a worker before it has
said anything, and a silent client holds that thread for ten seconds.

Here the main thread accepts and watches, in a loop of its own that a pipe can wake, every connection on which nothing
is under way. When one has something to say it leaves the loop for the queue of the pool. The worker that takes it
reads one request, answers it, and gives the connection back to the loop (or behind the queue, if the next request is
here already). So each connection belongs to one thread at a time, and its *stage* tells to which:

- the loop's: ``silent`` (nothing has ever come), ``idle`` (kept), ``sending`` (the farewell);
- a worker's: ``queued``, ``receiving`` (the head), ``running`` (the application, which reads the body and whose answer
  is written as it comes).

In a drain the loop hangs up a silent or idle connection after the linger, unless bytes wait in the kernel in either
direction.

*The lanes.* The loop peeks at what a connection has to say. A whole GET or HEAD of a probe, without a body, goes to a
pool of its own with one thread, so no probe on the main port queues behind work, and nothing but a probe gets there.

*Closing.* From the announcement on every answer says close, unless a further request is here behind it. The
application may say it as well; cheroot then sends the header and keeps the connection, so this file makes it true. A
connection that closes is shut down for writing and read until the client has closed, too (the farewell, as in the
waitress runner).

What cheroot gets wrong about where a message ends is put right here, because the next request on the connection, or the
next answer, would be taken out of the middle of this one: an answer that is shorter or longer than it said is the last
on its connection, as is one to a chunked body that was not read; a head that can be read in two ways is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from cheroot.server import HeaderReader, HTTPConnection, HTTPRequest
from cheroot.wsgi import Gateway_10, Server

from .. import _sockets
from .._audience import MOST_HELD, WATCH
from .._inflight import Load, RequestInfo
from .._parties import FULL
from . import _binding, _closing
from ._canary import Canary, send_ahead
from ._guard import guarded
from ._pools import pool_load
from ._workers import WorkerPool

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_PEEK = 8192
# A request line that can only be that of a probe: nothing is quoted, and what is behind the path is its query.
_PROBE = re.compile(rb"(?:GET|HEAD) (/[\w/.~-]*)(?:\?\S*)? HTTP/1\.[01]\r\n")
_HAS_BODY = re.compile(rb"\r\n(?:content-length|transfer-encoding|expect)[ \t]*:", re.IGNORECASE)
# The upper bound on what a lost wake-up could cost; all that a drain waits for does wake the loop.
_DRAIN_TICK = 0.05
_STARVED_PAUSE = 0.1
_LOOPS = ("silent", "idle", "sending")


def _flag(value: Any) -> bool:
    return value in (True, "1", "true", "yes", "on")


# What a user may set: cheroot's own names, but for the two that `flask lifecycle run` has for all.
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


def create(
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Callable[[str], str | None],
    options: dict[str, Any],
) -> Cheroot:
    """Make the server, bound and listening."""
    where = {name: value for name, value in options.items() if name in _binding.OPTIONS}
    rest = {name: _cast(name, value) for name, value in options.items() if name not in where}
    bound = _binding.bind(host, port, where, rest.pop("backlog", 128))
    return Cheroot(app, bound, lane, rest)


def _cast(name: str, value: Any) -> Any:
    if name not in _OPTIONS:
        near = difflib.get_close_matches(name, [*_OPTIONS, *_binding.OPTIONS], n=1, cutoff=0.0)[0]
        raise ValueError(f"cheroot has no option '{name}'; did you mean '{near}'?")
    try:
        cast = _OPTIONS[name](value)
    except (TypeError, ValueError):
        raise ValueError(f"cheroot's option '{name}' is to be a number, and not {value!r}.") from None
    if name in ("threads", "backlog", "timeout") and cast <= 0:
        raise ValueError(f"cheroot's option '{name}' is to be more than 0, and not {value!r}.")
    return cast


class Cheroot:
    """A cheroot server that is ours from its first to its last connection."""

    name = "cheroot"
    ours = True
    means = "started by flask_lifecycle"
    promise = FULL
    advice = ""

    def __init__(
        self,
        app: WSGIApplication,
        bound: list[_binding.Bound],
        lane: Callable[[str], str | None],
        options: dict[str, Any],
    ) -> None:
        self.announced = False
        self.last_accept = 0.0
        threads = options.pop("threads", 10)
        self._listeners = [_Listener(app, each, options, self) for each in bound]
        self._pool = WorkerPool(threads, "cheroot")
        self._find_lane = lane
        self._lanes: dict[str, WorkerPool] = {}  # the loop's alone, as the selector is
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._held_back = False
        self._connections: dict[_Connection, None] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._starved_until = 0.0
        self._closing = _closing.ClosingListeners()
        self._linger: float | None = None  # not None: a drain is on, since _drained
        self._drained = 0.0
        self._next_look = 0.0
        self._idle = threading.Event()
        self._ended = False
        _sockets.close_in_children(self)

    # -- verbs, from any thread but the loop's --------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        return [*(each.bound.socket for each in self._listeners), *(each.socket for each in self._connections.copy())]

    def addresses(self) -> list[str]:
        return [_sockets.describe(listener.bound.socket) for listener in self._listeners]

    def listeners(self) -> list[socket.socket]:
        return [listener.bound.own for listener in self._listeners]

    def hold_back(self) -> None:
        self._held_back = True

    def take_over(self, ours: Collection[socket.socket]) -> None:
        self._post(lambda: self._take_over(ours))

    def hand_over(self) -> None:
        self._post(self._hand_over)

    @property
    def draining(self) -> bool:
        """Whether the drain is on, and every connection is on its way out."""
        return self._linger is not None

    def announce(self) -> None:
        self.announced = True  # read by the workers

    def stop_accepting(self, timeout: float) -> None:
        self._post(lambda: self._begin_closing(timeout))
        self._closing.done.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self._post(lambda: self._begin_drain(linger))
        return self._idle.wait(timeout)

    def unfinished(self) -> list[RequestInfo]:
        now = time.monotonic()
        return [
            RequestInfo(connection.method, connection.path, now - connection.since, stage=stage)
            for connection in self._connections.copy()
            if (stage := connection.under_way()) is not None and stage != "running"
        ]

    def load(self) -> Load:
        now = time.monotonic()
        began = [c.since for c in self._connections.copy() if c.stage in ("queued", "receiving", "running") and c.works]
        return pool_load([self._pool], max((now - since for since in began), default=0.0))

    def canary(self, done: Callable[[], None]) -> bool:
        return send_ahead(self._pool, Canary(lambda: self._post(done)))

    def stop(self) -> None:
        self._post(lambda: setattr(self, "_ended", True))

    def _post(self, function: Callable[[], None]) -> None:
        self._posted.append(function)
        with contextlib.suppress(OSError):  # full: the loop will wake; closed: it has ended
            os.write(self._wake_write, b"x")

    # -- the loop -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until :meth:`stop`, in the calling thread."""
        if not self._held_back:
            self._take_over(())
        while not self._ended:
            self._tick()
        self._release()

    def close(self) -> None:
        """Let go of everything without having served."""
        for listener in self._listeners:
            listener.bound.close_unserved(self._held_back)
        self._release()

    def _tick(self) -> None:
        for key, _event in self._selector.select(self._timeout()):
            thing = key.data
            if isinstance(thing, _Connection):
                self._heard(thing)
            elif isinstance(thing, _Listener):
                self._accept(thing)
            else:
                os.read(self._wake_read, 4096)
        while self._posted:
            self._posted.popleft()()
        self._closing.step()
        self._look()

    def _timeout(self) -> float:
        if self._closing.under_way:
            return _closing.CLOSING_TICK
        # Half a second is cheroot's own, for idle connections that expire.
        return 0.5 if self._linger is None else self._next_look

    def _accept(self, listener: _Listener) -> None:
        if time.monotonic() < self._starved_until:
            time.sleep(_closing.CLOSING_TICK)  # no descriptors: the loop goes on for those that will give theirs back
        elif not listener.accept_one():
            self._starved_until = time.monotonic() + _STARVED_PAUSE

    def _heard(self, connection: _Connection) -> None:
        """Something has come on a connection that is the loop's."""
        if connection.stage == "sending":
            try:
                if connection.socket.recv(65536):  # thrown away
                    connection.since = time.monotonic()
                    return
            except OSError:
                pass
            self._end(connection)
            return
        try:
            head = connection.socket.recv(_PEEK, socket.MSG_PEEK)
        except OSError:
            head = b""
        if head:
            self._selector.unregister(connection.socket)
            connection.enter("queued")
            self._pool_for(head, connection).add(connection)
        else:
            self._end(connection)

    def _pool_for(self, head: bytes, connection: _Connection) -> WorkerPool:
        line = _PROBE.match(head)
        whole = line is not None and b"\r\n\r\n" in head and not _HAS_BODY.search(head)
        name = self._find_lane(line[1].decode()) if line is not None and whole else None
        connection.works = name is None
        if name is None:
            return self._pool
        if name not in self._lanes:
            self._lanes[name] = WorkerPool(MOST_HELD if name == WATCH else 1, f"cheroot-{name}")
        return self._lanes[name]

    def _end(self, connection: _Connection) -> None:
        """The client has closed its side. In a drain it may still be reading, and is to have it all."""
        if self.draining and _sockets.unsent(connection.socket):
            self._selector.unregister(connection.socket)
            connection.heard_all = True
            connection.enter("sending")
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if not connection.heard_all:
            self._selector.unregister(connection.socket)
        connection.close()
        del self._connections[connection]

    def _take_over(self, ours: Collection[socket.socket]) -> None:
        self._held_back = False
        for listener in self._listeners:
            listener.bound.take_over(ours)
            self._selector.register(listener.bound.socket, selectors.EVENT_READ, listener)

    def _hand_over(self) -> None:
        """Between two ticks; what has not been accepted is still in the kernel's queue."""
        if self._closing.begun:
            return  # too late
        for listener in self._listeners:
            self._leave(listener, "left to another process")
        self._closing.done.set()

    def _leave(self, listener: _Listener, method: str) -> None:
        if not self._held_back:
            self._selector.unregister(listener.bound.socket)
        listener.bound.socket.close()  # our copy: a listener is closed with its last one
        _closing.log_closed(method)

    def _begin_closing(self, patience: float) -> None:
        if self._held_back or self._closing.done.is_set():
            self._hand_over()
            return
        closing = []
        for listener in self._listeners:
            bound = listener.bound
            if bound.given is not None:
                self._leave(listener, "left to its giver")
                continue
            self._selector.unregister(bound.socket)
            closing.append(
                _closing.ClosingListener(
                    bound.socket,
                    accept=listener.accept_one,
                    close=bound.socket.close,
                    last_accept=lambda: self.last_accept,
                    path=bound.path,
                    identity=bound.identity,
                    patience=patience,
                )
            )
        self._closing.begin(closing)

    def _begin_drain(self, linger: float) -> None:
        self._drained = self._drained or time.monotonic()
        self._linger = linger

    def _look(self) -> None:
        """One look at the loop's connections: end those that have had their time."""
        now, linger = time.monotonic(), self._linger
        self._next_look = _DRAIN_TICK
        for connection in [each for each in self._connections if each.stage in _LOOPS]:
            farewell = connection.stage == "sending"
            if linger is not None and _sockets.unsent(connection.socket):
                self._next_look = _sockets.ACK_TICK
                if farewell:
                    connection.since = now
                continue
            if connection.heard_all:
                left = 0.0
            elif farewell:
                patience = _sockets.FAREWELL if linger is None else linger
                left = min(connection.since + patience, connection.began + _sockets.FAREWELL_IN_ALL) - now
            elif linger is None:
                left = connection.since + connection.server.timeout - now
            else:
                left = max(connection.since, self._drained) + linger - now
            if left > 0:
                self._next_look = min(self._next_look, max(_closing.CLOSING_TICK, left))
            elif farewell or not _sockets.has_input(connection.socket):
                self._drop(connection)
        if linger is not None and self._closing.done.is_set() and not self._connections:
            self._idle.set()

    def _release(self) -> None:
        """End the threads and close what is left, unless a worker is still at work with it."""
        if self._connections:
            return  # a straggler may still write to the waker, and the process is about to leave anyway
        for pool in (self._pool, *self._lanes.values()):
            pool.end()
        self._selector.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

    # -- connections, also from their workers ---------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        """A connection was accepted, by the loop."""
        self.last_accept = time.monotonic()
        self._connections[connection] = None
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def served(self, connection: _Connection, stage: str) -> None:
        """A worker has done with a connection, which goes to the loop in this stage, or behind the queue."""
        connection.enter(stage)
        if stage == "queued":
            connection.works = True
            self._pool.add(connection)
        else:
            self._post(lambda: self._take_back(connection))

    def _take_back(self, connection: _Connection) -> None:
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def may_keep(self, limit: int | None) -> bool:
        """Whether one more connection may be kept, as cheroot counts them."""
        return limit is None or sum(each.stage == "idle" for each in self._connections.copy()) < limit


class _Listener:
    """One listener, and the server object of its connections."""

    def __init__(self, app: WSGIApplication, bound: _binding.Bound, options: dict[str, Any], runner: Cheroot) -> None:
        self.runner = runner
        self.bound = bound
        name = bound.socket.getsockname()
        self._is_unix = bound.socket.family == socket.AF_UNIX
        self._server = _Server(name if self._is_unix else name[:2], guarded(app))
        for option, value in options.items():
            setattr(self._server, option, value)
        self._server.runner = runner

    def accept_one(self) -> bool:
        """Accept a waiting connection; ``False`` if there was none, or none can be accepted."""
        try:
            sock, address = self.bound.socket.accept()
        except OSError:
            return False
        sock.settimeout(self._server.timeout)
        connection = _Connection(self._server, sock)
        if not self._is_unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.remote_addr, connection.remote_port = address[:2]
        self.runner.opened(connection)
        return True


class _Server(Server):  # type: ignore[misc]  # see setup.cfg
    """What cheroot's connections ask of their server."""

    runner: Cheroot

    def __init__(self, bind_addr: Any, app: WSGIApplication) -> None:
        super().__init__(bind_addr, app)
        self.gateway = _Gateway
        self.software = f"{self.version} Server"
        self.ready = True

    @property
    def can_add_keepalive_connection(self) -> bool:
        return self.runner.may_keep(self.keep_alive_conn_limit)


class _Headers(HeaderReader):  # type: ignore[misc]  # see setup.cfg
    """Reads the headers of one request, and refuses what leaves room for two readings of where it ends."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def _transform_key(self, key_name: bytes) -> bytes:
        name: bytes = super()._transform_key(key_name)
        if key_name.strip() != key_name or (name in self._seen and name in (b"Content-Length", b"Transfer-Encoding")):
            raise ValueError("Illegal header line.")
        self._seen.add(name)
        return name


class _Request(HTTPRequest):  # type: ignore[misc]  # see setup.cfg
    """One request of a connection."""

    conn: _Connection
    outheaders: list[tuple[bytes, bytes]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.header_reader = _Headers()

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():
            return False
        length, encoding = (self.inheaders.get(name) for name in (b"Content-Length", b"Transfer-Encoding"))
        if encoding is not None and (length is not None or not self.chunked_read):
            self.simple_response("400 Bad Request", "Illegal framing.")
            return False
        if length is not None and not length.isdigit():
            self.simple_response("400 Bad Request", "Malformed Content-Length Header.")
            return False
        self.conn.method, self.conn.path = self.method.decode("latin-1"), self.path.decode("latin-1")
        return True

    def respond(self) -> None:
        self.conn.enter("running")
        super().respond()

    def send_headers(self) -> None:
        said = [value.lower() for name, value in self.outheaders if name.lower() == b"connection"]
        unread = not self.rfile.closed if self.chunked_read else self.rfile.remaining
        if self.chunked_read and not unread:
            for _trailer in self.rfile.read_trailer_lines():
                pass  # cheroot would take it for the next request
        stops = self.server.runner.announced and (unread or not self.conn.at_request())
        if b"close" in said or (self.chunked_read and unread) or stops:
            self.close_connection = True
        if self.close_connection:  # cheroot then says so, if nobody has
            self.outheaders = [(name, value) for name, value in self.outheaders if name.lower() != b"connection"]
        super().send_headers()

    def simple_response(self, status: Any, msg: Any = "") -> None:
        """cheroot's own answer, as its is but that it says close, as it does: nothing comes behind it."""
        self.close_connection = self.sent_headers = True
        body = str(msg).encode("latin-1")
        head = f"{self.server.protocol} {status}\r\nContent-Length: {len(body)}\r\nContent-Type: text/plain\r\n"
        with contextlib.suppress(OSError):
            self.conn.wfile.write(head.encode("latin-1") + b"Connection: close\r\n\r\n" + body)


class _Gateway(Gateway_10):  # type: ignore[misc]  # see setup.cfg
    """What calls the application, and sees to it that an answer ends where it said."""

    req: _Request
    remaining_bytes_out: int | None

    def respond(self) -> None:
        response: Iterable[bytes] = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            for chunk in filter(None, response):
                self.write(chunk)
            self.req.ensure_headers_sent()
        finally:
            if hasattr(response, "close"):
                response.close()
        bodiless = self.req.method == b"HEAD" or self.req.status[:3] in (b"204", b"304")
        if self.remaining_bytes_out and not bodiless:
            self.req.close_connection = True

    def write(self, chunk: bytes) -> None:
        left = self.remaining_bytes_out
        if left is not None and len(chunk) > left:
            self.req.server.error_log(
                f"{self.req.conn.path}: the body is longer than its Content-Length, and is cut off"
            )
            chunk = chunk[:left]
        super().write(chunk)
        if left is not None:
            self.remaining_bytes_out = left - len(chunk)


class _Connection(HTTPConnection):  # type: ignore[misc]  # see setup.cfg
    """One connection, and what it is doing."""

    RequestHandlerClass = _Request
    server: _Server

    def __init__(self, server: _Server, sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.heard_all = False  # whether the client has closed its side, and the loop does not listen any more
        self.works = True  # whether its request is work, and no probe in its lane
        self.method = self.path = "-"
        self.began = 0.0
        self.enter("silent")

    def enter(self, stage: str) -> None:
        self.since = time.monotonic()
        self.stage = stage
        if stage == "sending":
            self.began = self.since

    def under_way(self) -> str | None:
        """The stage of the request that is lost if the process leaves now; ``None`` if there is none."""
        if self.stage in _LOOPS:
            return "sending" if _sockets.unsent(self.socket) else None
        return self.stage

    def service(self) -> None:
        """Read one request and answer it; in a worker."""
        kept = "idle" if self.path != "-" else "silent"
        stage = "sending"
        try:
            if not self.at_request():
                stage = kept  # only a line end; the end of the file, if that came, the loop will find
            else:
                self.enter("receiving")
                if self.communicate():
                    stage = "queued" if self.at_request(kernel=False) else "idle"
        except BaseException as error:
            # cheroot answers to all that an application may do, but for what means that the thread is to end.
            self.server.error_log(f"{error!r} while answering {self.method} {self.path}", traceback=True)
        if stage == "sending":
            _sockets.half_close(self.socket)
        self.server.runner.served(self, stage)

    def at_request(self, kernel: bool = True) -> bool:
        """Pass over the line ends that some clients send around a request; whether a byte of one is here.

        :param kernel: whether to look behind what has been read already.
        """
        while self.rfile.has_data() or (kernel and self._has_bytes()):
            if self.rfile.peek(1)[:1] not in (b"\r", b"\n"):
                return True
            self.rfile.read(1)
        return False

    def _has_bytes(self) -> bool:
        # poll first: with a timeout on the socket Python waits for that long, whatever the flags say.
        return _sockets.has_input(self.socket) and _sockets.has_bytes(self.socket)

    def close(self) -> None:
        """Close both files as well, which would keep the descriptor until somebody collects them."""
        with contextlib.suppress(OSError):
            super().close()
        self.wfile.raw.close()
