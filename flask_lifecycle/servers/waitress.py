"""waitress: run it, and stop it without losing a request.

waitress is one I/O loop and a pool of worker threads. The loop accepts, reads, parses and flushes; a worker runs one
request and writes only what the socket takes at once. Signals reach the main thread only, so that is where the loop
runs. How it is turned and drained is told in ``_loop.py``, how a connection ends in ``_channel.py``.
"""

from __future__ import annotations

import difflib
import select
import socket
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import BaseWSGIServer, UnixWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher

from .. import _sockets
from .._inflight import Load, RequestInfo
from .._parties import FULL
from ._canary import Canary, send_ahead
from ._loop import Lane, Loop, Waker, listener_of
from ._pools import pool_load

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def create(
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Lane,
    options: dict[str, Any],
) -> Waitress:
    """Make the server, bound and listening; ``options`` are waitress' own adjustments."""
    known = [name for name, _cast in Adjustments._params]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"waitress has no option '{option}'; did you mean '{near}'?")
    if not options.keys() & {"listen", "sockets", "unix_socket"}:
        options |= {"host": host or "127.0.0.1", "port": 5000 if port is None else port}
    elif host is not None or port is not None:
        raise ValueError(
            "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them."
        )
    options.setdefault("asyncore_use_poll", hasattr(select, "poll"))
    return Waitress(app, lane, options)


class Waitress:
    """A waitress server that is ours from its first to its last connection."""

    name = "waitress"
    ours = True
    means = "started by flask_lifecycle"
    promise = FULL
    advice = ""

    def __init__(self, app: WSGIApplication, lane: Lane, options: dict[str, Any]) -> None:
        self._map: dict[int, Any] = {}
        self._given: Collection[socket.socket] = tuple(options.get("sockets", ()))
        self._loop = Loop(self._map, lane)
        first = self._listen(app, options)
        self._adj = first.adj
        self._dispatcher = first.task_dispatcher
        self._waker = self._loop.waker = Waker(self._map)
        _sockets.close_in_children(self)

    def _listen(self, app: WSGIApplication, options: dict[str, Any]) -> BaseWSGIServer:
        """Bind everything; Unix sockets beside TCP listeners, which waitress has no option for, as well."""
        beside = options.pop("unix_socket", None) if "listen" in options else None
        unix = [sock for sock in self._given if sock.family == socket.AF_UNIX]
        apart = unix if len(unix) < len(self._given) else []
        if apart:
            options["sockets"] = [sock for sock in self._given if sock not in apart]
        where = options.get("listen") or options.get("unix_socket") or f"{options.get('host')}:{options.get('port')}"
        try:
            # Without threads until everything is bound, so that a failure leaves none behind.
            dispatcher = ThreadedTaskDispatcher()
            first = create_server(app, map=self._map, _dispatcher=dispatcher, **options)
            if beside is not None:
                where = beside
                rest = {k: v for k, v in options.items() if k not in ("listen", "host", "port")}
                adjustments = Adjustments(unix_socket=beside, **rest)
                UnixWSGIServer(app, self._map, dispatcher=dispatcher, adj=adjustments)
            for sock in apart:
                adjustments = Adjustments(**(options | {"sockets": [sock]}))
                UnixWSGIServer(app, self._map, _sock=sock, dispatcher=dispatcher, adj=adjustments, bind_socket=False)
        except OSError as error:
            wasyncore.close_all(self._map, ignore_all=True)
            raise _sockets.bind_error(error, str(where)) from None
        except ValueError as error:
            raise ValueError(f"waitress refuses its options: {error}") from None
        dispatcher.set_thread_count(first.adj.threads)
        servers = [o for o in self._map.values() if isinstance(o, BaseWSGIServer)]
        for server in servers:
            self._loop.adopt(listener_of(server, any(server.socket is given for given in self._given)))
        return servers[0]

    # -- verbs, from any thread but the loop's --------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        listening = [listener.server.socket for listener in self._loop.listeners if not listener.given]
        connected = [channel.socket for channel in self._loop.channels()]
        return [sock for sock in (*listening, *connected) if sock is not None]

    def addresses(self) -> list[str]:
        return [_sockets.describe(listener.server.socket) for listener in self._loop.listeners]

    def listeners(self) -> list[socket.socket]:
        return [listener.server.socket for listener in self._loop.listeners]

    def hold_back(self) -> None:
        self._loop.hold_back()

    def take_over(self, ours: Collection[socket.socket]) -> None:
        self._loop.post(lambda: self._loop.accept_as(ours))

    def hand_over(self) -> None:
        self._loop.post(self._loop.hand_over)

    def announce(self) -> None:
        self._loop.announced = True

    def stop_accepting(self, timeout: float) -> None:
        self._loop.close_listeners(timeout)
        self._loop.closing.done.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self._loop.hang_up(linger)
        return self._loop.idle.wait(timeout)

    def unfinished(self) -> list[RequestInfo]:
        return self._loop.unfinished()

    def load(self) -> Load:
        now = time.monotonic()
        began = [channel.work_since for channel in self._loop.channels() if channel.requests]
        oldest = max((now - since for since in began if since is not None), default=0.0)
        return pool_load([self._dispatcher], oldest)

    def canary(self, done: Callable[[], None]) -> bool:
        return send_ahead(self._dispatcher, Canary(lambda: self._loop.post(done)))

    def stop(self) -> None:
        self._loop.end()

    # -- the loop -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until :meth:`stop`, in the calling thread."""
        self._loop.run(self._adj.asyncore_use_poll)
        self._release()

    def close(self) -> None:
        """Let go of everything without having served."""
        for listener in self._loop.listeners:
            if not listener.given:
                wasyncore.dispatcher.close(listener.server)
            if not self._loop.held_back:
                _sockets.unlink(listener.path, listener.identity)
        self._release()

    def _release(self) -> None:
        """End the threads and close what is left, unless a worker is still at work with it."""
        for listener in self._loop.listeners:
            if listener.given:
                self._loop.leave(listener)  # the map's are closed now
        if self._loop.channels():
            return  # a straggler: it may still write to its trigger, and the process is about to leave anyway
        pools = self._loop.pools()
        for pool in pools:
            pool.set_thread_count(0)
        for pool in pools:
            pool.shutdown(timeout=0.2)
        if not any(pool.threads for pool in pools):
            wasyncore.close_all(self._map, ignore_all=True)
            self._waker.release()
