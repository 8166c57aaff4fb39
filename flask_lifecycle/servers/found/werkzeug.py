"""Werkzeug's development server that we did not start: ``flask run``, ``app.run()`` or ``run_simple``.

Theory of operation
-------------------

Every answer closes its connection, every connection has a thread from its accept on, and answers are written
synchronously: what is left to do is to close the listener without losing what it holds, to wait for the connections
(``_threads.py``), and to hang up those that never say anything.

The listener is closed in the server's own loop, which alone may accept: ``service_actions`` is what the standard
library means to be overridden for work in that loop, and is set on the instance. The loop polls for half a second at a
time, so it is woken by a connection that says nothing. When the listener is closed (``_closing.py``) a descriptor takes
its number on which nothing ever comes: the loop must go on, because the main thread has to stay in it until the hooks
have run, and it would spin on a number that is closed, or worse, accept from whoever has it next.

A server without threads (``--without-threads``) answers in its loop: there everything that waits is accepted first and
answered when the listener is closed. A client that says nothing holds up all others; once a stop has begun, for no
longer than a moment. With TLS the loop waits for each client's handshake, and the same holds.

With ``processes=`` each request has a process of its own, which leaves the signals to its parent, because a terminal
sends Ctrl-C to all of them.

At the reloader's change of code ``run_simple`` closes the server in the main thread: ``server_close``, on the instance
as well, holds it there until the requests are answered and the hooks have run. The listener lives on in the reloader's
parent, and what waits in its queue belongs to the next child: it is neither made deaf nor emptied, only let go of.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from socketserver import ForkingMixIn, ThreadingMixIn
from typing import Any

from werkzeug.serving import BaseWSGIServer

from ... import _reloader, _sockets
from ..._inflight import RequestInfo
from ..._parties import FULL, STARTED
from .. import _closing
from . import Found, _threads, has_other_owners, instances

_TICK = 0.005
# How long a silent client may keep a loop without threads from coming to what a stop wants of it.
_HELD_UP = 0.25


def find() -> FoundWerkzeug | None:
    """The one in this process that is open. A reloader's parent has one, but it is the child that serves."""
    if _reloader.role() == _reloader.PARENT:
        return None
    servers = [server for server in instances(BaseWSGIServer) if _is_open(server)]
    return FoundWerkzeug(servers) if servers else None


def _is_open(server: Any) -> bool:
    """Whether a Werkzeug server is open, and is not our own probe listener. One whose bind failed has no socket."""
    sock = getattr(server, "socket", None)
    return sock is not None and sock.fileno() >= 0 and not hasattr(server, "lifecycle_probes")


