"""Finds the server that runs in this process, and its object.

No server publishes its object, so :func:`find` asks the modules of :data:`KINDS`, each of which searches the objects of
the garbage collector for its server's class. It asks only the modules of imported servers, so a process pays nothing
for servers that it does not use.

With ``init_app`` alone no event reports that the server listens, and a kubelet that sends requests only to the probe
listener would wait forever for a start-up that the first request begins. So a thread waits for the server
(:func:`wait_for_server`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CodeType, CoroutineType, FunctionType
from typing import Any

from .._core.fork import renew_in_children
from .._core.stacks import calls_of, collector_paused
from . import sockets
from .adapter import Adapter

# The module that is imported if a server is in use, and the module of its adapter. If one server runs or imports
# another, the one nearer to the sockets comes first.
KINDS = (
    ("uvicorn.server", "asgi.uvicorn"),
    ("granian.server.mp", "asgi.granian"),
    ("hypercorn.asyncio.run", "asgi.hypercorn"),
    ("uwsgi", "uwsgi"),
    ("mod_wsgi", "mod_wsgi"),
    ("waitress.server", "waitress"),
    ("cheroot.server", "cheroot"),
    ("gevent.pywsgi", "gevent"),
    ("gunicorn.workers.base", "gunicorn.unhooked"),
    ("werkzeug.serving", "werkzeug"),
)

# Pauses between two checks, in seconds: listing the descriptors takes a tenth of a millisecond.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
# About two seconds. A search takes as long as a request. A server binds its listener and makes its object within
# milliseconds, so a listener without an object belongs to something else: a reloader, a master, metrics.
_SEARCHES = 8
# An application may load its models for minutes after init_app. If it takes longer, its first request begins the start.
BOUND = 300.0

# The waiting thread, the thread of run_simple and the first request may search at the same time. If each made an
# adapter, the shutdown would use one and stop the other, and both would derive a handler class for the server, the
# second from that of the first. One after the other, the second search finds the changes of the first. Reentrant,
# because an atexit function may search in a thread that holds it.
searching = threading.RLock()

# The listeners of the parent, in a child that was forked from a parent that serves.
_of_parent: frozenset[int] = frozenset()


def leave_to_parent() -> None:
    """In a forked child: ignore the listeners of the parent, whose servers do not serve here."""
    global _of_parent
    _of_parent |= listeners() - {0}


def _after_fork() -> None:
    global searching
    searching = threading.RLock()  # a thread that the child does not have may hold the old one


renew_in_children(_after_fork)


def find(only: str | None = None) -> Adapter | None:
    """The adapter of the server that runs in this process; ``None`` without a known server.

    :param only: ask only this adapter of :data:`KINDS`.
    """
    if not listens():
        return None  # a shell or a migration does not need the search
    with searching:
        for imported, kind in KINDS:
            if imported in sys.modules and only in (None, kind):
                module = importlib.import_module(f".{kind}", __package__)
                # The server's own thread may close its listener after we have checked that it is open and before we
                # read its address, which then fails. A server that has closed its listener is not searched for anyway.
                with contextlib.suppress(OSError):
                    adapter: Adapter | None = module.find()
                    if adapter is not None:
                        return adapter
    return None


def wait_for_server(wanted: Callable[[], bool], undisturbed: AbstractContextManager[object]) -> bool:
    """Block until a server serves; ``False`` if none does within five minutes, or ``wanted`` returns ``False``.

    :param wanted: whether an application still waits for its server.
    :param undisturbed: held during each check, so that no thread forks in the middle of an import.
    """
    until, pause, never = time.monotonic() + BOUND, FIRST_PAUSE, threading.Event()
    seen, searches, adapter = frozenset[int](), 0, None
    while wanted() and time.monotonic() < until:
        with undisturbed:
            listening = listeners()
            if listening != seen:
                seen, searches, adapter, pause = listening, 0, None, FIRST_PAUSE
            if adapter is None and seen and searches < _SEARCHES:
                searches += 1
                adapter = find()
            if adapter is not None and adapter.serving():
                return True
        never.wait(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)
    return False


# -- listening sockets --------------------------------------------------------------------------------------------


def listens() -> bool:
    """Whether this process has a listening socket; ``True`` if its descriptors cannot be listed."""
    return bool(listeners())


def listeners() -> frozenset[int]:
    """The inodes of this process's listening sockets; a 0 if its descriptors cannot be listed."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return frozenset({0})
    return frozenset(filter(None, map(inode_of_listener, descriptors))) - _of_parent


def inode_of_listener(descriptor: int) -> int | None:
    """The inode of the listening socket with this descriptor; ``None`` if it is something else, or not open."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            return None
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return status.st_ino if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else None
    except OSError:
        return None


@contextlib.contextmanager
def main_listeners() -> Iterator[list[socket.socket]]:
    """Copies of this process's listening sockets, without those of probes; none if they cannot be listed.

    They are closed at the end.
    """
    probes = set()
    for sock in list(sockets.probe_listeners):
        with contextlib.suppress(OSError):  # closed, perhaps meanwhile
            probes.add(os.fstat(sock.fileno()).st_ino)
    found: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as copies:
        for name in sockets.listed("/proc/self/fd"):
            inode = inode_of_listener(int(name))
            if inode is not None and inode not in probes and inode not in found:
                with contextlib.suppress(OSError):  # closed meanwhile
                    found[inode] = copies.enter_context(socket.socket(fileno=os.dup(int(name))))
        yield list(found.values())


# -- objects and calls --------------------------------------------------------------------------------------------


def instances(kind: type) -> list[Any]:
    """The instances of a Python class, subclasses included."""
    # type() and not isinstance(), because a LocalProxy pretends to be its object.
    return [thing for thing in _referrers(*_derived(kind)) if issubclass(type(thing), kind)]


def made_from(code: CodeType) -> list[Any]:
    """The functions and coroutines that run a code object."""
    return [thing for thing in _referrers(code) if issubclass(type(thing), (FunctionType, CoroutineType))]


def _referrers(*things: object) -> list[Any]:
    """The objects that refer to these, also those that ``gc.freeze`` has hidden from the garbage collector.

    We do not walk all objects. Some are tuples that other threads are still building, and a thread that resizes its
    tuple while we hold a reference gets a SystemError, "bad argument to internal function".
    """
    if not gc.get_freeze_count():
        return gc.get_referrers(*things)
    # Users freeze before they fork, so that no collection writes to the pages that workers share. unfreeze() and
    # freeze() only join lists, and get_referrers() only reads, but a collection in between would write. This also
    # freezes objects made since the user's freeze, so the collector never frees cycles of those.
    with collector_paused():
        gc.unfreeze()
        try:
            return gc.get_referrers(*things)
        finally:
            gc.freeze()


def _derived(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _derived(each)


def handshakes(thread: int | None = None) -> list[Any]:
    """The sockets (of the module ``ssl``) in a TLS handshake with a server, in any thread or in this one."""
    handshake = getattr(getattr(sys.modules.get("ssl"), "SSLSocket", None), "do_handshake", None)
    found = [] if handshake is None else [call.variables["self"] for call in calls_of(handshake.__code__, thread)]
    return [sock for sock in found if sock.server_side]  # in other handshakes the application is the client


def inside(function: Any, **having: object) -> list[int]:
    """The threads that run a Python function with these values of local variables."""
    return [
        call.thread
        for call in calls_of(function.__code__)
        if all(call.variables.get(name) is value for name, value in having.items())
    ]
