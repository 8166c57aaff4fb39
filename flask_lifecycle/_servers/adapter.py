"""The base class of all server adapters.

A shutdown drains one server through its adapter, which is attached to the server's own object: the one that
``Lifecycle.run`` has made, or that :mod:`.discovery` has found.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._core.inflight import RequestInfo
from .._core.log import logger
from .._core.server import ALL_CONNECTIONS, Server
from . import sockets
from .listener import STARVED_LINGER, Listener, close_listeners, log_closed

if TYPE_CHECKING:
    from .._core.process import Process

TICK = 0.02  # seconds between two checks of a server that cannot wake us
_DRAIN_TICK = 0.005
_LOOKS_SHARE = 4  # checking a thousand connections takes a while, and the server's threads need the interpreter
STARTED_HERE = "started by flask_lifecycle"
LOCK_PATIENCE = 0.01  # seconds for a lock that is held for a few instructions


class Adapter(Server):
    """What can be asked of any server. A bare ``Adapter`` represents an unknown one."""

    def begin(self, process: Process) -> None:
        """Prepare the server, because the application is about to serve. Called once, in any thread."""

    def serving(self) -> bool:
        """Whether its loop runs in this process; a forked child has copies of its parent's server objects."""
        return True

    def use_probe_workers(self, probe_worker: Callable[[str], str | None]) -> None:
        """Set the function that names the probe worker of a request path. This server has no probe workers."""

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Check every 20 ms, because the server cannot wake us."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while self.unfinished() and time.monotonic() < deadline:
            pause.wait(TICK)
        return not self.unfinished()


