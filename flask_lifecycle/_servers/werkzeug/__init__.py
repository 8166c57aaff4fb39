"""Werkzeug's server: ``run``, ``flask run``, ``app.run()`` or ``run_simple``.

Theory of operation
-------------------

Every response closes its connection, every connection has its own thread as soon as it is accepted, and responses are
written synchronously. So a shutdown has to close the listener without losing the connections in its queue, wait for the
connections (:class:`_Connections`), and hang up silent ones. During a shutdown a connection is closed when the client's
kernel has acknowledged the response.

The main thread must stay in the server's loop until the hooks have run, so the listener's descriptor stays open: a
silent pipe takes its number when the listener is closed (``_servers/listener.py``). On a closed number the loop would
spin, or accept from the next socket with that number. The kernel keeps a listener open while a loop polls it, half a
second, so we also shut it down, which wakes the loop.

A server without threads (``--without-threads``) answers in its loop, so a silent client blocks all others; during a
shutdown, only for a moment. The same is true for TLS, where the loop waits for each client's handshake. With
``processes=`` each request has its own process, which leaves signals to its parent, because a terminal sends Ctrl-C to
all of them.

When code changes under the reloader, ``run_simple`` closes the server in the main thread. We replace ``server_close``
on the instance: it blocks until the requests are answered and the hooks have run. The listener stays open in the
reloader's parent, and the next child accepts the connections in its queue. If the main thread's loop has ended for
another reason (a Ctrl-C that the program handles), another thread runs the loop during the shutdown.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from socketserver import BaseServer, ForkingMixIn
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from werkzeug.serving import LISTEN_QUEUE, BaseWSGIServer, ThreadedWSGIServer, WSGIRequestHandler

from ..._core.inflight import Load, RequestInfo
from ..._core.server import STARTED
from ..._core.stacks import calls_of
from .. import bind, sockets
from ..adapter import STARTED_HERE, Adapter, ConnectionAdapter, attach
from ..discovery import handshakes, inside, instances
from ..listener import Listener, silence, silent_pipe
from ..wsgi import guarded
from . import run_simple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

NEEDS = (
    (BaseServer, ("serve_forever", "process_request", "shutdown_request")),
    (BaseServer._handle_request_noblock, ("get_request",)),  # type: ignore[attr-defined]
    (WSGIRequestHandler, ("setup",)),
    (WSGIRequestHandler.run_wsgi, ("environ", "execute")),
)
_LAST_DATA_RECV = 8 + 11 * 4  # in struct tcp_info, <linux/tcp.h>: milliseconds since the last byte came
_RECENT = 20
# The poll interval of a loop that the end of its listener does not wake, because other processes use the listener too.
_GIVEN_POLL = 0.1


def find() -> Adapter | None:
    """Attach to the open servers of this process. A reloader's parent has one too, but the child serves."""
    if run_simple.role() == run_simple.PARENT:
        return None
    servers = [server for server in instances(BaseWSGIServer) if _is_open(server)]
    return attach(Werkzeug, servers, NEEDS)


def _is_open(server: Any) -> bool:
    """Whether a Werkzeug server is open, and not our own probe listener. It has no socket if its bind failed."""
    sock = getattr(server, "socket", None)
    return sock is not None and sock.fileno() >= 0 and not hasattr(server, "lifecycle_probes")


