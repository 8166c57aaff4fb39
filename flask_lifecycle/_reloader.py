"""``run_simple`` and its reloader: which of its processes this is, and what the reloader's parent does in a stop.

``run_simple(use_reloader=True)`` binds the listener, and then starts itself once more. The *parent* waits in
``subprocess.call``; the *child* inherits the listener and serves, in a thread, while its main thread looks for changes.
When a file has changed the child leaves with code 3 and the parent starts the next. Both have imported the application,
so both have called ``init_app``, and in both ``run_with_reloader`` then puts its own handler in the place of ours: it
raises ``SystemExit``, at which ``subprocess.call`` kills the child.

Which of the two a process is, its main thread shows: ``run_simple`` is on its stack, with its argument, from the moment
the listener is there. (The environment alone does not tell: ``WERKZEUG_RUN_MAIN`` is passed on to whatever a child
starts.) The handlers are taken back as soon as they have been replaced.

The parent has nothing to drain. It hands a stop on to the child, closes its own copy of the listener, which would keep
the port open behind the child's back, and goes on to wait in ``subprocess.call``, so that the child's exit code is its
own. A child that is still being imported would die of the signal: the parent waits until the child handles it. The
child that comes next, where one has just left for a change, gets it as well, and serves what is in the queue before
it leaves.

Ctrl-C reaches both. The parent cannot know whether the child has had it, so it hands it on as SIGTERM; in a child of
the reloader only a signal of the same number is a second one that forces the exit.

SIGTERM to the child alone: the child tells the parent by SIGURG, which is ignored wherever it has no handler, that the
listener is to be closed. A SIGURG may come for other reasons (``_signals.py``), so what counts is that the child has
made the listener non-blocking, which is seen in the parent as well: both have the same open file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ALONE, PARENT, CHILD = "alone", "parent", "child"

# So long the child has for its own SIGINT from the terminal, so that its report names what the user has pressed.
_TERMINAL_FIRST = 0.1
_TICK = 0.01


def role() -> str:
    """Whether this process is the parent or the child of a reloader; ``alone`` for ``run_simple`` without one.

    Empty where the main thread is not inside of ``run_simple``.
    """
    serving = sys.modules.get("werkzeug.serving")
    for frame in _main_stack() if serving is not None else ():
        if frame.f_code is serving.run_simple.__code__:  # type: ignore[union-attr]
            if not frame.f_locals.get("use_reloader"):
                return ALONE
            return CHILD if os.environ.get("WERKZEUG_RUN_MAIN") == "true" else PARENT
    return ""


def _main_stack() -> Iterator[FrameType]:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


def has_replaced(signum: int) -> bool:
    """Whether the reloader has put its handler in the place of whoever had a signal."""
    return getattr(signal.getsignal(signum), "__module__", None) == "werkzeug._reloader"


def child_begins() -> bool:
    """Whether this is a reloader's child, which has inherited a listener and is about to serve."""
    descriptor = os.environ.get("WERKZEUG_SERVER_FD", "")
    if os.environ.get("WERKZEUG_RUN_MAIN") != "true" or not descriptor.isdecimal():
        return False
    try:
        with socket.socket(fileno=os.dup(int(descriptor))) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def forks_to_answer() -> bool:
    """Whether the calling thread forks, or has just been forked, to answer one request (``processes=``)."""
    kind = getattr(sys.modules.get("socketserver"), "ForkingMixIn", None)
    frame: FrameType | None = sys._getframe() if kind is not None else None
    while frame is not None:
        if frame.f_code is kind.process_request.__code__:  # type: ignore[union-attr]
            return True
        frame = frame.f_back
    return False


def tell_parent() -> None:
    """In a child: have the parent close its copy of the listener."""
    with contextlib.suppress(OSError):
        os.kill(os.getppid(), signal.SIGURG)


class Parent:
    """The parent's part of a stop.

    :param grace: seconds after which the child is killed, if need be.
    :param leave: makes the main thread leave, which kills the child that it waits for.
    """

    def __init__(self, grace: Callable[[], float], leave: Callable[[], object]) -> None:
        self._grace = grace
        self._leave = leave
        self._signals = 0
        self._again = threading.Event()

    def receive(self, signum: int) -> None:
        """Hand a signal on to the child, now or as soon as it can be. Does not block."""
        if signum == signal.SIGURG:
            close_listener(if_child_does=True)
            return
        self._signals += 1
        if self._signals == 1:
            threading.Thread(target=self._stop, args=(signum,), name="lifecycle-reloader", daemon=True).start()
        else:
            self._again.set()

    def _stop(self, signum: int) -> None:
        end = time.monotonic() + self._grace()
        if signum == signal.SIGINT:
            self._again.wait(_TERMINAL_FIRST)
        told = None
        while time.monotonic() < end:
            child = _child()
            if child is not None and told not in (None, child):
                self._leave()  # it left for a change at the same moment, and the next has no listener any more
                return
            if child is not None and (self._again.is_set() or (told is None and _handles(child.pid))):
                self._again.clear()
                told = child
                child.send_signal(signal.SIGTERM)
                close_listener()
            self._again.wait(_TICK)
        child = _child()
        if child is not None:
            child.kill()


def _child() -> Any:
    """The process that the main thread waits for, if it does."""
    import subprocess  # the reloader has

    for frame in _main_stack():
        if frame.f_code is subprocess.call.__code__:
            return frame.f_locals.get("p")
    return None


def _handles(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; ``True`` where nobody tells."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return True  # it is that of another namespace, where the number is another process's
        with open(f"/proc/{pid}/status") as status:
            caught = next(line.split()[1] for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def close_listener(*, if_child_does: bool = False) -> None:
    """In the parent: close its copy of the listener, which the child has a descriptor of its own for."""
    serving = sys.modules["werkzeug.serving"]
    for frame in _main_stack():
        if frame.f_code is serving.run_simple.__code__:
            server = frame.f_locals.get("srv")
            if server is None or server.socket.fileno() < 0:
                return
            if not if_child_does or not os.get_blocking(server.socket.fileno()):
                server.socket.close()
