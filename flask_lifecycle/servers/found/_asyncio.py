"""What uvicorn and hypercorn have in common: connections in an asyncio loop, the application in threads.

Theory of operation
-------------------

The loop's thread is the main thread, and it goes on turning while the shutdown waits: the coordinator has a thread of
its own, and whatever touches a connection or a listener is handed to the loop by ``call_soon_threadsafe``. Only when
nothing is left, and the hooks have run, is the server told to stop, and finds nothing to do. So its own time limits do
not matter, and no pool is closed under a request, wherever that is: half received, waiting for a thread, running or
half sent.

*Closing the listener.* The loop accepts all by itself, so it is only watched: it is made deaf where nobody else has a
copy of the listener (see ``_closing.py``), else there is a quiet period; then the listener of this process is closed.

The application is attended to, see ``_attend.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ..._inflight import RequestInfo
from ..._parties import ACCEPTED, FULL
from ..._sockets import has_input, unread
from .._closing import CLOSING_BOUND, QUIET_PERIOD, deafen, handshakes, log_closed
from . import _TICK, Carried, Found, instances
from ._attend import Attendance

# Who runs a WSGI application for an ASGI server; each keeps it in its attribute ``app``.
_MIDDLEWARES = (
    ("uvicorn.middleware.wsgi", "_WSGIMiddleware"),
    ("a2wsgi.wsgi", "WSGIMiddleware"),
    ("hypercorn.app_wrappers", "WSGIWrapper"),
)
_STAGES = ("queued", "receiving", "sending")


class Loop(Found):
    """A server in an asyncio loop of the main thread.

    :param loop: its loop.
    :param servers: its listeners.
    :param alone: whether no other process has a copy of them.
    """

    ours = True
    promise = FULL

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Sequence[asyncio.Server], *, alone: bool) -> None:
        self._loop = loop
        self._servers = servers
        self._alone = alone
        if not alone:
            self.promise = ACCEPTED
        self.attendance = Attendance()
        self._looks: dict[Any, tuple[float, bool]] = {}  # since when a connection is idle, or busy

    # -- what a server has to tell ---------------------------------------------------------------------------------

    def connections(self) -> Iterable[Any]:
        """The connections that are open. Called in any thread."""
        raise NotImplementedError

    def doing(self, connection: Any) -> RequestInfo | None:
        """What a connection is busy with. Called in any thread, while the loop changes it."""
        raise NotImplementedError

    def hang_up(self, connection: Any) -> None:
        """End an idle connection. Called in the loop."""
        raise NotImplementedError

    # -- verbs -----------------------------------------------------------------------------------------------------

    def begin(self, process: Carried) -> None:
        self._loop.call_soon_threadsafe(process.take_signals)  # its thread is the main one
        for module, name in _MIDDLEWARES:
            kind = getattr(sys.modules.get(module), name, None)
            for middleware in list(instances(kind)) if kind is not None else ():
                middleware.app = self.attendance.attend(middleware.app)

    def announce(self) -> None:
        self.attendance.closing = True

    def stop_accepting(self, timeout: float) -> None:
        listeners = [sock for server in self._servers for sock in server.sockets]
        until = time.monotonic() + min(timeout, CLOSING_BOUND)
        method = "unix" if all(sock.family == socket.AF_UNIX for sock in listeners) else "quiet period"
        deaf = [deafen(sock) for sock in listeners] if self._alone and method != "unix" else []
        if deaf and all(deaf):
            method = str(deaf[0])
        quiet = QUIET_PERIOD if method == "quiet period" else 0.0
        _wait_quiet(listeners, quiet, until)
        closed = threading.Event()

        def close() -> None:
            for server in self._servers:
                server.close()
            closed.set()

        self._loop.call_soon_threadsafe(close)
        closed.wait(timeout)
        log_closed(method)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while self._hang_up_idle(linger) and time.monotonic() < deadline:
            pause.wait(_TICK)
        return not self.unfinished()

    def _hang_up_idle(self, linger: float) -> bool:
        """Hang up what has been idle for so long; say whether there is a connection left."""
        now = time.monotonic()
        before, self._looks = self._looks, {}
        for connection in self.connections():
            idle = self.doing(connection) is None
            since, was_idle = before.get(connection, (now, idle))
            self._looks[connection] = (since if idle == was_idle else now, idle)
            if idle and now - self._looks[connection][0] >= linger:
                self._loop.call_soon_threadsafe(self._hang_up, connection)
        return bool(self._looks)

    def _hang_up(self, connection: Any) -> None:
        sock = self.transport(connection).get_extra_info("socket")
        # hypercorn keeps whose client has gone for its keep_alive_timeout: an end of file is no request.
        if self.doing(connection) is None and not unread(sock):
            self.hang_up(connection)

    def transport(self, connection: Any) -> Any:
        """The transport of a connection."""
        return connection.transport

    def unfinished(self) -> Sequence[RequestInfo]:
        now, looks = time.monotonic(), self._looks
        busy = [
            info._replace(age=now - looks.get(each, (now,))[0])
            for each in self.connections()
            if (info := self.doing(each)) is not None
        ]
        # Those that the application has are in the ledger; nobody tells which they are, but that they are not sent yet.
        return sorted(busy, key=lambda info: _STAGES.index(info.stage))[len(self.attendance.running) :]


def is_child() -> bool:
    """Whether a supervisor has started this process, and has a copy of its listeners."""
    return multiprocessing.parent_process() is not None


def _wait_quiet(listeners: Sequence[socket.socket], quiet: float, until: float) -> None:
    """Wait until nobody has come to listeners for so long, nor is in the middle of connecting to one."""
    pause = threading.Event()
    busy, settled = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        with contextlib.suppress(OSError, ValueError):  # closed by somebody else
            if any(map(_is_busy, listeners)):
                busy, settled = now, 0
        settled += 1
        # A SYN that passed on another processor just before the listener was deaf shows in the table a moment later:
        # look again, and believe the second look.
        if settled > 2 and now - busy >= quiet:
            return
        pause.wait(0.002)


def _is_busy(listener: socket.socket) -> bool:
    return has_input(listener) or (listener.family != socket.AF_UNIX and bool(handshakes(listener)))