class Werkzeug(ConnectionAdapter):
    """Werkzeug's development server.

    A connection is its socket, ``("handshake", socket)`` while the loop shakes hands with it, or the number of a
    process that answers a request.
    """

    name = "werkzeug"

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__(listeners)
        self._open = [_connections(server) for server in self._servers]
        self._let_go = False
        self.ours = bool(run_simple.role() or self.accepting())
        if not self.ours:
            self.guarantee, self.advice = STARTED, "'flask lifecycle run' has more"
        sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close: it would keep the port open after we have closed it."""
        return [*(server.socket for server in self._servers), *(sock for each in self._open for sock in each.handlers)]

    # -- the listeners --------------------------------------------------------------------------------------------

    def accepting(self) -> list[Listener]:
        """The listeners with a running ``serve_forever``; a program that calls ``handle_request`` closes its own."""
        return [each for each in self._listeners if inside(BaseServer.serve_forever, self=each.server)]

    def stop_accepting(self, timeout: float) -> None:
        if self._let_go:
            return
        if run_simple.role() == run_simple.CHILD:
            for listener in self.accepting():
                listener.socket.setblocking(False)  # the parent checks this
            with contextlib.suppress(OSError):
                os.kill(os.getppid(), signal.SIGURG)  # it closes its copy of the listener
        super().stop_accepting(timeout)

    def owner_of(self, listener: Listener) -> str:
        # With "fd=" a master may have passed the listener on to others too. The reloader's parent closes its own copy,
        # and the server may have forked children for requests before we attached to it.
        if run_simple.role() == run_simple.CHILD or isinstance(listener.server, ForkingMixIn):
            return ""
        return super().owner_of(listener)

    def close_listener(self, listener: Listener) -> None:
        """Make the loop replace its listener with the silent pipe, when the end of the listener wakes it.

        Interleavings: if this thread replaced it while the loop polls, the loop would keep waiting for the listener,
        which is the file it began to poll, until its poll times out. If the loop replaces it, it polls the pipe from
        its next turn on, and :meth:`RunningWerkzeug.stop` can wake it.
        """

        def get_request() -> NoReturn:
            self.leave_listener(listener)
            raise OSError(errno.EBADF, "the listener is closed")  # the loop continues

        listener.server.get_request = get_request
        with contextlib.suppress(OSError):  # run_simple has closed it
            socket.socket.shutdown(listener.socket, socket.SHUT_RDWR)

    def leave_listener(self, listener: Listener) -> None:
        silence(listener.socket)

    # -- the connections ------------------------------------------------------------------------------------------

    def announce(self) -> None:
        for each in self._open:
            each.waits = True

    def requests(self) -> Iterator[tuple[Any, Sequence[RequestInfo]]]:
        # In the order in which a connection passes them.
        answered = _find_answered()
        yield from ((pid, ()) for server in self._servers for pid in _children(server))
        # Servers whose loop has accepted a connection, or is about to, and has not listed it yet.
        accepted = [call.variables.get("self") for call in calls_of(_ACCEPT) if _is_coming(call.variables)]
        yield from ((server, ()) for server in self._servers if server in accepted)
        yield from ((("handshake", sock), ()) for sock in handshakes())
        for each in self._open:
            for sock in each.handlers.copy():
                yield sock, _under_way(sock, each.handlers.get(sock), answered)

    def hang_up(self, connection: Any) -> None:
        if connection in self._servers:
            return
        if isinstance(connection, int):
            with contextlib.suppress(OSError):
                os.kill(connection, signal.SIGURG)  # it hangs up if its client is silent
        elif isinstance(connection, socket.socket):
            sockets.end_input(connection)
        elif connection[1] in handshakes():  # otherwise it is over
            sockets.end_input(connection[1])

    def unfinished(self) -> Sequence[RequestInfo]:
        children = [RequestInfo("-", "-", 0.0) for server in self._servers for _pid in _children(server)]
        return [*children, *super().unfinished()]

    def load(self) -> Load:
        handlers = [handler for each in self._open for handler in each.handlers.copy().values()]
        return Load(0, busy=sum(handler is not None and "environ" in vars(handler) for handler in handlers))

    # -- the reloader ---------------------------------------------------------------------------------------------

    def watch_end(self, leaving: Callable[[], None]) -> None:
        """Set the function that is called in the main thread before it closes the servers."""
        for server in self._servers:
            if run_simple.role() == run_simple.CHILD:
                _close_inherited(server.socket)
            server.server_close = functools.partial(self._server_close, server.server_close, leaving)

    def own_listeners(self) -> None:
        """Show the reloader's parent that this process has our handlers."""
        for server in self._servers:
            fcntl.fcntl(server.socket, fcntl.F_SETOWN, os.getpid())

    def _server_close(self, close: Callable[[], None], leaving: Callable[[], None]) -> None:
        if threading.current_thread() is threading.main_thread() and not self._let_go:
            if run_simple.role() == run_simple.CHILD:
                if run_simple.signal_that_ends() is None:  # otherwise the loop's thread continues
                    self._let_go = True
                    for listener in self._listeners:
                        self.leave_listener(listener)
            else:
                for server in self._servers:
                    run_loop = functools.partial(BaseServer.serve_forever, server)
                    threading.Thread(target=run_loop, name="lifecycle-werkzeug", daemon=True).start()
            leaving()
            self._let_go = True
        # The reloader's child exits now. Its thread may begin the loop only after a failed start, and then needs the
        # descriptor, which is silent.
        if run_simple.role() != run_simple.CHILD:
            close()

    def stop(self) -> None:
        for server in self._servers:
            for pid in _children(server):  # server_close() would wait for them
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            # The main thread ends by itself. Another thread may keep the interpreter open.
            loops = inside(BaseServer.serve_forever, self=server)
            if any(ident != threading.main_thread().ident for ident in loops):
                threading.Thread(target=server.shutdown, name="lifecycle-werkzeug", daemon=True).start()


