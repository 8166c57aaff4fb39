"""gevent's WSGI server that we did not start: ``pywsgi.WSGIServer(...).serve_forever()``.

Its own stop cuts whoever is being answered unless its ``spawn`` is a pool, and resets the accept queue. Here, as in
our own runner, the listener is closed and nothing else, and ``serve_forever()`` holds the main greenlet until the hooks
have run and the signal is given back. ``_greenlets.py`` tells how; what is added here is how its handlers come to be
tracked.

A server is found with its first request, when it has few connections. Its handler class is then replaced by one derived
from it that is tracked, and handlers that exist become such by their ``__class__``. Which of those run an application
is read from the frames of the greenlets; the others wait for a request, or have come by a part of its first line. The
latter cannot be told apart, and so are hung up as idle ones if they have not gone on when the drain comes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
from gevent.hub import RawGreenlet
from gevent.pywsgi import WSGIHandler, WSGIServer

from ... import _sockets
from ..._inflight import Load, RequestInfo
from ..._parties import FULL
from .._greenlets import Conductor, Listening, Tracked
from . import Found, has_other_owners, instances


def find() -> FoundGevent | None:
    """Those in this process that serve."""
    found = [server for server in instances(WSGIServer) if _serves(server)]
    return FoundGevent(found) if found else None


def _serves(server: Any) -> bool:
    """Whether a server is open, and is neither gunicorn's nor our own."""
    if not server.started or not _is_open(server) or type(server).__module__.startswith("gunicorn"):
        return False
    return hasattr(server, "lifecycle_conductor") or not issubclass(server.handler_class, Tracked)


def _is_open(server: Any) -> bool:
    return not server.closed and server.socket.fileno() >= 0


class FoundGevent(Found):
    """gevent's WSGI server, by ``serve_forever()``."""

    name = "gevent"
    promise = FULL
    ours = True

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers
        self._conductor: Conductor = getattr(servers[0], "lifecycle_conductor", None) or _track(servers)
        self._is_conducted = False

    def announce(self) -> None:
        self._conductor.announced = True
        if not self._is_conducted:
            self._is_conducted = True
            self._servers[0].loop.run_callback_threadsafe(gevent.spawn, self._conductor.run)

    def stop_accepting(self, timeout: float) -> None:
        self._conductor.stop_accepting(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        return self._conductor.wait_idle(timeout, linger)

    def unfinished(self) -> Sequence[RequestInfo]:
        return self._conductor.unfinished()

    def load(self) -> Load:
        return self._conductor.load()


def _track(servers: Sequence[Any]) -> Conductor:
    """Have the handlers of some servers say what they do."""
    conductor = Conductor(lambda: [_listening(server) for server in servers if _is_open(server)])
    for server in servers:
        server.lifecycle_conductor = conductor
        server.handler_class = type("Tracked", (Tracked, server.handler_class), {"conductor": conductor})
    running = set(_running())
    for handler in list(instances(WSGIHandler)):
        if handler.server in servers and not isinstance(handler, Tracked) and "socket" in handler.__dict__:
            handler.__class__ = handler.server.handler_class
            handler.begin_tracking("running" if id(handler) in running else "idle")
    return conductor


def _listening(server: Any) -> Listening:
    address = server.socket.getsockname()
    path = address if isinstance(address, str) and address[:1] not in ("", "\0") else None
    identity = _sockets.socket_identity(path) if path is not None else None
    return Listening(server, path, identity, given=has_other_owners(server.socket))


def _running() -> Iterator[int]:
    """The ids of the handlers whose application has been called."""
    frames = [*sys._current_frames().values(), *(each.gr_frame for each in instances(RawGreenlet))]
    for frame in frames:
        while frame is not None:
            if frame.f_code is WSGIHandler.handle_one_response.__code__:
                yield id(frame.f_locals["self"])
            frame = frame.f_back
