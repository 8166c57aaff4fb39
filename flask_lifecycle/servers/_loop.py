"""The I/O loop of waitress, turned by us: our own from the first connection on, or somebody else's for its drain.

What waitress does on its way out (five seconds for the workers, queued work cancelled, the loop gone, so that larger
answers are cut) is never used: the loop stays alive until the last channel has gone, and only the listening sockets are
closed before.

All sockets belong to the thread of the loop, which is never blocked without a timeout. The coordinator's verbs come
from another thread: they are put on a queue and a byte in the waker's pipe makes the loop look at it. Between ticks the
loop runs what was posted, takes closing listeners a step further, and, during a drain, scans its channels.

The lanes: each probe has a task dispatcher of its own with one thread (that of the status page, whose questions are
held, with one for each that may be), made when it is first asked and chosen in
``add_task``. So no probe ever queues behind work, nor liveness behind a readiness probe that waits for a hung check.

Traps of waitress that this file walks around: ``server.close()`` closes the trigger's pipe while workers still write
to that number (only the listener is closed, by ``dispatcher.close``); ``MultiSocketServer`` has none of the
attributes of a server (the listeners are taken from the map); ``connection_limit`` stops accepting (not while closing);
``select`` stops at descriptor 1,024 (``poll`` is the default here).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from waitress import wasyncore
from waitress.task import ThreadedTaskDispatcher

from .. import _sockets
from .._audience import MOST_HELD, WATCH
from .._inflight import RequestInfo
from .._record import NamedTuple
from . import _closing
from ._channel import Channel, channel_class

# The upper bound on what a lost wake-up could cost; all that a drain waits for does wake the loop.
_DRAIN_TICK = 0.05
# Of no logger's tree, so that nobody hears what is said to it.
_UNHEARD = logging.Logger("waitress.queue", logging.CRITICAL)

Lane = Callable[[str], str | None]


class Listener(NamedTuple):
    """A server of waitress, which is one listener, and what becomes of it."""

    server: Any
    given: bool
    """Whether somebody else goes on using its socket, who gave it."""
    path: str | None = None
    """Of a Unix socket, where it is to be removed, and the identity of the file that was bound."""
    identity: tuple[int, int] | None = None


def listener_of(server: Any, given: bool) -> Listener:
    """What becomes of a server; the path of a Unix socket that is not given is to be removed."""
    if given or server.socket.family != socket.AF_UNIX:
        return Listener(server, given)
    path = os.fsdecode(server.socket.getsockname())
    return Listener(server, given, os.path.abspath(path), _sockets.socket_identity(path))


class Loop:
    """A loop of waitress with its listeners and channels. What is not said to be for other threads is for its own."""

    def __init__(self, channel_map: dict[int, Any], lane: Lane = lambda path: None) -> None:
        self.announced = False  # read by the workers
        self.runs = False  # whether it is we who turn it
        self.held_back = False  # nobody is accepted: the listeners are another process's, as yet or from now on
        self.lane = lane
        self.lanes: dict[str, ThreadedTaskDispatcher] = {}
        self.listeners: list[Listener] = []
        self.farewells: set[Channel] = set()
        self.last_accept = 0.0
        self.closing = _closing.ClosingListeners()
        self.idle = threading.Event()  # no connection is left
        self.waker: Waker | None = None
        self._map = channel_map
        self._lanes_lock = threading.Lock()  # guards the making of a lane
        self._posted: deque[Callable[[], None]] = deque()
        self._linger: float | None = None  # not None: a drain is on
        self._next_look = 0.0  # seconds until the next scan must come, if nothing wakes the loop before
        self._ended = False

    # -- for any thread -------------------------------------------------------------------------------------------

    def adopt(self, listener: Listener) -> None:
        """Take a listener in, with the connections that it has."""
        server = listener.server
        server.channel_class = channel_class(server.channel_class, self)
        server.add_task = self._add_task
        for channel in server.active_channels.copy().values():
            channel.__class__ = server.channel_class
        self.listeners.append(listener)

    def post(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call a function."""
        self._posted.append(function)
        if self.waker is not None:
            self.waker.wake()

    def close_listeners(self, patience: float) -> None:
        """Begin to close the listeners; ``closing.done`` tells when that is so."""
        self.post(lambda: self._begin_closing(patience))

    def hang_up(self, linger: float) -> None:
        """Begin to hang up connections that are idle for so long; ``idle`` tells when the last one has gone."""
        self.post(lambda: setattr(self, "_linger", linger))

    def end(self) -> None:
        """End :meth:`run`."""
        self.post(lambda: setattr(self, "_ended", True))

    @property
    def draining(self) -> bool:
        """Whether the drain is on, and every connection is on its way out."""
        return self._linger is not None

    def channels(self) -> list[Channel]:
        """Its connections."""
        servers = [listener.server for listener in self.listeners]
        return [channel for server in servers for channel in server.active_channels.copy().values()]

    def unfinished(self) -> list[RequestInfo]:
        """What is lost if the process leaves now, less what an application is running."""
        pools = {id(listener.server.task_dispatcher): listener.server.task_dispatcher for listener in self.listeners}
        queued = {id(channel) for pool in pools.values() for channel in pool.queue.copy()}
        return [info for channel in self.channels() for info in channel.unfinished(id(channel) in queued)]

    # -- turning --------------------------------------------------------------------------------------------------

    def run(self, use_poll: bool) -> None:
        """Serve in the calling thread until :meth:`end`."""
        self.runs = True
        while not self._ended:
            wasyncore.loop(timeout=self._tick(), use_poll=use_poll, map=self._map, count=1)
            while self._posted:
                self._posted.popleft()()
            self.closing.step()
            if self._linger is not None:
                self._scan(self._linger)
            elif self.farewells:
                self._end_farewells(_sockets.FAREWELL)

    def _tick(self) -> float:
        if self._posted:
            return 0.0
        if self.closing.under_way:
            return _closing.CLOSING_TICK
        if self._linger is not None:
            return self._next_look
        # At most a second, so that a signal which another thread took is not left lying.
        return min(0.5 if self.farewells else 1.0, float(self.listeners[0].server.adj.asyncore_loop_timeout))

    def _add_task(self, channel: Channel) -> None:
        """Choose the lane of a channel's next request. Called with its requests_lock held, by the loop or a worker."""
        request = channel.requests[0]
        # Nothing that the middleware would not take for a probe: else work could get into the lane. (A check's own URL,
        # asked by somebody who may not see it, is answered by the application; it has a lane apart from the probes'.)
        path: str = getattr(request, "path", "").removeprefix(channel.adj.url_prefix)
        name = self.lane(path)
        work = name is None or request.command not in ("GET", "HEAD")
        channel.work_since = time.monotonic() if work else None
        (channel.server.task_dispatcher if name is None or work else self._make_lane(name)).add_task(channel)

    def _make_lane(self, name: str) -> ThreadedTaskDispatcher:
        with self._lanes_lock:
            if name not in self.lanes:
                lane = self.lanes[name] = ThreadedTaskDispatcher()
                # Its warnings would be taken for the work's queue: a new thread counts as busy until it waits.
                lane.queue_logger = _UNHEARD
                lane.set_thread_count(MOST_HELD if name == WATCH else 1)
            return self.lanes[name]

    def hold_back(self) -> None:
        """Accept nobody."""
        self.held_back = True
        for listener in self.listeners:
            listener.server.accepting = False

    def accept_as(self, ours: Collection[socket.socket]) -> None:
        """Accept from now on; of the sockets that were given, these are ours to close at the end."""
        self.held_back = False
        self.listeners = [
            listener_of(listener.server, listener.given and listener.server.socket not in ours)
            for listener in self.listeners
        ]
        for listener in self.listeners:
            listener.server.accepting = True

    def hand_over(self) -> None:
        """Between two ticks, so what has been accepted has its channel; what has not is still in the kernel's queue."""
        if self.closing.begun:
            return  # too late
        self.hold_back()
        for listener in self.listeners:
            if not listener.given:
                wasyncore.dispatcher.close(listener.server)  # our copy: a listener is closed with its last one
            _closing.log_closed("left to another process")
        self.closing.done.set()

    def _begin_closing(self, patience: float) -> None:
        if self.held_back:
            self.hand_over()
            return
        closing = []
        for listener in self.listeners:
            if listener.given:
                # Whoever gave it goes on using it, or hands it to the next process: what waits in it is theirs.
                self.leave(listener)
                _closing.log_closed("left to its giver")
                continue
            server = listener.server
            closing.append(
                _closing.ClosingListener(
                    server.socket,
                    accept=lambda server=server: self._accept(server),  # type: ignore[misc]
                    close=lambda server=server: wasyncore.dispatcher.close(server),  # type: ignore[misc]
                    last_accept=lambda: self.last_accept,
                    path=listener.path,
                    identity=listener.identity,
                    patience=patience,
                )
            )
        self.closing.begin(closing)

    @staticmethod
    def leave(listener: Listener) -> None:
        """Have nothing more to do with a listener, which stays as it is."""
        listener.server.del_channel()  # out of the map
        listener.server.accepting = False

    def _accept(self, server: Any) -> bool:
        before = len(server.active_channels)
        server.handle_accept()
        return len(server.active_channels) > before

    def _scan(self, linger: float) -> None:
        """One look at every channel of a drain: hang up the idle ones, and say so when there is none left."""
        now = time.monotonic()
        self._next_look = _DRAIN_TICK
        for channel in self.channels():
            if channel.saying_farewell or channel.busy():
                channel.idle_since = None
                if not channel.requests:  # else it is a worker that ends it, and wakes the loop
                    self._next_look = min(self._next_look, _sockets.ACK_TICK)
                continue
            channel.idle_since = channel.idle_since or now
            left = channel.idle_since + linger - now
            if left <= 0:
                channel.hang_up()
            self._next_look = max(_closing.CLOSING_TICK, min(self._next_look, left))
        self._end_farewells(linger)
        if self.closing.done.is_set() and not self.channels():
            self.idle.set()

    def _end_farewells(self, patience: float) -> None:
        now = time.monotonic()
        for channel in list(self.farewells):
            channel.end_farewell(now, patience, draining=self.draining)

    def pools(self) -> Sequence[ThreadedTaskDispatcher]:
        """Its workers, those of the lanes as well."""
        return list({*(listener.server.task_dispatcher for listener in self.listeners), *self.lanes.values()})


class Waker(wasyncore.file_dispatcher):  # type: ignore[misc]
    """A pipe in the loop's map; a byte in it ends the loop's sleep."""

    def __init__(self, channel_map: dict[int, Any]) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        super().__init__(read, map=channel_map)
        os.close(read)  # file_dispatcher has made its own duplicate

    def wake(self) -> None:
        """For any thread."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: the loop will wake; closed: it has ended
            os.write(self._write, b"x")

    @property
    def released(self) -> bool:
        """Whether :meth:`release` has been called."""
        return self._write < 0

    def release(self) -> None:
        """Close the end that is written to."""
        write, self._write = self._write, -1
        os.close(write)

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.recv(4096)