class _Connections:
    """The open connections of one server, each with its handler once it has one."""

    def __init__(self, server: Any) -> None:
        self.handlers: dict[socket.socket, Any] = {}
        self.waits = False  # whether to wait until the client has the response before closing a connection
        self._process_request, self._shutdown_request = server.process_request, server.shutdown_request
        if not isinstance(server, ForkingMixIn):  # there a child process has the connection
            server.process_request = self.process_request
        server.shutdown_request = self.shutdown_request
        handler = server.RequestHandlerClass
        server.RequestHandlerClass = type(
            handler.__name__, (handler,), {"setup": _tracked(handler.setup, self.handlers)}
        )
        silent_pipe()
        _trackers.add(self)

    def process_request(self, request: socket.socket, address: Any) -> None:
        self.handlers[request] = None
        self._process_request(request, address)

    def shutdown_request(self, request: socket.socket) -> None:
        try:
            if self.waits and sockets.half_close(request):  # a container's network may end with this process
                while sockets.unsent(request):
                    time.sleep(sockets.ACK_TICK)
            self._shutdown_request(request)
        finally:
            self.handlers.pop(request, None)


_trackers: weakref.WeakSet[_Connections] = weakref.WeakSet()


def _connections(server: Any) -> _Connections:
    """The connections of a server, which are tracked from the first call on."""
    if not hasattr(server, "lifecycle_connections"):
        server.lifecycle_connections = connections = _Connections(server)
        for handler in list(instances(WSGIRequestHandler)):
            if handler.server is server and handler.request.fileno() >= 0:
                connections.handlers[handler.request] = handler
    found: _Connections = server.lifecycle_connections
    return found


def _tracked(setup: Callable[[Any], None], handlers: dict[socket.socket, Any]) -> Callable[[Any], None]:
    """A handler's ``setup`` that also tracks the connection. It costs every request."""

    def setup_and_note(handler: Any) -> None:
        handlers[handler.request] = handler
        setup(handler)

    return setup_and_note


_ACCEPT = BaseServer._handle_request_noblock.__code__  # type: ignore[attr-defined]


def _is_coming(variables: dict[str, Any]) -> bool:
    """Whether the loop has, or may have, a connection that is not tracked yet."""
    server, request = variables["self"], variables.get("request")
    known = vars(server).get("lifecycle_connections")
    return known is not None and not isinstance(server, ForkingMixIn) and request not in known.handlers


def _nested(code: CodeType, name: str) -> CodeType:
    return next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name)


# Werkzeug's function that calls the application and sends its response.
_EXECUTE = _nested(WSGIRequestHandler.run_wsgi.__code__, "execute")


def _find_answered() -> list[Any]:
    """The handlers that have answered, and read what else the client sends."""
    return [call.variables.get("self") for call in calls_of(_EXECUTE) if "selector" in call.variables]


def _under_way(sock: socket.socket, handler: Any, answered: Sequence[Any]) -> Sequence[RequestInfo]:
    """The request on a connection, if it has one; ``handler`` is ``None`` until its thread has made it."""
    state = vars(handler) if handler is not None else {}
    if not state.get("raw_requestline"):
        stage = "receiving" if _bytes_received(sock) else None
    elif state["rfile"].closed or handler in answered:
        stage = "sending" if sockets.unsent(sock) or _is_heard(sock) else None
    else:
        stage = "running" if "environ" in state else "receiving"
    path = str(state.get("path") or "-").partition("?")[0]
    return [RequestInfo(str(state.get("command") or "-"), path, 0.0, stage=stage)] if stage else ()


def _bytes_received(sock: Any) -> int:
    """The number of bytes that a client has sent; 0 with TLS and Unix sockets, where it is unknown."""
    if hasattr(sock, "context"):
        return 0
    return sockets.bytes_received(sock) or 0


def _is_heard(sock: Any) -> bool:
    """Whether the client has sent something within the last ``_RECENT`` milliseconds."""
    milliseconds = sockets.tcp_info(sock, "=I", _LAST_DATA_RECV)
    return milliseconds is not None and milliseconds < _RECENT


