"""waitress, started by ``run`` or detected: ``waitress-serve``, ``serve()``, ``create_server().run()`` in any thread.

Theory of operation
-------------------

waitress is one I/O loop and a pool of worker threads. The loop accepts, reads, parses and flushes; a worker runs one
request and writes only what the socket takes at once. waitress' own shutdown gives the workers five seconds, cancels
queued requests and ends the loop, which cuts off large responses. We close only the listeners, and the loop goes on
until the last connection has ended.

When a server is found, its connections, new and existing, get our class (``channel.py``), and ``add_task`` sends probes
to dedicated workers (``pool.py``). All else waits for a shutdown, because it costs each request or round of the loop.

All sockets belong to the thread of the loop. A shutdown changes them in thunks, which the loop calls in the middle of a
round. If a thunk closed a descriptor, a new connection might get the same number within that round, and the loop would
read from it and close it. So a listener is replaced by a pipe and closed later, and a connection is closed only if
nothing has arrived. Sockets given by ``sockets=`` stay open, for the process that opened them.

A loop that does not run (between bind and ``run()``, after Ctrl-C, or the parent's in a forked child) calls no thunk:
then nothing is closed, and the guard refuses.

Traps of waitress that this package avoids: ``server.close()`` closes the trigger's pipe while workers still write to
that number; ``MultiSocketServer`` has none of the attributes of a server (the servers are taken from the map);
``connection_limit`` stops accepting (lifted in the drain); ``select`` ends at descriptor 1,024, from where ``run`` uses
``poll``, which costs waitress more for each connection.
"""

from __future__ import annotations

import difflib
import select
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher

from ..._core.inflight import Load, RequestInfo
from .. import bind, sockets
from ..adapter import STARTED_HERE, Adapter, ConnectionAdapter, missing, watched_only
from ..discovery import inside, instances
from ..listener import Listener, log_closed, silence
from .channel import Channel, channel_class, say_close
from .pool import ProbeWorkers, distinct, pool_load, send_through, through_loop, wake

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

NEEDS = (
    (BaseWSGIServer, ("channel_class", "add_task", "accepting")),
    (BaseWSGIServer.__init__, ("trigger", "task_dispatcher", "active_channels")),
)
_SERVER_NEEDS = {"task_dispatcher": ("queue", "queue_cv"), "trigger": ("lock", "thunks", "_closed")}
PATIENCE = 1.0  # a running loop calls a thunk at once, unless its thread gets no time to run
_UNSEEN = 0.1  # if other code than waitress' own runs a loop, no stack shows it between two rounds
_SELECTABLE = 1000  # descriptors that select() can still wait for, with some to spare for the application's own
_POLLED_ROUNDS = 1000  # rounds of the loop that use poll() before the next try with select()
_BACKLOG = 1024  # waitress' default


def find() -> Adapter | None:
    """The adapter for the servers of this process whose listener is open."""
    # One that has been closed, by us or otherwise, may still say that it accepts; it is garbage, but not collected yet.
    servers = [each for each in instances(BaseWSGIServer) if each.accepting and each.socket.fileno() >= 0]
    if not servers:
        return None
    parts = ((getattr(server, part), names) for server in servers for part, names in _SERVER_NEEDS.items())
    lacking = missing(*NEEDS) or missing(*parts)
    if lacking:
        return watched_only("waitress", lacking)
    known = [server.lifecycle_adapter for server in servers if hasattr(server, "lifecycle_adapter")]
    adapter: Waitress = known[0] if known else Waitress()
    adapter.adopt(servers, [sock for server in servers for sock in server.adj.sockets])
    return adapter


