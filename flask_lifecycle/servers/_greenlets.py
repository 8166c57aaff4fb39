"""The connections of gevent's WSGI server: what each of them does, and how all of them end, whoever started it.

Everything here happens in the thread of the server's hub, in greenlets, but for what says otherwise. The coordinator's
verbs may come from another thread, or, where threads are patched, from another greenlet: they are put on a queue, and
``run_callback_threadsafe``, the one thing of a hub that other threads may use, wakes the greenlet that works it off.
That is :meth:`Conductor.run`: the main greenlet of our own server, one more under a server of somebody else.

pywsgi gives each connection a greenlet from its accept on. A handler class that is told what it does (:class:`Tracked`)
gives each a *stage*: ``silent`` until its first byte, ``receiving``, ``running``, ``idle`` when it is kept, ``sending``
(the farewell). In a drain a silent or idle one is hung up after the linger, unless bytes wait in the kernel in either
direction.

Of a connection pywsgi closes the answer says so from the announcement on, unless a further request is here behind it.

The sockets of gevent never block, and the ones below them (``_sock``), which do not wait either, are what is asked
here: a question must not switch to another greenlet.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gevent
from gevent.event import Event

from .. import _sockets
from .._inflight import Load, RequestInfo
from . import _closing

# The upper bound on what a lost wake-up could cost; who ends its connection wakes nobody.
_DRAIN_TICK = 0.01


class Listening:
    """One listener of a server, as it is accepted from while it is being closed.

    :param path: of a Unix socket that is ours, with the identity of the file that was bound.
    :param given: others go on using it, so what waits in it is theirs.
    """

    def __init__(
        self, server: Any, path: str | None = None, identity: tuple[int, int] | None = None, given: bool = False
    ) -> None:
        self.server = server
        self.given = given
        self.path = path
        self.identity = identity
        self._held: list[tuple[Any, ...]] | None = None

    def accept_one(self) -> bool:
        """Accept a waiting connection and start its greenlet; ``False`` if there was none."""
        try:
            accepted = self.server.do_read()
        except OSError:
            return False
        if not accepted:
            return False
        if self._held is None:
            self.server.do_handle(*accepted)
        else:
            self._held.append(accepted)
        return True

    def stop_accepting(self) -> None:
        """From now on only :meth:`accept_one` does."""
        self.server.stop_accepting()
        self.server.start_accepting = lambda: None  # a pool would, as soon as it has room

    def leave(self, method: str) -> None:
        """Close our copy, and leave what waits to the others."""
        self.stop_accepting()
        self.server.socket.close()
        _closing.log_closed(method)

    def hold(self) -> None:
        """Accept without answering, until the listener is closed."""
        self._held = []

    def close(self) -> None:
        """Close the listener and nothing else: ``server.close()`` would end ``serve_forever()``."""
        self.server.socket.close()
        held, self._held = self._held or [], None
        for accepted in held:
            self.server.do_handle(*accepted)


class Conductor:
    """All connections of some servers that share a hub.

    :param listeners: gives these; asked in the hub's thread.
    """

    def __init__(self, listeners: Callable[[], Sequence[Listening]]) -> None:
        self.announced = False
        self.held_back = False  # whether nothing is accepted yet
        self.handlers: dict[Tracked, None] = {}
        self.last_accept = 0.0
        self._listeners = listeners
        self._loop: Any = None
        self._woken = Event()
        self._posted: deque[Callable[[], None]] = deque()
        self._closing = _closing.ClosingListeners()
        self._linger: float | None = None  # not None: a drain is on, since _drained
        self._drained = 0.0
        self._idle = threading.Event()
        self._ended = False

    # -- from any thread ------------------------------------------------------------------------------------------

    def stop_accepting(self, timeout: float) -> None:
        self.post(lambda: self._begin_closing(timeout))
        self._closing.done.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self.post(lambda: self._begin_drain(linger))
        return self._idle.wait(timeout)

    def unfinished(self) -> list[RequestInfo]:
        now = time.monotonic()
        return [
            RequestInfo(handler.command or "-", handler.path or "-", now - handler.since, stage=stage)
            for handler in self.handlers.copy()
            if (stage := handler.under_way()) is not None and stage != "running"
        ]

    def load(self) -> Load:
        now = time.monotonic()
        ages = [now - handler.since for handler in self.handlers.copy() if handler.stage == "running"]
        return Load(0, busy=len(ages), oldest=max(ages, default=0.0))

    def end(self) -> None:
        """End :meth:`run`."""
        self.post(lambda: setattr(self, "_ended", True))

    def post(self, function: Callable[[], None]) -> None:
        """Have a function called in the conductor's greenlet."""
        self._posted.append(function)
        if self._loop is not None:  # else run() will look, before it waits
            self._loop.run_callback_threadsafe(self._woken.set)

    # -- the conductor's greenlet ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Work off what is posted until :meth:`end`, in the calling greenlet."""
        self._loop = gevent.get_hub().loop
        while not self._ended:
            while self._posted:
                self._posted.popleft()()
            self._closing.step()
            self._look()
            self._woken.wait(self._tick())
            self._woken.clear()

    def _tick(self) -> float:
        if self._closing.under_way:
            return _closing.CLOSING_TICK
        # There is always a timer, because a hub with nothing to wait for is an error (LoopExit).
        return 1.0 if self._linger is None else _DRAIN_TICK

    def hand_over(self) -> None:
        """Leave the listeners to another process, with all that waits in them."""
        if not self._closing.begun:
            for listener in self._listeners():
                listener.leave("left to another process")
            self._closing.done.set()

    def _begin_closing(self, patience: float) -> None:
        if self.held_back or self._closing.done.is_set():
            self.hand_over()
            return
        closing = []
        for listener in self._listeners():
            if listener.given:
                listener.leave("left to its giver")
                continue
            listener.stop_accepting()
            closing.append(
                _closing.ClosingListener(
                    listener.server.socket,
                    accept=listener.accept_one,
                    hold=listener.hold,
                    close=listener.close,
                    last_accept=lambda: self.last_accept,
                    path=listener.path,
                    identity=listener.identity,
                    patience=patience,
                )
            )
        self._closing.begin(closing)

    def _begin_drain(self, linger: float) -> None:
        self._drained = self._drained or time.monotonic()
        self._linger = linger

    def _look(self) -> None:
        """In a drain: end the connections that have had their time, and say so when there is none left."""
        if self._linger is None:
            return
        now = time.monotonic()
        for handler in list(self.handlers):
            if "socket" not in handler.__dict__:
                self.closed(handler)  # it was there before it was tracked, and has ended
            elif handler.stage in ("silent", "idle", "sending"):
                self._look_at(handler, now, self._linger, self._drained)
        if self._closing.done.is_set() and not self.handlers:
            self._idle.set()

    @staticmethod
    def _look_at(handler: Tracked, now: float, linger: float, drained: float) -> None:
        farewell = handler.stage == "sending"
        if _sockets.unsent(handler.raw):
            if farewell:
                handler.since = now
        elif now - max(handler.since, drained) >= linger and (farewell or not handler.has_input()):
            _sockets.hang_up(handler.socket)

    # -- their greenlets ------------------------------------------------------------------------------------------

    def opened(self, handler: Tracked) -> None:
        self.last_accept = time.monotonic()
        self.handlers[handler] = None

    def closed(self, handler: Tracked) -> None:
        self.handlers.pop(handler, None)