class FoundWerkzeug(Found):
    """Werkzeug's development server, by ``flask run``, ``app.run()`` or ``run_simple``."""

    name = "werkzeug"
    promise = FULL

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers
        # One a server, also where two threads have found it: it is in the middle of being closed, or is not.
        self._listeners: list[_Listener] = [
            server.__dict__.setdefault("lifecycle_listener", _Listener(server)) for server in servers
        ]
        self._let_go = False
        self._first_seen: dict[tuple[int, str], float] = {}
        self._useless_since: dict[tuple[int, str], float] = {}
        self.ours = bool(_reloader.role() or self._looping())
        if not self.ours:
            self.promise, self.advice = STARTED, "'flask lifecycle run' has more"
        # Called in the main thread when the servers are closed there and nobody has asked us to.
        self.leaving: Callable[[], None] = lambda: None
        _sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """Those that a forked child must not keep open: it would keep the port open when we have closed it."""
        return [server.socket for server in self._servers]

    def _looping(self) -> list[_Listener]:
        """Those whose loop is the one that we know; who calls ``handle_request`` closes the listener, too."""
        loops = _threads.loops(self._servers)
        return [listener for listener in self._listeners if listener.server in loops]

    # -- verbs ----------------------------------------------------------------------------------------------------

    def stop_accepting(self, timeout: float) -> None:
        if self._let_go:
            return
        deadline = time.monotonic() + timeout
        closing = self._looping()
        if _reloader.role() == _reloader.CHILD:
            for listener in closing:
                listener.server.socket.setblocking(False)  # the parent sees it
            _reloader.tell_parent()
        for listener in closing:
            listener.begin(timeout)
        while time.monotonic() < deadline and any(not listener.closed.wait(_TICK) for listener in closing):
            self._release(_HELD_UP, of_loops=True)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        began = time.monotonic()
        pause = threading.Event()
        while self._open() and time.monotonic() < began + timeout:
            self._release(linger)
            if time.monotonic() >= began + linger:
                for listener in self._listeners:
                    listener.release_children()
            pause.wait(_TICK)
        return not self._open()

    def _open(self) -> bool:
        busy = any(listener.held or listener.children() for listener in self._listeners)
        return busy or bool(_threads.connections(self._servers))

    def _release(self, linger: float, *, of_loops: bool = False) -> None:
        """Hang up on those who have been silent for so long, and on those who have their answer and still do not go."""
        now = time.monotonic()
        useless = [c for c in _threads.connections(self._servers) if c.stage == "silent" or c.answered]
        self._useless_since = {c.key: self._useless_since.get(c.key, now) for c in useless}
        for connection in useless:
            waited = now - self._useless_since[connection.key] >= linger
            if waited and (connection.in_loop or not of_loops) and connection.is_over(linger):
                connection.release()

    def unfinished(self) -> Sequence[RequestInfo]:
        now = time.monotonic()
        held = [RequestInfo("-", "-", 0.0, stage="queued") for listener in self._listeners for _ in listener.held]
        children = [RequestInfo("-", "-", 0.0) for listener in self._listeners for _ in listener.children()]
        looked = [c for c in _threads.connections(self._servers) if c.stage in ("receiving", "sending")]
        self._first_seen = {c.key: self._first_seen.get(c.key, now) for c in looked}
        seen = [RequestInfo(c.method, c.path, now - self._first_seen[c.key], stage=c.stage) for c in looked]
        return [*held, *children, *seen]

    # -- the reloader ---------------------------------------------------------------------------------------------

    def watch_end(self, leaving: Callable[[], None]) -> None:
        """Call a function when the servers are closed in the main thread, before they are."""
        self.leaving = leaving
        for listener in self._listeners:
            if _reloader.role() == _reloader.CHILD:
                listener.close_inherited()
            close = listener.server.server_close
            listener.server.server_close = functools.partial(self._server_close, close)

    def _server_close(self, close: Callable[[], None]) -> None:
        if threading.current_thread() is threading.main_thread() and not self._let_go:
            self._let_go = True
            reloads = _reloader.role() == _reloader.CHILD
            for each in self._listeners:
                each.go_deaf() if reloads else each.close_here()
            self.leaving()
        close()

    def stop(self) -> None:
        for listener in self._listeners:
            listener.kill_children()


