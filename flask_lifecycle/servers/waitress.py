"""waitress: run it, and stop it without losing a request.

Theory of operation
-------------------

waitress is one I/O loop and a pool of worker threads. The loop accepts, reads, parses and flushes; a worker runs one
request and writes only what the socket takes at once. What waitress does on its way out (five seconds for the
workers, queued work cancelled, the loop gone, so that larger answers are cut) is therefore never used: the loop is our
own, it stays alive until the last channel has gone, and only the listening sockets are closed before.

All sockets belong to the loop, which runs in the main thread. The coordinator's verbs come from another thread: they
are put on a queue and a byte in the waker's pipe makes the loop look at it. Between ticks the loop runs what was
posted, takes closing listeners a step further, and, during a drain, scans its channels.

A channel is *busy* while it has parsed ``requests`` (running or queued), a part of a ``request``, unflushed output, or
while bytes wait in the kernel in either direction: unread ones are a request that we have been handed, unacknowledged
ones an answer that could die with this network namespace. One that is not busy is hung up after the linger. The
order of reading matters, because a worker ends its request meanwhile: it appends its output (or sets
``close_when_flushed``) before it takes the request off the list, so who finds the list empty finds the output.

``Connection: close``: from the announcement on, every answer says so, and waitress then closes the connection after
it. But closing also discards requests that were pipelined behind, so an answer says close only if no further
request is parsed, partly parsed or unread in the kernel. The application cannot say it (waitress answers 500); a task
class can.

The farewell: closing a socket with unread input sends a reset, which destroys the end of an answer that the client is
still reading. A channel that wants to close with all its output flushed is shut down for writing, then read until the
client has closed its side too, and only then closed; at the latest after two seconds, or, in a drain, a linger after
the client has acknowledged everything.

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
import difflib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, UnixWSGIServer, create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from .. import _sockets
from .._audience import MOST_HELD, WATCH
from .._inflight import Load, RequestInfo
from .._parties import FULL
from . import _closing
from ._canary import Canary, send_ahead
from ._pools import pool_load

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# The upper bound on what a lost wake-up could cost; all that a drain waits for does wake the loop.
_DRAIN_TICK = 0.05
# Of no logger's tree, so that nobody hears what is said to it.
_UNHEARD = logging.Logger("waitress.queue", logging.CRITICAL)


def create(
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Callable[[str], str | None],
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

    def __init__(self, app: WSGIApplication, lane: Callable[[str], str | None], options: dict[str, Any]) -> None:
        self.announced = False
        self.farewells: set[_Channel] = set()
        self.last_accept = 0.0
        self._map: dict[int, Any] = {}
        self._given: Collection[socket.socket] = tuple(options.get("sockets", ()))
        self._unix: dict[BaseWSGIServer, tuple[str, tuple[int, int] | None]] = {}
        self._listeners = self._listen(app, options)
        self._adj = self._listeners[0].adj
        self._dispatcher = self._listeners[0].task_dispatcher
        self._find_lane = lane
        self._lanes: dict[str, ThreadedTaskDispatcher] = {}
        self._lanes_lock = threading.Lock()  # guards the making of a lane
        self._waker = _Waker(self._map)
        self._posted: deque[Callable[[], None]] = deque()
        _sockets.close_in_children(self)
        self._closing: list[_closing.ClosingListener] = []
        self._closed = threading.Event()
        self._held_back = False  # nobody is accepted: the listeners are another process's, as yet or from now on
        self._linger: float | None = None  # not None: a drain is on
        self._next_look = 0.0  # seconds until the next scan must come, if nothing wakes the loop before
        self._idle = threading.Event()
        self._ended = False

    def _listen(self, app: WSGIApplication, options: dict[str, Any]) -> list[BaseWSGIServer]:
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
        listeners = [o for o in self._map.values() if isinstance(o, BaseWSGIServer)]
        for listener in listeners:
            listener.channel_class = type("_Channel", (_Channel,), {"owner": self})
            setattr(listener, "add_task", self._add_task)  # noqa: B010  a method on one instance
            if not self._is_given(listener):
                self._note_path(listener)
        return listeners

    def _note_path(self, listener: BaseWSGIServer) -> None:
        """Remember which file is to be removed with a Unix socket."""
        if listener.socket.family == socket.AF_UNIX:
            path = os.fsdecode(listener.socket.getsockname())
            self._unix[listener] = (os.path.abspath(path), _sockets.socket_identity(path))

    def _is_given(self, listener: BaseWSGIServer) -> bool:
        return any(listener.socket is given for given in self._given)

    # -- verbs, from any thread but the loop's --------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        listening = [listener.socket for listener in self._listeners if not self._is_given(listener)]
        return [sock for sock in (*listening, *(channel.socket for channel in self._channels())) if sock is not None]

    def addresses(self) -> list[str]:
        return [_sockets.describe(listener.socket) for listener in self._listeners]

    @property
    def draining(self) -> bool:
        """Whether the drain is on, and every connection is on its way out."""
        return self._linger is not None

    def listeners(self) -> list[socket.socket]:
        return [listener.socket for listener in self._listeners]

    def hold_back(self) -> None:
        self._held_back = True
        for listener in self._listeners:
            listener.accepting = False

    def take_over(self, ours: Collection[socket.socket]) -> None:
        self._post(lambda: self._take_over(ours))

    def hand_over(self) -> None:
        self._post(self._hand_over)

    def announce(self) -> None:
        self.announced = True  # read by the workers

    def stop_accepting(self, timeout: float) -> None:
        self._post(lambda: self._begin_closing(timeout))
        self._closed.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self._post(lambda: setattr(self, "_linger", linger))
        return self._idle.wait(timeout)

    def unfinished(self) -> list[RequestInfo]:
        queued = {id(channel) for channel in self._dispatcher.queue.copy()}
        return [info for channel in self._channels() for info in channel.unfinished(id(channel) in queued)]

    def load(self) -> Load:
        now = time.monotonic()
        began = [channel.work_since for channel in self._channels() if channel.requests]
        oldest = max((now - since for since in began if since is not None), default=0.0)
        return pool_load([self._dispatcher], oldest)

    def canary(self, done: Callable[[], None]) -> bool:
        return send_ahead(self._dispatcher, Canary(lambda: self._post(done)))

    def stop(self) -> None:
        self._post(lambda: setattr(self, "_ended", True))

    def _post(self, function: Callable[[], None]) -> None:
        self._posted.append(function)
        self._waker.wake()

    # -- the loop -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until :meth:`stop`, in the calling thread."""
        use_poll = self._adj.asyncore_use_poll
        while not self._ended:
            wasyncore.loop(timeout=self._tick(), use_poll=use_poll, map=self._map, count=1)
            while self._posted:
                self._posted.popleft()()
            if self._closing:
                self._step_listeners()
            if self._linger is not None:
                self._scan(self._linger)
            elif self.farewells:
                self._end_farewells(_sockets.FAREWELL)
        self._release()

    def close(self) -> None:
        """Let go of everything without having served."""
        for listener in self._listeners:
            if not self._is_given(listener):
                wasyncore.dispatcher.close(listener)
            if not self._held_back:
                _sockets.unlink(*self._unix.get(listener, (None, None)))
        self._release()

    def _tick(self) -> float:
        if self._closing:
            return _closing.CLOSING_TICK
        if self._linger is not None:
            return self._next_look
        # At most a second, so that a signal which another thread took is not left lying.
        return min(0.5 if self.farewells else 1.0, float(self._adj.asyncore_loop_timeout))

    def _channels(self) -> list[_Channel]:
        return [channel for listener in self._listeners for channel in listener.active_channels.copy().values()]

    def _add_task(self, channel: _Channel) -> None:
        """Choose the lane of a channel's next request. Called with its requests_lock held, by the loop or a worker."""
        request = channel.requests[0]
        # Nothing that the middleware would not take for a probe: else work could get into the lane. (A check's own URL,
        # asked by somebody who may not see it, is answered by the application; it has a lane apart from the probes'.)
        path: str = getattr(request, "path", "").removeprefix(self._adj.url_prefix)
        name = self._find_lane(path)
        dispatcher = self._dispatcher if name is None or request.command not in ("GET", "HEAD") else self._lane(name)
        channel.work_since = time.monotonic() if dispatcher is self._dispatcher else None
        dispatcher.add_task(channel)

    def _lane(self, name: str) -> ThreadedTaskDispatcher:
        with self._lanes_lock:
            if name not in self._lanes:
                lane = self._lanes[name] = ThreadedTaskDispatcher()
                # Its warnings would be taken for the work's queue: a new thread counts as busy until it waits.
                lane.queue_logger = _UNHEARD
                lane.set_thread_count(MOST_HELD if name == WATCH else 1)
            return self._lanes[name]

    def _take_over(self, ours: Collection[socket.socket]) -> None:
        self._given = [sock for sock in self._given if sock not in ours]
        self._held_back = False
        for listener in self._listeners:
            listener.accepting = True
            if not self._is_given(listener):
                self._note_path(listener)

    def _hand_over(self) -> None:
        """Between two ticks, so what has been accepted has its channel; what has not is still in the kernel's queue."""
        if self._closing or self._closed.is_set():
            return  # too late
        self.hold_back()
        for listener in self._listeners:
            if not self._is_given(listener):
                wasyncore.dispatcher.close(listener)  # our copy: a listener is closed with its last one
            _closing.log_closed("left to another process")
        self._closed.set()

    def _begin_closing(self, patience: float) -> None:
        if self._held_back:
            self._hand_over()
            return
        for listener in self._listeners:
            if self._is_given(listener):
                # Whoever gave it goes on using it, or hands it to the next process: what waits in it is theirs.
                listener.del_channel()
                listener.accepting = False
                _closing.log_closed("left to its giver")
                continue
            path, identity = self._unix.get(listener, (None, None))
            self._closing.append(
                _closing.ClosingListener(
                    listener.socket,
                    accept=lambda listener=listener: self._accept(listener),  # type: ignore[misc]
                    close=lambda listener=listener: wasyncore.dispatcher.close(listener),  # type: ignore[misc]
                    last_accept=lambda: self.last_accept,
                    path=path,
                    identity=identity,
                    patience=patience,
                )
            )
        if not self._closing:
            self._closed.set()

    def _accept(self, listener: BaseWSGIServer) -> bool:
        before = len(listener.active_channels)
        listener.handle_accept()
        return len(listener.active_channels) > before

    def _step_listeners(self) -> None:
        self._closing = [listener for listener in self._closing if not listener.step()]
        if not self._closing:
            self._closed.set()

    def _scan(self, linger: float) -> None:
        """One look at every channel of a drain: hang up the idle ones, and say so when there is none left."""
        now = time.monotonic()
        self._next_look = _DRAIN_TICK
        for channel in self._channels():
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
        if not self._closing and self._closed.is_set() and not self._channels():
            self._idle.set()

    def _end_farewells(self, patience: float) -> None:
        now = time.monotonic()
        for channel in list(self.farewells):
            channel.end_farewell(now, patience, draining=self.draining)

    def _release(self) -> None:
        """End the threads and close what is left, unless a worker is still at work with it."""
        for listener in filter(self._is_given, self._listeners):
            listener.del_channel()  # out of the map, of which everything is closed now
            listener.accepting = False
        if self._channels():
            return  # a straggler: it may still write to its trigger, and the process is about to leave anyway
        dispatchers = {self._dispatcher, *self._lanes.values()}
        for dispatcher in dispatchers:
            dispatcher.set_thread_count(0)
        for dispatcher in dispatchers:
            dispatcher.shutdown(timeout=0.2)
        if not any(dispatcher.threads for dispatcher in dispatchers):
            wasyncore.close_all(self._map, ignore_all=True)
            self._waker.release()