class Tracked:
    """Mixed into a handler class of pywsgi: says what its connection is doing."""

    conductor: ClassVar[Conductor]
    stage = "silent"
    since = 0.0
    # What it has from pywsgi.
    socket: Any
    rfile: Any
    command: str | None
    path: str | None
    close_connection: bool
    code: int | None
    response_headers: list[tuple[bytes, bytes]]
    wsgi_input: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin_tracking("silent")

    def begin_tracking(self, stage: str) -> None:
        """The connection is there, and in this stage."""
        self.raw = getattr(self.socket, "_sock", self.socket)
        self.enter(stage)
        self.conductor.opened(self)

    def handle(self) -> None:
        try:
            super().handle()  # type: ignore[misc]
        finally:
            self.conductor.closed(self)

    def enter(self, stage: str) -> None:
        self.since = time.monotonic()
        self.stage = stage

    def under_way(self) -> str | None:
        """The stage of the request that is lost if the process leaves now; ``None`` if there is none."""
        if self.stage in ("silent", "idle", "sending"):
            return "sending" if _sockets.unsent(self.raw) else None
        return self.stage

    def has_input(self) -> bool:
        """Whether bytes, an end of file or an error wait in the kernel."""
        try:
            self.raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def has_more(self) -> bool:
        """Whether a byte of a further request is here; empty lines are none."""
        self.socket.settimeout(0.0)
        try:
            return self._at_request()
        except OSError:
            return False
        finally:
            self.socket.settimeout(None)

    def _at_request(self) -> bool:
        """Pass over empty lines; say whether a request begins, or else the end has come."""
        while data := self.rfile.peek(1):
            empty = len(data) - len(data.lstrip(b"\r\n"))
            self.rfile.read(empty)
            if empty < len(data):
                return True
        return False

    def read_requestline(self) -> str:
        if self.stage != "silent":
            self.enter("idle")
        if not self._at_request():
            return ""
        self.enter("receiving")
        line: str = super().read_requestline()  # type: ignore[misc]
        return line

    def handle_one_response(self) -> None:
        self.enter("running")
        super().handle_one_response()  # type: ignore[misc]

    def finalize_headers(self) -> None:
        if self.code != 101:
            if self.conductor.announced and (self._unread() or not self.has_more()):
                self.close_connection = True
            if self.close_connection:
                headers = [(name, value) for name, value in self.response_headers if name.lower() != b"connection"]
                self.response_headers = [*headers, (b"Connection", b"close")]
        super().finalize_headers()  # type: ignore[misc]

    def _unread(self) -> bool:
        """Whether the request's own body is still to be read, so that what is here need not be a further one."""
        body = self.wsgi_input
        if body.chunked_input:
            return bool(body.chunk_length != 0)
        return bool(body.position < (body.content_length or 0))


def farewell(handler: Tracked) -> None:
    """Shut the connection down for writing and read until the client has closed it, too; then the answer is safe."""
    sock = handler.socket
    if handler.stage == "silent" or not _sockets.half_close(sock):
        return
    handler.enter("sending")
    until = time.monotonic() + _sockets.FAREWELL_IN_ALL
    sock.settimeout(_sockets.FAREWELL)
    with contextlib.suppress(OSError):  # silent for that long, or hung up by the drain
        while time.monotonic() < until and sock.recv(65536):
            handler.since = time.monotonic()
    while handler.conductor.announced and _sockets.unsent(handler.raw):
        gevent.sleep(_sockets.ACK_TICK)