def _close_inherited(sock: socket.socket) -> None:
    """Close the descriptor that a reloader's child has inherited; Werkzeug has duplicated it and not closed it."""
    ours = os.fstat(sock.fileno())
    for name in sockets.listed("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if int(name) != sock.fileno() and os.path.samestat(os.fstat(int(name)), ours):
                os.close(int(name))


# -- processes that answer one request (``processes=``) ---------------------------------------------------------------


def _children(server: Any) -> list[int]:
    """The running processes that answer requests. They are not reaped here; the server does that."""
    return [pid for pid in (getattr(server, "active_children", None) or set()).copy() if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except OSError:
        return False


def leave_signals_to_parent(signals: Iterable[int]) -> None:
    """In such a process: ignore the signals of a shutdown, and end a silent connection on the parent's SIGURG."""
    for signum in signals:
        # Not SIG_IGN, which programs started by the request would inherit.
        signal.signal(signum, lambda *_: None)
    signal.signal(signal.SIGURG, _release_own)


def _release_own(_signum: int, _frame: FrameType | None) -> None:
    answered = _find_answered()
    for tracker in list(_trackers):
        for sock, handler in tracker.handlers.copy().items():
            state = vars(handler) if handler is not None else {}
            if not (_bytes_received(sock) or state.get("raw_requestline")) or handler in answered:
                sockets.end_input(sock)


# -- by run -----------------------------------------------------------------------------------------------------------


def create(app: WSGIApplication, host: str | None, port: int | None, options: dict[str, Any]) -> RunningWerkzeug:
    """Make the server, bound and listening."""
    where, _own = bind.split_options("werkzeug", options, {})
    return RunningWerkzeug(app, bind.bind(host, port, where, LISTEN_QUEUE))


class RunningWerkzeug(Werkzeug):
    """Werkzeug's threaded server, started by ``run``."""

    means = STARTED_HERE

    def __init__(self, app: WSGIApplication, bound: list[Listener]) -> None:
        app = guarded(app)
        for listener in bound:
            listener.server = _OnSocket(listener, app)
        super().__init__(bound)

    def accepting(self) -> list[Listener]:
        return list(self._listeners)  # a loop that does not run yet will

    def serve(self) -> None:
        first, *others = self._listeners
        for listener in others:
            threading.Thread(target=self._serve, args=(listener,), name="lifecycle-werkzeug", daemon=True).start()
        self._serve(first)

    @staticmethod
    def _serve(listener: Listener) -> None:
        listener.server.serve_forever(0.5 if listener.given is None else _GIVEN_POLL)

    def ping(self, done: Callable[[], None]) -> bool:
        """Send it through each accepting loop; an idle loop takes it within half a second."""
        step = done
        for server in self._servers[1:]:
            step = functools.partial(server.posted.append, step)
        self._servers[0].posted.append(step)
        return True

    def stop(self) -> None:
        for each in self._open:
            for sock, handler in each.handlers.copy().items():
                if "HTTP_UPGRADE" in getattr(handler, "environ", ()):
                    sockets.hang_up(sock)  # a websocket that has not ended by itself
        for server in self._servers:
            # Before waking the loop, which checks the flag before it polls again.
            server._BaseServer__shutdown_request = True
        os.write(silent_pipe()[1], b"x")


class _OnSocket(ThreadedWSGIServer):
    """Werkzeug's own server, on a bound socket."""

    def __init__(self, listener: Listener, app: WSGIApplication) -> None:
        self.posted: deque[Callable[[], None]] = deque()  # functions to call in the loop
        sock = listener.socket
        # The numeric address, because Werkzeug resolves names to IPv4.
        unix = sock.family == socket.AF_UNIX
        host, port = (f"{bind.UNIX}{listener.path or ''}", 0) if unix else sock.getsockname()[:2]
        with sock:  # Werkzeug makes a duplicate
            super().__init__(host, port, app, handler=_Handler, fd=sock.fileno())
        self.socket.setblocking(False)
        listener.socket = self.socket

    def service_actions(self) -> None:
        while self.posted:
            self.posted.popleft()()


class _Handler(WSGIRequestHandler):
    raw_requestline: bytes

    def parse_request(self) -> bool:
        while self.raw_requestline in (b"\r\n", b"\n"):  # some clients send them between requests
            self.raw_requestline = self.rfile.readline(65537)
        return WSGIRequestHandler.parse_request(self)  # "super()" costs each request more, before Python 3.12

    def connection_dropped(self, error: BaseException, environ: WSGIEnvironment | None = None) -> None:
        self.close_connection = True  # no response has done this