class ConnectionAdapter(Adapter):
    """A server whose listeners and connections we see: a shutdown closes the listeners and waits for the connections.

    A subclass lists the connections with their requests, hangs one up, and closes a listener. A connection is
    represented by the same object, or an equal one, at each check. The shutdown's thread checks while the server's own
    threads run, so a check at a bad moment may be wrong; it is repeated at the next tick.

    A connection is in one of six stages: ``silent`` before its first byte and ``idle`` between two requests, where
    nothing is lost by hanging up; ``receiving``, ``queued``, ``running`` and ``sending``, which
    :class:`flask_lifecycle._core.inflight.RequestInfo` names.
    """

    guarantee = ALL_CONNECTIONS
    ours = True

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners
        self._looks: dict[Any, tuple[float, bool]] = {}  # since when a connection is idle, or busy
        self._orders: list[threading.Event] = []  # what the loop was told to do, each set when it is done
        self._linger = sockets.LINGER
        self._lock = threading.Lock()  # guards the next one
        self._closed = False  # whether the listeners are closed, or about to be

    @property
    def _servers(self) -> list[Any]:
        return [listener.server for listener in self._listeners]

    def patience(self) -> float:
        """The number of seconds that a client may be silent while its connection lingers."""
        return self._linger

    # -- of one server ---------------------------------------------------------------------------------------------

    def requests(self) -> Iterable[tuple[Any, Sequence[RequestInfo]]]:
        """The open connections, each with its requests; none where it is silent or idle.

        Lazily, or with another check in :meth:`hang_up`: a request may begin on the last connection while the first
        ones are hung up.
        """
        raise NotImplementedError

    def hang_up(self, connection: Any) -> None:
        """End a connection that was idle at the last check, unless a request has arrived since."""
        raise NotImplementedError

    def close_listener(self, listener: Listener) -> None:
        """Close our copy of a listener, but do not end the server's loop."""
        raise NotImplementedError

    def leave_listener(self, listener: Listener) -> None:
        """Close our copy of a listener, and leave its queue to another process that uses it."""
        self.close_listener(listener)

    def accepting(self) -> Sequence[Listener]:
        """The listeners that a loop accepts from."""
        return self._listeners

    def owner_of(self, listener: Listener) -> str:
        """The other owner of a listener, which keeps its queue; empty if only this process has it."""
        if self.means == STARTED_HERE:
            return "the process that opened it" if listener.given is not None else ""
        return "another process" if sockets.has_other_owners(listener.socket) else ""

    # -- verbs -----------------------------------------------------------------------------------------------------

    def stop_accepting(self, timeout: float) -> None:
        if not self._begin_closing():
            return
        own = []
        for listener in self.accepting():
            owner = self.owner_of(listener)
            if owner:
                self.leave_listener(listener)
                log_closed(f"left to {owner}")
            else:
                own.append(listener)
        close_listeners(own, self.close_listener, timeout, lambda: self._hang_up_idle(STARVED_LINGER))
        self._looks.clear()

    def _begin_closing(self) -> bool:
        """Whether the caller is the first to close the listeners, or to leave them to another process."""
        with self._lock:
            closed, self._closed = self._closed, True
        return not closed

    def order(self) -> threading.Event:
        """An event to be set by the loop when it has begun to track its connections, or has closed a listener.

        The application may hold up the loop for any time. Interleavings, if the drain did not wait for the event: the
        loop has accepted a connection and does not list it yet; the drain sees none, and ends; the loop goes on, and
        the guard refuses the request.
        """
        self._orders.append(threading.Event())
        return self._orders[-1]

    def wait_idle(self, timeout: float, linger: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        self._linger = linger
        while not all(each.is_set() for each in self._orders) and self.serving():
            if time.monotonic() >= deadline:
                return False
            pause.wait(TICK)
        while True:
            began = time.monotonic()
            # A check may miss a connection that the server moves from one list to another meanwhile: check twice.
            if not self._hang_up_idle(linger) and not self._hang_up_idle(linger):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            pause.wait(max(_DRAIN_TICK, _LOOKS_SHARE * (now - began)))

    def _hang_up_idle(self, linger: float) -> bool:
        """Hang up connections idle for ``linger`` seconds; return whether any connection is left."""
        now = time.monotonic()
        before, self._looks = self._looks, {}
        for connection, requests in self.requests():
            idle = not requests
            since, was_idle = before.get(connection, (now, idle))
            since = since if idle == was_idle else now
            self._looks[connection] = since, idle
            if idle and now - since >= linger:
                self.hang_up(connection)
        return bool(self._looks)

    def unfinished(self) -> Sequence[RequestInfo]:
        now, looks = time.monotonic(), self._looks
        return [
            info._replace(age=max(info.age, now - looks.get(connection, (now,))[0]))
            for connection, requests in self.requests()
            for info in requests
        ]

    # -- of a server that ``run`` has started ----------------------------------------------------------------------

    def serve(self) -> None:
        """Serve in the calling thread until :meth:`stop`. Blocks."""
        raise NotImplementedError

    def addresses(self) -> list[str]:
        """The addresses it listens on, as a user would type them."""
        return [sockets.describe(each.socket) for each in self._listeners]

    def listeners(self) -> list[socket.socket]:
        """Its listening sockets, in the order of the addresses; not our duplicates of given ones."""
        return [each.given or each.socket for each in self._listeners]

    def close(self) -> None:
        """Close the listeners of a server that has not served."""
        for listener in self._listeners:
            listener.close_unserved()


def put_ahead(queue: deque[Any], waiting: threading.Condition, task: Any, patience: float = LOCK_PATIENCE) -> bool:
    """Put a task at the head of the queue of a pool of workers; ``False`` if its lock was not free in time.

    :param waiting: by which the pool wakes a worker.
    :param patience: seconds.
    """
    if not waiting.acquire(timeout=patience):
        return False
    try:
        queue.appendleft(task)
        waiting.notify()
    finally:
        waiting.release()
    return True


def attach(
    kind: type[ConnectionAdapter], servers: Sequence[Any], needs: Sequence[tuple[Any, Sequence[str]]]
) -> Adapter | None:
    """The adapter for the servers that were found; ``None`` without servers.

    :param kind: its class, unless the servers lack attributes that the class uses.
    :param needs: these attributes, see :func:`missing`.
    """
    if not servers:
        return None
    lacking = missing(*needs)
    return watched_only(kind.name, lacking) if lacking else kind([Listener(s.socket, server=s) for s in servers])


def missing(*needs: tuple[Any, Sequence[str]]) -> list[str]:
    """The names that an adapter uses and its server lacks.

    :param needs: objects with the names of their attributes; functions with names that occur in their code, which are
        local variables or attributes that the function sets.
    """
    return [name for thing, names in needs for name in names if not _has(thing, name)]


def _has(thing: Any, name: str) -> bool:
    code = getattr(thing, "__code__", None)
    if code is None:
        return hasattr(thing, name)
    return name in (*code.co_names, *code.co_varnames, *code.co_cellvars)


def watched_only(name: str, lacking: Sequence[str]) -> Adapter:
    """The adapter of a server version that lacks attributes its own adapter uses; it has the lowest guarantee."""
    adapter = Adapter()
    adapter.name = name
    adapter.advice = f"more needs {', '.join(map(repr, lacking))}, which this version of {name} does not have"
    return adapter


def warn_of_limit(whose: str, option: str, limit: float | None, process: Process) -> None:
    """Warn if the server's limit is shorter than the grace period; ``None`` means that it has no limit."""
    needed = max(member.settings.grace_period for member in process.applications())
    if limit is not None and limit < needed:
        logger.warning(
            "%s '%s' is %g s, but a shutdown may take %g s; set it to %.0f, or a shorter 'LIFECYCLE_GRACE_PERIOD'.",
            whose, option, limit, needed, -(-needed // 1), extra={"lifecycle_limit": needed},
        )  # fmt: skip
