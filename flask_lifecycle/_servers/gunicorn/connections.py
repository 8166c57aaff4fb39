"""Hangs up the connections that delay a leaving worker although they have no request.

A leaving worker of gunicorn waits for each of its connections: two seconds for an idle one, five (gthread) or forever
(sync, gevent) for a silent one, and two more for each client that does not close its side after the response. We hang
up those that have waited for ``keepalive_linger``.

Known limit: the kernel does not count the bytes of a Unix socket, so only gevent workers hang up silent connections
there.
"""

from __future__ import annotations

import _socket
import contextlib
import datetime
import functools
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn import util

from ..._core.inflight import RequestInfo
from ..._core.stacks import calls_of, variables_of
from ..sockets import ACK_TICK, bytes_received, unread, unsent

# Seconds for the head of a request on a gevent worker, and for the acknowledgement of a response. It is gunicorn's
# default of ``keepalive``, whose value behind a balancer is longer than any grace period.
_PATIENCE = 2.0


class Connections:
    """The connections of one worker of class sync, gthread or gevent. Any thread may use it."""

    def __init__(self, worker: Any) -> None:
        self.leaving = False  # whether a shutdown has been announced
        self._worker = worker
        # Silent or idle connections, each with the start of its wait and the bytes received by then.
        self._waiting: dict[Any, tuple[float, int | None]] = {}
        self._answered: dict[Any, None] = {}  # being closed by gunicorn
        self._since: dict[Any, float] = {}
        self._handle = worker.handle
        worker.handle = self._track
        if hasattr(worker, "enqueue_req"):
            self._enqueue = worker.enqueue_req
            worker.enqueue_req = self._track_queued
        self._is_gevent = hasattr(worker, "timeout_ctx")
        if self._is_gevent:
            self._handle_request = worker.handle_request
            self._handle_http2: Any = getattr(worker, "handle_http2", None)  # older releases have none
            worker.handle_request, worker.handle_http2 = self._track_request, self._track_http2
        close = getattr(util, "close_graceful", None)  # new in gunicorn 26
        if close is not None:
            util.close_graceful = functools.partial(self._close, close)

    def hang_up(self, linger: float, closed: float, refusing: float = 0.0) -> None:
        """End the input of connections that have waited for ``linger`` seconds.

        gunicorn then reads an end of file, and closes. It still reads earlier input, so a whole request that arrives at
        this moment is answered.

        A gevent worker accepts for up to a second after it was asked to leave. A connection's wait begins no earlier
        than its accept, so that a new one is not hung up before its request has arrived.

        :param closed: when the worker was asked to leave; infinite before. Connections have waited since then at least,
            or since they were accepted.
        :param refusing: since when the kernel has refused new connections; 0 if it does not. One that a sync worker
            accepts after that has waited behind others in the accept queue.
        """
        now = time.monotonic()
        before, self._since = self._since, {}
        for sock, accepted in self._idle(now, refusing):
            since = self._since[sock] = before.get(sock, max(accepted, min(now, closed, refusing or now)))
            if now - since >= linger:
                with contextlib.suppress(OSError):  # it has gone
                    # Not gevent's own, which makes an error of it for the reader, nor that of TLS, which drops the key.
                    _socket.socket.shutdown(getattr(sock, "_sock", sock), socket.SHUT_RD)

    def _idle(self, now: float, refusing: float) -> Iterator[tuple[Any, float]]:
        """The connections without a request, each with the time since when it can have waited.

        One after the other, so that no request can begin on the last ones while the first are hung up.
        """
        for sock, (since, received) in self._waiting.copy().items():
            late = self._is_gevent and now - since > _PATIENCE
            if late or (received is not None and bytes_received(sock) == received):
                yield sock, min(since, refusing or since) if received == 0 else since
        for name in ("keepalived_conns", "pending_conns"):  # those in the poller of gthread
            polled: deque[Any] = getattr(self._worker, name, deque())
            yield from ((conn.sock, 0.0) for conn in polled.copy() if not unread(conn.sock))
        yield from ((sock, 0.0) for sock in self._answered.copy() if not (unsent(sock) or unread(sock)))

    def _track(self, *arguments: Any) -> Any:
        """In the place of ``worker.handle``: gthread's takes a connection, the others' a listener, socket, address."""
        new = len(arguments) > 1 or not arguments[0].initialized  # gthread's is called again for each request
        sock = arguments[1] if len(arguments) > 1 else arguments[0].sock
        if new:
            self._begin_wait(sock)
        try:
            return self._handle(*arguments)
        finally:
            self._waiting.pop(sock, None)

    def _track_queued(self, conn: Any) -> None:
        """In the place of gthread's ``enqueue_req``, so that silent connections wait together, not one by one."""
        if not conn.initialized:
            self._begin_wait(conn.sock)
        self._enqueue(conn)

    def _begin_wait(self, sock: Any) -> None:
        self._waiting.setdefault(sock, (time.monotonic(), 0 if bytes_received(sock) is not None else None))

    def _track_request(self, listener_name: Any, req: Any, client: socket.socket, addr: Any) -> Any:
        self._waiting.pop(client, None)
        answered = self._handle_request(listener_name, req, client, addr)
        self._waiting[client] = time.monotonic(), bytes_received(client)  # and not after an exception, which ends it
        return answered

    def _track_http2(self, listener: Any, client: socket.socket, *arguments: Any, **keywords: Any) -> None:
        self._waiting.pop(client, None)  # it has streams, and ends by itself
        self._handle_http2(listener, client, *arguments, **keywords)

    def _close(self, close: Callable[..., None], sock: Any, *arguments: Any, **keywords: Any) -> None:
        """In the place of gunicorn's ``close_graceful``, which waits until the client has closed."""
        self._answered[sock] = None
        try:
            if not (self.leaving and _close_when_acknowledged(sock)):
                close(sock, *arguments, **keywords)
        finally:
            del self._answered[sock]