class _Listener:
    """One server's listener, on its way to being closed."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.closed = threading.Event()
        self.held: list[tuple[Any, Any]] = []  # accepted, and to be answered once the listener is closed
        self._patience = 0.0
        self._last_accept = 0.0
        self.forks = isinstance(server, ForkingMixIn)
        self._in_turn = not self.forks and not isinstance(server, ThreadingMixIn)
        self._holds = self._in_turn
        self._path = None
        if server.socket.family == socket.AF_UNIX:
            self._path = server.socket.getsockname()
        self._identity = None if self._path is None else _sockets.socket_identity(self._path)

    def begin(self, patience: float) -> None:
        """Close the listener, in the server's loop."""
        self._patience = patience
        self.server.service_actions = functools.partial(self._close_in_loop, self.server.service_actions)
        with contextlib.suppress(OSError), socket.socket(self.server.socket.family) as waker:
            waker.setblocking(False)
            waker.connect(self.server.socket.getsockname())

    def close_here(self) -> None:
        """Close it in the calling thread, whose loop has ended: by Ctrl-C, where that is not ours."""
        if not self.closed.is_set() and self.server.socket.fileno() >= 0:
            self._close_in_loop(self.server.service_actions)

    def _close_in_loop(self, actions: Callable[[], None]) -> None:
        self.server.service_actions = actions
        actions()
        # By "fd=", from a master that has given it to others as well. The reloader's parent lets go of its own copy,
        # and children that answer requests may have been forked before we saw the server.
        if _reloader.role() != _reloader.CHILD and not self.forks and has_other_owners(self.server.socket):
            self.go_deaf()
            _closing.log_closed("left to another process")
            self.closed.set()
            return
        self.server.socket.setblocking(False)
        closing = _closing.ClosingListener(
            self.server.socket,
            accept=self._accept,
            close=self.go_deaf,
            hold=self._hold,
            last_accept=lambda: self._last_accept,
            path=self._path,
            identity=self._identity,
            patience=self._patience,
        )
        while not closing.step():
            actions()
            time.sleep(_closing.CLOSING_TICK)
        self.closed.set()
        while self.held:
            self._start(*self.held[0])
            del self.held[0]

    def close_inherited(self) -> None:
        """Close the descriptor that a reloader's child was started with: Werkzeug has made a copy and forgotten it."""
        ours = self.server.socket.fileno()
        with contextlib.suppress(OSError):  # no /proc, or closed by now
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor != ours and _is_same_socket(descriptor, ours):
                    os.close(descriptor)

    def _hold(self) -> None:
        self._holds = True

    def go_deaf(self) -> None:
        """Let go of the listener, and let the loop poll something silent in its place."""
        descriptor = self.server.socket.fileno()
        if descriptor < 0:
            return
        silent, self._other_end = socket.socketpair()
        with silent:
            os.dup2(silent.fileno(), descriptor, inheritable=False)

    def _accept(self) -> bool:
        tls = getattr(self.server, "ssl_context", None) is not None
        try:
            # Not a TLS one's own accept, which waits for the handshake.
            request, address = socket.socket.accept(self.server.socket) if tls else self.server.get_request()
        except OSError:
            return False
        self._last_accept = time.monotonic()
        if self._holds:
            self.held.append((request, address))
        else:
            self._start(request, address)
        return True

    def _start(self, request: Any, address: Any) -> None:
        if getattr(self.server, "ssl_context", None) is None:
            self._process(request, address)
        elif self._in_turn:
            self._secure(request, address)
        else:
            name = f"lifecycle-handshake {_threads.THREAD_NAME}"
            threading.Thread(target=self._secure, args=(request, address), name=name, daemon=True).start()

    def _secure(self, request: Any, address: Any) -> None:
        secured = _threads.shake_hands(self.server.ssl_context, request)
        if secured is not None:
            self._process(secured, address)

    def _process(self, request: Any, address: Any) -> None:
        """As ``BaseServer`` does it."""
        try:
            if self.server.verify_request(request, address):
                self.server.process_request(request, address)
                return
        except Exception:
            self.server.handle_error(request, address)
        self.server.shutdown_request(request)

    # -- processes ------------------------------------------------------------------------------------------------

    def children(self) -> list[int]:
        """The processes that answer requests."""
        return [pid for pid in (getattr(self.server, "active_children", None) or set()).copy() if _runs(pid)]

    def release_children(self) -> None:
        """Have those hang up whose clients have said nothing."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGURG)

    def kill_children(self) -> None:
        """End those that have not ended; ``server_close`` would wait for them."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _is_same_socket(descriptor: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(other))
    except OSError:  # that of the listing itself
        return False


def _runs(pid: int) -> bool:
    """Whether a child runs; it stays the server's to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except OSError:
        return False
