"""Servers that somebody else started: recognised, watched, and steered as far as they let us.

Each kind has a module here with a function ``find``, which is asked only if a module that the server itself imports is
there: what is not in the process costs nothing. The order of :data:`KINDS` matters where one server carries another,
or imports it: what is nearer to the sockets comes first.

What they find has the verbs of :class:`flask_lifecycle._parties.Server`. One that has nothing to offer for a verb
inherits it from :class:`Found`: the listener stays open during the drain and the guard refuses new work, and the signal
is given back to whoever had it.

Nobody publishes the server object, so it is looked for among the objects of the garbage collector, by one thread at a
time: the look-out and the first request search at the same moment, and if each made an object of its own, one would be
put in place and the other asked to stop. Much here only reads, from the coordinator's thread, attributes that the
server's own threads write; a look that comes at a bad moment is repeated at the next tick.
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
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, FunctionType
from typing import Any, Protocol

from ..._inflight import Load, RequestInfo
from ..._parties import STARTED
from ..._state import logger

_TICK = 0.02

# What the server imports, and the module here that knows it.
KINDS = (
    ("uvicorn.server", "uvicorn"),
    ("granian.server.mp", "granian"),
    ("hypercorn.asyncio.run", "hypercorn"),
    ("uwsgi", "uwsgi"),
    ("mod_wsgi", "mod_wsgi"),
    ("waitress.server", "waitress"),
    ("cheroot.server", "cheroot"),
    ("gevent.pywsgi", "gevent"),
    ("gunicorn.workers.base", "gunicorn"),
    ("werkzeug.serving", "werkzeug"),
)

# Held by who searches; an atexit function may, in a thread that does already.
_searching = threading.RLock()


def _after_fork() -> None:
    global _searching
    _searching = threading.RLock()  # a thread that is not in the child may have had the other


os.register_at_fork(after_in_child=_after_fork)


def find() -> Found | None:
    """The server that carries this process's applications, if it is of a kind that we know."""
    if not listens():
        return None  # a shell, a migration: spared the search, which takes as long as a request
    with _searching:
        for imported, kind in KINDS:
            if imported in sys.modules:
                found: Found | None = importlib.import_module(f".{kind}", __name__).find()
                if found is not None:
                    return found
    return None


def listens() -> bool:
    """Whether this process has a listening socket; ``True`` where its descriptors cannot be listed."""
    return bool(listeners())


def listeners() -> frozenset[int]:
    """The listening sockets of this process, by their inodes; a 0 where its descriptors cannot be listed."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return frozenset({0})
    return frozenset(filter(None, map(_listener, descriptors)))


def _listener(descriptor: int) -> int | None:
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            return None
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return status.st_ino if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else None
    except OSError:
        return None


def has_other_owners(sock: socket.socket) -> bool:
    """Whether another process has a listener as well, for whom it would be deaf for good: systemd, or a relative."""
    if "LISTEN_PID" in os.environ or "LISTEN_FDS" in os.environ:
        return True
    link = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    mine = str(os.getpid())
    return any(link in _links(pid) for pid in _listed("/proc") if pid.isdecimal() and pid != mine)


def _links(pid: str) -> Iterator[str]:
    for name in _listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{name}")


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # not ours, or gone
        return []


def instances(kind: type) -> Iterator[Any]:
    """The objects of a class or of one derived from it."""
    # type() and not isinstance(): a LocalProxy would answer for what it stands for.
    return (thing for thing in gc.get_objects() if issubclass(type(thing), kind))


def inside(function: FunctionType, **having: object) -> bool:
    """Whether a thread of this process is in a Python function whose local variables have these values."""
    return any(
        frame.f_code is function.__code__ and all(frame.f_locals.get(name) is value for name, value in having.items())
        for innermost in sys._current_frames().values()
        for frame in _outwards(innermost)
    )


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Carried(Protocol):
    """The process that a server carries, as the server sees it."""

    coordinator: Any

    def take_signals(self) -> None:
        """Take over the signals once more, where the server has installed its own after ours. For the main thread."""

    def signalled(self, signum: int) -> None:
        """Take a signal that somebody else's handler has had; for a handler in the main thread."""

    def stop(self, reason: str, signum: int | None = None, *, delay: bool) -> None:
        """Begin the shutdown."""

    def hold(self) -> None:
        """The server has returned, and no ``atexit`` function will run: see the shutdown through. Blocks."""

    def members(self) -> Sequence[Any]:
        """The applications in it."""


def warn_of_limit(whose: str, option: str, limit: float | None, process: Carried) -> None:
    """Say what a limit of the server's is to be if it is shorter than the grace period; ``None``: there is none."""
    needed = max(member.settings.grace_period for member in process.members())
    if limit is not None and limit < needed:
        logger.warning(
            "%s '%s' is %g s, and a stop may take %g s; set it to %.0f, or a shorter 'LIFECYCLE_GRACE_PERIOD'.",
            whose, option, limit, needed, -(-needed // 1), extra={"lifecycle_limit": needed},
        )  # fmt: skip


class Found:
    """What the coordinator may ask of any of them; see :class:`flask_lifecycle._parties.Server`."""

    name = ""
    means = "found among the objects of this process"
    promise = STARTED
    advice = ""
    ours = False
    stays = False  # whether a process that an operator has drained waits to be stopped, and is not replaced

    def begin(self, process: Carried) -> None:
        """The application is about to serve: put in place what has to be there. Called once, in any thread."""

    def serving(self) -> bool:
        """Whether its loop runs by now, and here: a forked child has its parent's server among its objects."""
        return True

    def use_lanes(self, lane: Callable[[str], str | None]) -> None:
        """What names the lane of a request path that must not queue behind work. Nothing: it has no lanes."""

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

    def end(self) -> bool:
        """Have it return from its loop as if it had the signal; ``False`` where that is to be given back."""
        return False