class _Waker(wasyncore.file_dispatcher):  # type: ignore[misc]
    """A pipe in the loop's map; a byte in it ends the loop's sleep."""

    def __init__(self, channel_map: dict[int, Any]) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        super().__init__(read, map=channel_map)
        os.close(read)  # file_dispatcher has made its own duplicate

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full: the loop will wake; closed: it has ended
            os.write(self._write, b"x")

    def release(self) -> None:
        write, self._write = self._write, -1
        os.close(write)

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.recv(4096)


class _ClosingTask:
    """Mixed into waitress' tasks: says ``Connection: close`` where the drain has begun and nothing waits behind."""

    def build_response_header(self) -> bytes:
        channel: _Channel = self.channel  # type: ignore[attr-defined]
        request = self.request  # type: ignore[attr-defined]
        channel.last_request = request
        if channel.owner.announced and channel.last_in_line():
            # HTTP/1.0 with keep-alive would be told Keep-Alive as well.
            request.headers.pop("CONNECTION", None)
            self.set_close_on_finish()  # type: ignore[attr-defined]
        header: bytes = super().build_response_header()  # type: ignore[misc]
        return header


class _WorkTask(_ClosingTask, WSGITask):  # type: ignore[misc]
    def execute(self) -> None:
        try:
            super().execute()
        except Exception:
            raise
        except BaseException as error:
            # waitress lets a SystemExit go by and keeps its request on the channel for ever: unanswered, and in the
            # way of every drain. As an ordinary exception it is answered with 500.
            raise RuntimeError(f"the application raised {type(error).__name__}") from error


