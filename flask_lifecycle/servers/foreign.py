"""Servers that somebody else started: found, and watched, but not steered.

Under ``waitress-serve`` or ``flask run`` the listener stays open during the drain and the guard refuses new work; what
the server holds beyond what the application has been called for (queued and half-received requests, unflushed answers)
is waited for where the server lets us see it. Nobody publishes the server object, so it is looked for among the
objects of the garbage collector, and only if its module has been imported at all.

Nearly everything here only reads, from the coordinator's thread, attributes that the server's own threads write; a look
that comes at a bad moment is repeated at the next tick.

The exception is the canary; see ``_canary.py``.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .._inflight import Load, RequestInfo
from .._parties import Server

_TICK = 0.02


def find() -> Server | None:
    """The server that carries this process's applications, if it is of a kind that we know."""
    if not _listens():
        return None  # a shell, a migration: spared the search, which takes as long as a request
    waitress = sys.modules.get("waitress.server")
    if waitress is not None:
        found = [server for server in _instances(waitress.BaseWSGIServer) if server.accepting]
        if found:
            return ForeignWaitress(found)
    werkzeug = sys.modules.get("werkzeug.serving")
    if werkzeug is not None and any(_serves(server) for server in _instances(werkzeug.BaseWSGIServer)):
        return ForeignWerkzeug()
    return None


def _listens() -> bool:
    """Whether this process has a listening socket; ``True`` where its descriptors cannot be listed."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return True
    return any(_is_listener(descriptor) for descriptor in descriptors)


def _is_listener(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _serves(server: Any) -> bool:
    """Whether a Werkzeug server is open, and is not our own probe listener. One whose bind failed has no socket."""
    sock = getattr(server, "socket", None)
    return sock is not None and sock.fileno() >= 0 and not hasattr(server, "lifecycle_probes")


def _instances(kind: type) -> Iterator[Any]:
    # type() and not isinstance(): a LocalProxy would answer for what it stands for.
    return (thing for thing in gc.get_objects() if issubclass(type(thing), kind))


class _Foreign:
    """What the coordinator may ask of any of them."""

    name = ""
    ours = False

    def announce(self) -> None:
        """Nothing: its answers are not ours."""

    def stop_accepting(self, timeout: float) -> None:
        """Nothing: whoever opened the listener closes it."""

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Look every 20 ms; there is nobody who would wake us."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while self.unfinished() and time.monotonic() < deadline:
            pause.wait(_TICK)
        return not self.unfinished()

    def unfinished(self) -> Sequence[RequestInfo]:
        return ()

    def load(self) -> Load | None:
        """Nothing that could be seen from outside; what the application runs, its ledger knows."""
        return Load(0)

    def canary(self, done: Callable[[], None]) -> bool | None:
        """Nothing: there is no way in."""
        return None

    def stop(self) -> None:
        """Nothing: the signal is given back to whoever had it."""


class ForeignWaitress(_Foreign):
    """waitress, by ``waitress-serve`` or ``serve()``."""

    name = "waitress"

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers

    def unfinished(self) -> Sequence[RequestInfo]:
        return [info for server in self._servers for channel in _values(server) for info in self._of(channel)]

    def load(self) -> Load:
        now = time.time()
        queued = [channel for pool in self._pools() for channel in _waiting(pool)]
        oldest = max((now - channel.last_activity for channel in queued), default=0.0)
        return pool_load(self._pools(), max(0.0, oldest))

    def canary(self, done: Callable[[], None]) -> bool | None:
        from ._canary import send_through  # few want one

        return send_through([server for server in self._servers if server.accepting], done)

    def _pools(self) -> list[Any]:
        return distinct(server.task_dispatcher for server in self._servers)

    def _of(self, channel: Any) -> Iterator[RequestInfo]:
        age = max(0.0, time.time() - channel.last_activity)
        queued = channel in channel.server.task_dispatcher.queue
        for request in list(channel.requests)[0 if queued else 1 :]:
            yield _info(request, age, "queued")
        if channel.request is not None:
            yield _info(channel.request, age, "receiving")
        elif channel.total_outbufs_len or channel.close_when_flushed:
            yield RequestInfo("-", "-", age, stage="sending")


class ForeignWerkzeug(_Foreign):
    """Werkzeug's development server, by ``flask run`` or ``run_simple``.

    A connection has a thread from its accept on and writes synchronously, so the ledger sees all that can be waited
    for; a silent connection holds such a thread for ever, so the threads themselves cannot be.
    """

    name = "werkzeug"


def pool_load(pools: Sequence[Any], oldest: float) -> Load:
    """The load of waitress' task dispatchers. A thread that is on its way to a queued task is busy already."""
    threads = wanted = 0
    for pool in pools:
        threads += len(pool.threads) - pool.stop_count
        wanted += pool.active_count + len(_waiting(pool))
    return Load(max(0, wanted - threads), threads, min(threads, wanted), oldest)


def _waiting(pool: Any) -> list[Any]:
    """The channels that wait for a worker."""
    return [task for task in pool.queue.copy() if not hasattr(task, "lifecycle_canary")]


def distinct(things: Iterable[Any]) -> list[Any]:
    """Each of these once, also if they cannot be hashed."""
    return list({id(thing): thing for thing in things}.values())


def _values(server: Any) -> list[Any]:
    return list(server.active_channels.copy().values())


def _info(request: Any, age: float, stage: str) -> RequestInfo:
    return RequestInfo(str(getattr(request, "command", "-")), str(getattr(request, "path", "-")), age, stage=stage)
