"""cheroot that we did not start: ``cheroot``, or ``cheroot.wsgi.Server(...).start()``.

Its loop, its pool and its connections stay as they are, and its own stop, which resets and cuts, comes when there is
nothing left to be cut. What is done before:

- *Answers say close.* A server of which no connection may be kept (``keep_alive_conn_limit``) says so, also in answers
  whose requests run already.
- *The listener* is taken out of the loop's selector and closed in the coordinator's thread as one of ours would be
  (``_closing.py``); what it accepts meanwhile goes into cheroot's queue.
- *The drain* waits until no worker has a connection and none is kept. After the linger a kept one on which nothing has
  come is shut down: the loop finds its end and closes it. cheroot gives a new connection to a worker before it has said
  anything; of such a one the kernel knows that nothing has ever come.
- *Its threads* are no daemons and would hold the interpreter, because ``start()`` does not catch the ``SystemExit`` by
  which the main thread leaves. As soon as the loop has ended, ``server.stop()`` ends those that are still there.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from cheroot.connections import ConnectionManager
from cheroot.server import HTTPRequest, HTTPServer

from ... import _sockets
from ..._inflight import Load, RequestInfo
from ..._parties import FULL
from .. import _closing
from . import Found, has_other_owners, inside, instances

_TICK = 0.01
# The main thread leaves its loop at once; one in another thread has to be told to, or it would hold the interpreter.
_OWN_END = 0.5


def find() -> FoundCheroot | None:
    """The one in this process that serves."""
    found = [server for server in instances(HTTPServer) if server.ready and hasattr(server, "_connections")]
    return FoundCheroot(found) if found else None


class FoundCheroot(Found):
    """cheroot, by its command or by ``start()``."""

    name = "cheroot"
    promise = FULL
    ours = True

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers
        self._last_accept = 0.0
        self._began = 0.0  # when the drain began

    def serving(self) -> bool:
        return any(inside(ConnectionManager.run, self=server._connections) for server in self._servers)

    def announce(self) -> None:
        for server in self._servers:
            server.keep_alive_conn_limit = -1  # without its listener a selector has one connection less than none

    def stop_accepting(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        closing = _closing.ClosingListeners()
        closing.begin(each for server in self._servers if (each := self._closing(server, timeout)) is not None)
        pause = threading.Event()
        while closing.under_way and time.monotonic() < until:
            closing.step()
            pause.wait(_closing.CLOSING_TICK)

    def _closing(self, server: Any, patience: float) -> _closing.ClosingListener | None:
        sock, manager = server.socket, server._connections
        given = has_other_owners(sock)
        manager._selector.unregister(sock.fileno())
        sock.setblocking(False)  # the loop may be at it once more

        def accept() -> bool:
            connection = manager._from_server_socket(sock)
            if connection is None:
                return False
            self._last_accept = time.monotonic()
            server.process_conn(connection)
            return True

        if given:
            sock.close()
            _closing.log_closed("left to its giver")
            return None
        path = server.bind_addr if isinstance(server.bind_addr, str) and server.bind_addr[:1] != "\0" else None
        return _closing.ClosingListener(
            sock,
            accept=accept,
            close=sock.close,
            last_accept=lambda: self._last_accept,
            path=path,
            identity=_sockets.socket_identity(path) if path is not None else None,
            patience=patience,
        )

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Look every 10 ms; there is nobody who would wake us."""
        now = time.monotonic()
        self._began = self._began or now
        deadline = now + timeout
        pause = threading.Event()
        while (left := self._connections()) is not None and time.monotonic() < deadline:
            if time.monotonic() - self._began >= linger:
                for sock in left:
                    _sockets.hang_up(sock)
            pause.wait(_TICK)
        return left is None

    def _connections(self) -> list[socket.socket] | None:
        """Of the connections that are open those on which nothing is under way; ``None`` if there are none at all."""
        kept = [connection.socket for server in self._servers for connection in _kept(server)]
        held = [worker.conn for server in self._servers for worker in _busy(server)]
        queued = [connection for server in self._servers for connection in _queued(server)]
        if not kept and not held and not queued:
            return None
        quiet = [sock for sock in kept if not _sockets.has_input(sock) and not _sockets.unsent(sock)]
        return quiet + [connection.socket for connection in held if _is_silent(connection.socket)]

    def unfinished(self) -> Sequence[RequestInfo]:
        return [RequestInfo("-", "-", 0.0, stage=stage) for server in self._servers for stage in self._stages(server)]

    def _stages(self, server: Any) -> Iterator[str]:
        yield from ("queued" for _connection in _queued(server))
        frames = sys._current_frames()
        for worker in _busy(server):
            connection = worker.conn
            # Whose request is with the application is known to its ledger.
            if connection is not None and not _is_silent(connection.socket) and not _responds(frames.get(worker.ident)):
                yield "receiving"
        yield from ("sending" for connection in _kept(server) if _sockets.unsent(connection.socket))

    def load(self) -> Load:
        threads = sum(len(server.requests._threads) for server in self._servers)
        busy = sum(len(_busy(server)) for server in self._servers)
        return Load(sum(len(_queued(server)) for server in self._servers), threads, busy)

    def stop(self) -> None:
        threading.Thread(target=self._end_threads, name="lifecycle-cheroot", daemon=True).start()

    def _end_threads(self) -> None:
        pause = threading.Event()
        until = time.monotonic() + _OWN_END
        while any(server._connections._serving for server in self._servers) and time.monotonic() < until:
            pause.wait(_TICK)
        for server in self._servers:
            server.stop()


def _queued(server: Any) -> list[Any]:
    """The connections that wait for a worker."""
    return [each for each in list(server.requests._queue.queue) if hasattr(each, "rfile")]


def _busy(server: Any) -> list[Any]:
    """The workers that have a connection."""
    return [worker for worker in list(server.requests._threads) if worker.conn is not None]


def _kept(server: Any) -> list[Any]:
    """The connections that wait in the loop for their next request."""
    selector = server._connections._selector
    try:
        return [connection for _descriptor, connection in selector.connections if connection is not server]
    except (RuntimeError, ValueError):  # the loop ends, and so do they
        return []


def _is_silent(sock: socket.socket) -> bool:
    """Whether not one byte has ever come; of a Unix socket nobody tells."""
    return _sockets.bytes_received(sock) == 0


def _responds(frame: FrameType | None) -> bool:
    """Whether a thread is beyond the head of its request."""
    while frame is not None:
        if frame.f_code is HTTPRequest.respond.__code__:
            return True
        frame = frame.f_back
    return False