def running(worker: Any) -> dict[Any, RequestInfo]:
    """The requests for which gunicorn has called the application, or what stands around it, by gunicorn's objects."""
    now = datetime.datetime.now()
    return {
        req: RequestInfo(req.method, req.path, max(0.0, (now - call.get("request_start", now)).total_seconds()))
        for call in request_calls(worker)
        if (req := call.get("req")) is not None
    }


def request_calls(worker: Any) -> list[dict[str, Any]]:
    """The local variables of each call of ``handle_request``. Reading them costs nothing before a shutdown.

    A gevent worker has two calls for each request, because its method calls that of its base class.
    """
    names = ("handle_request", "handle_http2_request")
    codes = [vars(kind)[name].__code__ for kind in type(worker).__mro__ for name in names if name in vars(kind)]
    calls = [call.variables for code in codes for call in calls_of(code)]
    if hasattr(worker, "timeout_ctx"):
        calls += [call for each in _greenlets(worker) for code in codes for call in variables_of(code, each.gr_frame)]
    return calls


def _greenlets(worker: Any) -> Iterator[Any]:
    """The greenlets of a gevent worker's connections, which only a variable of its main greenlet has."""
    gevent = sys.modules.get("gevent")
    main = gevent.get_hub().parent.gr_frame if gevent is not None else None  # eventlet's workers have none
    for call in variables_of(type(worker).run.__code__, main):
        for server in call.get("servers", ()):
            yield from list(server.pool)


def _close_when_acknowledged(sock: Any) -> bool:
    """Close a connection when its client has acknowledged the answer; ``False`` if the client sends on."""
    until = time.monotonic() + _PATIENCE
    while unsent(sock) and time.monotonic() < until:
        time.sleep(ACK_TICK)
    if unsent(sock) or unread(sock):
        return False
    sock.close()
    return True