class _RefusalTask(_ClosingTask, ErrorTask):  # type: ignore[misc]
    pass


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. Except for ``last_in_line`` and ``unfinished``, for the loop's thread only."""

    owner: ClassVar[Waitress]
    task_class = _WorkTask
    error_task_class = _RefusalTask
    saying_farewell = False
    heard_all = False
    farewell_began = last_heard = 0.0
    idle_since: float | None = None
    last_request: Any = None
    work_since: float | None = None  # when its request was given to the pool; None: to the lane of a probe

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owner.last_accept = time.monotonic()

    # -- what it is doing -----------------------------------------------------------------------------------------

    def receiving(self) -> bool:
        """Whether a part of a request is here; the line end that some clients send after a body is none."""
        request = self.request
        return request is not None and bool(request.headers_finished or request.header_plus.strip())

    def busy(self) -> bool:
        """Whether a request or an answer is on its way through this connection (the order matters: see top)."""
        return bool(
            self.requests
            or self.close_when_flushed
            or self.will_close
            or self.total_outbufs_len
            or self.receiving()
            or _sockets.has_input(self.socket)
            or _sockets.unsent(self.socket)
        )

    def last_in_line(self) -> bool:
        """Whether no request waits behind the one that is being answered. Called by the worker that answers it."""
        with self.requests_lock:
            sock = self.socket
            return len(self.requests) <= 1 and not self.receiving() and not (sock and _sockets.has_bytes(sock))

    def unfinished(self, queued: bool) -> Iterable[RequestInfo]:
        """What is lost if the process leaves now, less what an application is running."""
        age = max(0.0, time.time() - self.last_activity)
        requests = list(self.requests)
        for request in requests if queued else requests[1:]:
            yield _info(request, age, "queued")
        if self.receiving():
            yield _info(self.request, age, "receiving")
        elif not requests and (self.total_outbufs_len or (self.socket and _sockets.unsent(self.socket))):
            yield _info(self.last_request, age, "sending")

    # -- how it ends ----------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Close at once: for a connection on which nothing is under way."""
        _sockets.hang_up(self.socket)
        super().handle_close()

    def handle_close(self) -> None:
        flushed = self.connected and not self.requests and not self.total_outbufs_len
        if flushed and not self.saying_farewell and self.will_close and _sockets.half_close(self.socket):
            self.say_farewell()
        elif flushed and not self.heard_all and self.owner.draining and _sockets.unsent(self.socket):
            # The client has shut down its side, and still reads the answer.
            self.heard_all = True
            self.say_farewell()
        else:
            super().handle_close()

    def say_farewell(self) -> None:
        self.saying_farewell = True
        self.farewell_began = self.last_heard = time.monotonic()
        self.owner.farewells.add(self)

    def del_channel(self, map: dict[int, Any] | None = None) -> None:  # noqa: A002  waitress' own name
        self.owner.farewells.discard(self)
        super().del_channel(map)

    def end_farewell(self, now: float, patience: float, draining: bool) -> None:
        """Close if the client has had its time. In a drain that begins when it has acknowledged everything."""
        if draining and _sockets.unsent(self.socket):
            self.last_heard = now
        elif (
            self.heard_all or now - self.last_heard >= patience or now - self.farewell_began >= _sockets.FAREWELL_IN_ALL
        ):
            self.hang_up()

    def readable(self) -> bool:
        return not self.heard_all if self.saying_farewell else bool(super().readable())

    def writable(self) -> bool:
        return not self.saying_farewell and bool(super().writable())

    def handle_read(self) -> None:
        if not self.saying_farewell:
            super().handle_read()
            return
        try:
            if self.recv(65536):  # thrown away; an end of file closes
                self.last_heard = time.monotonic()
        except OSError:
            self.hang_up()


def _info(request: Any, age: float, stage: str) -> RequestInfo:
    method = getattr(request, "command", None) or "-"
    return RequestInfo(str(method), str(getattr(request, "path", "") or "-"), age, stage=stage)