class Waitress(ConnectionAdapter):
    """All servers of waitress in the process."""

    name = "waitress"
    ours = False  # before a shutdown we do not know whether the loops run
    lingers = False  # whether what the client still sends is read before a connection is closed, also before a shutdown

    def __init__(self) -> None:
        super().__init__([])
        self.announced = False
        self.draining = False
        self._workers = ProbeWorkers()
        self._running: list[Any] = []  # the servers whose loop runs, in a shutdown

    def adopt(self, servers: Iterable[Any], given: Collection[socket.socket]) -> None:
        """Attach to servers and to their connections. Idempotent. Any thread may call it.

        :param given: the sockets that belong to others.
        """
        for server in [each for each in servers if not hasattr(each, "lifecycle_adapter")]:
            server.lifecycle_adapter = self
            kind = server.channel_class = channel_class(server.channel_class, self)
            server.add_task = self._workers.chooser(server)
            for channel in server.active_channels.copy().values():
                channel.__class__ = kind
            sock = server.socket
            self._listeners = [*self._listeners, Listener(sock, sock if sock in given else None, server)]
            if self.announced:
                say_close(kind)

    def serving(self) -> bool:
        return any(inside(wasyncore.loop, map=server._map) for server in self._servers)

    def use_probe_workers(self, probe_worker: Callable[[str], str | None]) -> None:
        self._workers.name_of = probe_worker

    # -- a shutdown ------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        self.announced = self.lingers = True
        for server in self._servers:
            say_close(server.channel_class)
            server.adj.connection_limit = sys.maxsize if server.adj.asyncore_use_poll else _SELECTABLE
        self._running = self._find_running()
        self.ours = bool(self._running)

    def _find_running(self) -> list[Any]:
        called = {server: threading.Event() for server in self._servers}
        for server, event in called.items():
            through_loop(server.trigger, event.set)
        return [
            server for server, event in called.items() if event.wait(_UNSEEN) or inside(wasyncore.loop, map=server._map)
        ]

    def accepting(self) -> list[Listener]:
        return [listener for listener in self._listeners if listener.server in self._running]

    def owner_of(self, listener: Listener) -> str:
        return "the process that opened it" if listener.given is not None else ""

    def close_listener(self, listener: Listener) -> None:
        server = listener.server

        def close() -> None:
            server.accepting = False
            silence(server.socket)

        self._in_loop(server, close)

    def leave_listener(self, listener: Listener) -> None:
        server = listener.server

        def leave() -> None:
            server.del_channel()  # out of the map
            server.accepting = False

        self._in_loop(server, leave)

    def _in_loop(self, server: Any, function: Callable[[], None]) -> None:
        """Have the loop call a function, and wait for it a while. Then each accepted connection has its channel."""
        called = self.order()

        def call() -> None:
            function()
            called.set()

        if through_loop(server.trigger, call):
            called.wait(PATIENCE)
        else:
            called.set()  # it will not be called

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self.draining = True
        return super().wait_idle(timeout, linger)

    def connections(self) -> list[Channel]:
        servers = self._running if self.announced else self._servers
        return [channel for server in servers for channel in server.active_channels.copy().values()]

    def requests(self) -> Iterator[tuple[Channel, Sequence[RequestInfo]]]:
        queued = {id(task) for pool in self._pools() for task in pool.queue.copy()}
        return ((channel, channel.under_way(id(channel) in queued)) for channel in self.connections())

    def hang_up(self, connection: Channel) -> None:
        through_loop(connection.server.trigger, connection.hang_up_if_idle)

    def stop(self) -> None:
        """End a loop in another thread; the main thread leaves by the ``SystemExit`` that the process raises there."""
        for listener in self.accepting():
            server = listener.server
            if any(ident != threading.main_thread().ident for ident in inside(wasyncore.loop, map=server._map)):
                server.task_dispatcher.set_thread_count(0)
                through_loop(server.trigger, server._map.clear)
                if listener.given is None:
                    listener.socket.close()  # it is a pipe by now

    # -- the pool -------------------------------------------------------------------------------------------------

    def _pools(self) -> list[Any]:
        return distinct(server.task_dispatcher for server in self._servers)

    def load(self) -> Load:
        return pool_load(self._pools())

    def ping(self, done: Callable[[], None]) -> bool | None:
        return send_through([server for server in self._servers if server.accepting], done)


# -- by run -----------------------------------------------------------------------------------------------------------


def create(app: WSGIApplication, host: str | None, port: int | None, options: dict[str, Any]) -> RunningWaitress:
    """Make the server, bound and listening; ``options`` are waitress' own adjustments."""
    known = [name for name, _cast in Adjustments._params]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"waitress has no option '{option}'; did you mean '{near}'?")
    given = tuple(options.get("sockets", ()))
    if bind.has_wildcard(host, port, options):
        # For waitress '::' is IPv6 alone, and '*' two listeners, which port 0 gives two ports.
        bound = bind.bind(host, port, options, options.get("backlog", _BACKLOG))
        options = {name: value for name, value in options.items() if name != "listen"}
        options["sockets"] = [each.socket for each in bound]
    elif not options.keys() & {"listen", "sockets", "unix_socket"}:
        options |= {"host": host or "127.0.0.1", "port": 5000 if port is None else port}
    options.setdefault("asyncore_use_poll", hasattr(select, "poll"))
    return RunningWaitress(app, options, given)


def _parts(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of each server: waitress makes none that has TCP and Unix sockets."""
    if "listen" in options and (unix_socket := options.pop("unix_socket", None)) is not None:
        rest = {name: value for name, value in options.items() if name != "listen"}
        return [options, {**rest, "unix_socket": unix_socket}]
    given = options.get("sockets", ())
    unix = [sock for sock in given if sock.family == socket.AF_UNIX]
    tcp = [sock for sock in given if sock.family != socket.AF_UNIX]
    return [{**options, "sockets": part} for part in (tcp, unix)] if unix and tcp else [options]


def _leave_loop() -> NoReturn:
    raise wasyncore.ExitNow


class RunningWaitress(Waitress):
    """A waitress server that ``run`` has started.

    :param given: those of its listening sockets that belong to others.
    """

    means = STARTED_HERE
    ours = True
    lingers = True

    def __init__(self, app: WSGIApplication, options: dict[str, Any], given: Collection[socket.socket]) -> None:
        super().__init__()
        self._map: dict[int, Any] = {}
        self._ended = False
        self._held_back = False
        self.adopt(self._listen(app, options), given)
        sockets.close_in_children(self)

    def _listen(self, app: WSGIApplication, options: dict[str, Any]) -> list[Any]:
        dispatcher = ThreadedTaskDispatcher()
        for part in _parts(options):
            where = part.get("listen") or part.get("unix_socket") or f"{part.get('host')}:{part.get('port')}"
            try:
                self._adj = create_server(app, map=self._map, _dispatcher=dispatcher, **part).adj
            except OSError as error:
                wasyncore.close_all(self._map, ignore_all=True)
                raise sockets.bind_error(error, str(where)) from None
            except ValueError as error:
                raise ValueError(f"waitress refuses its options: {error}") from None
        dispatcher.set_thread_count(self._adj.threads)  # only now, so that a failure leaves no thread behind
        return [each for each in self._map.values() if isinstance(each, BaseWSGIServer)]

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close."""
        listening = [listener.socket for listener in self._listeners if listener.given is None]
        connected = [channel.socket for channel in self.connections()]
        return [sock for sock in (*listening, *connected) if sock is not None]

    # -- the listeners of a service that restarts in place --------------------------------------------------------

    def hold_back(self) -> None:
        """Accept no connection until :meth:`take_over`. Call it before :meth:`serve`."""
        self._held_back = True
        for server in self._servers:
            server.accepting = False

    def take_over(self, ours: Collection[socket.socket]) -> None:
        """Begin to accept after :meth:`hold_back`. At the end these sockets are ours to close."""
        with self._lock:  # a shutdown may begin meanwhile
            self._held_back = False
            self._listeners = [
                Listener(each.socket, None, each.server) if each.given in ours else each for each in self._listeners
            ]
            for server in self._servers:
                server.accepting = not self._closed
        wake(self._servers[0].trigger)

    def hand_over(self) -> None:
        """Stop accepting, and leave the listeners and their accept queues to another process."""
        if not self._begin_closing():
            return  # too late
        for listener in self._listeners:
            if listener.given is not None:
                self.leave_listener(listener)
            else:
                self.close_listener(listener)
            log_closed("left to another process")

    def stop_accepting(self, timeout: float) -> None:
        if self._held_back:
            self.hand_over()
        super().stop_accepting(timeout)

    # -- the loop -------------------------------------------------------------------------------------------------

    def accepting(self) -> list[Listener]:
        return list(self._listeners)  # if the loop does not run yet, it will

    def _find_running(self) -> list[Any]:
        return self._servers

    def serve(self) -> None:
        # At most a second, so that a signal which another thread took is not left lying.
        timeout = min(1.0, float(self._adj.asyncore_loop_timeout))
        poll = False
        while not self._ended:
            try:
                wasyncore.loop(timeout, poll, self._map, count=_POLLED_ROUNDS if poll else None)
                poll = max(self._map, default=0) >= _SELECTABLE
            except wasyncore.ExitNow:
                break
            except ValueError:  # a descriptor that select() cannot wait for
                if poll or not self._adj.asyncore_use_poll:
                    raise
                poll = True
        self._release()

    def stop(self) -> None:
        self._ended = True
        trigger = self._servers[0].trigger
        trigger.readable = _leave_loop  # the loop asks in each round, and catches nothing
        wake(trigger)

    def close(self) -> None:
        """Close the listeners without having served; while held back, only our copies."""
        for listener in self._listeners:
            if listener.given is None:
                wasyncore.dispatcher.close(listener.server)
                if not self._held_back:
                    sockets.unlink(listener.path, listener.identity)
        self._release()

    def _release(self) -> None:
        """End the threads and close what is left, unless a worker still uses it."""
        for listener in self._listeners:
            if listener.given is not None:
                self._map.pop(listener.socket.fileno(), None)  # those in the map are closed now
        if self.connections():
            return  # a straggler: it may still write to its trigger, and the process is about to leave anyway
        pools = [*self._pools(), *self._workers.pools.values()]
        for pool in pools:
            pool.set_thread_count(0)
        for pool in pools:
            pool.shutdown(timeout=0.2)
        if not any(pool.threads for pool in pools):
            wasyncore.close_all(self._map, ignore_all=True)
