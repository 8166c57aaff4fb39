"""Signals under ``flask run``, ``app.run()`` and ``run_simple``, with and without Werkzeug's reloader.

``run_simple`` binds its listener after ``init_app``, and its reloader then replaces our signal handlers. No event
reports either, so a thread checks one environment variable until ``run_simple`` runs (:class:`RunSimple`). The process
then serves, or it is the reloader's parent, which passes signals on to the process that serves (:class:`Parent`).

``run_simple(use_reloader=True)`` binds the listener and starts the program a second time. The *parent* waits in
``subprocess.call``. The *child* inherits the listener and serves in a thread, while its main thread watches the source
files. When a file changes, the child exits with code 3 and the parent starts the next child. Both import the
application, so both call ``init_app``. In both, ``run_with_reloader`` then replaces our handler with one that raises
``SystemExit``, at which ``subprocess.call`` in the parent kills the child. We install ours again as soon as that has
happened.

The main thread's stack shows the role of a process: ``run_simple`` is on it, with its argument, as soon as the listener
exists. ``WERKZEUG_RUN_MAIN`` alone does not show it, because every process that a child starts inherits that variable.

The parent has nothing to drain. It passes the signal on to the child and closes its own copy of the listener, which
would keep the port open after the child has closed it. It then keeps waiting in ``subprocess.call``, so it exits with
the child's exit code. The signal would kill a child that is still importing the application, and Werkzeug's handler
would end one at once, so the parent waits until the child has our handler. The child shows that by owning the listener
(``F_SETOWN``, which means nothing else there): both have the same open file. If a child has just exited for a code
change, the next one gets the signal, and answers the connections in the listener's queue before it exits.

Ctrl-C reaches both processes. The parent cannot know whether the child has received it, so it passes it on as SIGTERM.
Under the reloader, only a second signal of the same number forces the child's exit.

If SIGTERM reaches the child alone, the child sends SIGURG, which a process without a handler ignores, so that the
parent closes its copy of the listener. SIGURG has other uses too (``_core/signals.py``), so the parent first checks
that the child has made the listener non-blocking. The parent sees that because both have the same open file.
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

from ..._core.report import signal_name
from ..._core.shutdown import StopRequest
from ..._core.stacks import callers, calls_of
from ..discovery import inode_of_listener

if TYPE_CHECKING:
    from ..._core.process import Process

ALONE, PARENT, CHILD = "alone", "parent", "child"

# Seconds between two looks for run_simple, when it is about to serve and otherwise.
_SOON = 0.005
_LONGEST_PAUSE = 0.25
_TERMINAL_FIRST = 0.1  # seconds for the child to get SIGINT from the terminal, so that its report names that signal
_TICK = 0.01
_TAKEN_WITHIN = 10.0  # seconds for the watcher to take a server that another thread has found


class RunSimple:
    """What this process has of ``run_simple``, and its signals there.

    :param find: finds the server.
    :param on_close: called in the main thread before it closes the server, with whether this is a reloader's child.
    """

    def __init__(self, process: Process, find: Callable[[], Any | None], on_close: Callable[[bool], None]) -> None:
        self.server: Any | None = None
        self.parent: Parent | None = None  # in the reloader's parent
        self.reloads = False  # whether this is a reloader's child
        self._process = process
        self._find_server = find
        self._on_close = on_close
        self._watcher: threading.Thread | None = None
        self._postponed: int | None = None  # a signal that arrived before the child served

    def watch(self) -> None:
        """Start the thread that waits for ``run_simple``, unless it runs. Call it in the main thread only."""
        if self._watcher is None or not self._watcher.is_alive():
            self._process.relay.take_sigurg()
            self._watcher = threading.Thread(target=self._watch, name="lifecycle-finder", daemon=True)
            self._watcher.start()

    def await_server(self) -> None:
        """Wait until the watcher has taken the server. The thread that found it calls this before the start-up.

        Interleavings, for a start-up that fails and ends the main thread: the watcher has replaced ``server_close``,
        which keeps the descriptor for the reloader's thread. Or the server has closed it, and that thread, which begins
        its loop then, prints a traceback.
        """
        if self._watcher is not None and role() in (ALONE, CHILD) and self._find_server() is not None:
            self._watcher.join(_TAKEN_WITHIN)

    def await_start(self) -> None:
        """With ``processes=``, wait for the start-up before a fork; each process would run its own start-up."""
        if self._watcher is None or not forks_for_request() or not role():
            return
        pause = threading.Event()
        while not self._process.shutdown.begun:
            started = all(member.startup.served_since is not None for member in self._process.applications())
            if started and not self._watcher.is_alive():
                return
            pause.wait(_SOON)

    def forked_for_request(self) -> bool:
        """Whether this process has just been forked to answer one request."""
        return self.server is not None and forks_for_request()

    def signals(self) -> set[int]:
        """The signals that stop an application here."""
        configured = [member.settings.signals for member in self._process.applications()]
        default = (signal.SIGTERM, signal.SIGINT)
        return {signum for signals in configured for signum in (default if signals is None else signals)}

    def postpones(self, signum: int) -> bool:
        """Postpone a signal that arrives in a reloader's child before it serves; ``False`` in other processes.

        This child has to answer the connections in the listener's queue.
        """
        if self.server is not None or os.environ.get("WERKZEUG_RUN_MAIN") is None:
            return False
        if self._process.owner or not is_starting_child():
            return False
        self._postponed = signum
        return True

    def _watch(self) -> None:
        pause, seconds = threading.Event(), _SOON
        process = self._process
        while process.relay.installed and not (process.owner or process.shutdown.begun):
            # run_simple sets the variable. Under other servers this look is the only cost.
            if os.environ.get("WERKZEUG_SERVER_FD") is None or not self._take_over():
                seconds = min(seconds * 1.2, _LONGEST_PAUSE)
            elif self.server is not None or self.parent is not None:
                return
            else:
                seconds = _SOON
            pause.wait(seconds)

    def _take_over(self) -> bool:
        """Take the server and the signals as soon as they are there; ``False`` if that is not about to happen."""
        own = role()
        if not own:
            return is_starting_child()
        relay, wanted = self._process.relay, self.signals()
        if own != ALONE:
            if getattr(signal.getsignal(signal.SIGTERM), "__module__", None) != "werkzeug._reloader":
                return True
        elif signal.getsignal(signal.SIGINT) != signal.default_int_handler:
            wanted = set()  # the program handles Ctrl-C itself
        else:
            wanted &= {signal.SIGINT}
        if own == PARENT:
            self.parent = Parent(self._process)
        elif not self._take_server(own == CHILD):
            return False
        if wanted:
            relay.run_in_main_by_sigurg(lambda: relay.replace(wanted))
        if own == CHILD and self.server is not None:
            self._await_startups()
            self.server.own_listeners()
        if self._postponed is not None:
            self._process.begin(StopRequest(signal_name(self._postponed), self._postponed))
        return True

    def _await_startups(self) -> None:
        """Wait for the start-up before the parent's signal or a postponed one, for half of the grace period at most.

        Interleavings: the shutdown begins after the start-up, and answers the connections in the queue. Or it
        begins while the start-up runs: then the application refuses all of them, because it has not started.
        """
        members = self._process.applications()
        end = time.monotonic() + min((member.settings.grace_period for member in members), default=0.0) / 2
        for member in members:
            member.startup.over.wait(max(0.0, end - time.monotonic()))

    def _take_server(self, reloads: bool) -> bool:
        server = self._find_server()
        if server is None:
            return False
        self.reloads = reloads
        server.watch_end(functools.partial(self._on_close, reloads))
        self.server = server  # before the start-up, which would search for it
        for member in self._process.applications():
            threading.Thread(target=member.startup.ensure, name="lifecycle-startup", daemon=True).start()
        return True


class Parent:
    """Passes a shutdown on from the reloader's parent to its child, and kills the child after the grace period."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._signals = 0
        self._again = threading.Event()

    def receive(self, signum: int) -> None:
        """Pass a signal on to the child, now or as soon as the child handles it. Does not block."""
        if signum == signal.SIGURG:
            _close_listener(if_child_does=True)
            return
        self._signals += 1
        if self._signals == 1:
            threading.Thread(target=self._stop, args=(signum,), name="lifecycle-reloader", daemon=True).start()
        else:
            self._again.set()

    def _stop(self, signum: int) -> None:
        grace = min((member.settings.grace_period for member in self._process.applications()), default=0.0)
        end = time.monotonic() + grace
        surely = time.monotonic() + grace / 4  # a server that we could not attach to has no owner
        if signum == signal.SIGINT:
            self._again.wait(_TERMINAL_FIRST)
        signalled = None
        while time.monotonic() < end:
            child = _child()
            if child is not None and signalled not in (None, child):
                # The signalled child exited for a code change at the same moment. The next one has no listener, and
                # subprocess.call kills it when the main thread exits.
                self._process.relay.run_in_main(lambda: sys.exit(0))
                return
            if child is not None and (
                self._again.is_set() or (signalled is None and _takes_sigterm(child.pid, surely))
            ):
                self._again.clear()
                signalled = child
                child.send_signal(signal.SIGTERM)
                _close_listener()
            self._again.wait(_TICK)
        child = _child()
        if child is not None:
            child.kill()


# -- which process this is --------------------------------------------------------------------------------------------


def role() -> str:
    """The role of this process: ``alone`` (no reloader), ``parent`` or ``child``; empty outside of ``run_simple``."""
    variables = _run_simple()
    if variables is None:
        return ""
    if not variables.get("use_reloader"):
        return ALONE
    return CHILD if os.environ.get("WERKZEUG_RUN_MAIN") == "true" else PARENT


def is_starting_child() -> bool:
    """Whether this is a reloader's child that has inherited a listener."""
    descriptor = os.environ.get("WERKZEUG_SERVER_FD", "")
    if os.environ.get("WERKZEUG_RUN_MAIN") != "true" or not descriptor.isdecimal():
        return False
    return inode_of_listener(int(descriptor)) is not None


def forks_for_request() -> bool:
    """Whether the calling thread forks, or has just been forked, to answer one request (``processes=``)."""
    kind = getattr(sys.modules.get("socketserver"), "ForkingMixIn", None)
    return kind is not None and any(frame.f_code is kind.process_request.__code__ for frame in callers(sys._getframe()))


def _run_simple() -> dict[str, Any] | None:
    serving = sys.modules.get("werkzeug.serving")
    return None if serving is None else _main_call(serving.run_simple.__code__)


def _main_call(code: CodeType) -> dict[str, Any] | None:
    """The variables of a code object that the main thread runs; ``None`` if it does not run it."""
    calls = calls_of(code, threading.main_thread().ident)
    return calls[0].variables if calls else None


# -- the reloader's parent --------------------------------------------------------------------------------------------


def _child() -> Any:
    """The process that the main thread waits for, if any."""
    import subprocess  # the reloader has imported it

    variables = _main_call(subprocess.call.__code__)
    return None if variables is None else variables.get("p")


def _listener() -> socket.socket | None:
    """The parent's copy of the listener, if it is open."""
    server = (_run_simple() or {}).get("srv")
    return server.socket if server is not None and server.socket.fileno() >= 0 else None


def _takes_sigterm(child: int, surely: float) -> bool:
    """Whether the child has our handler, or after a time any handler."""
    sock = _listener()
    if sock is not None and fcntl.fcntl(sock, fcntl.F_GETOWN) == child:
        return True
    return time.monotonic() > surely and _handles_sigterm(child)


def signal_that_ends() -> int | None:
    """In the main thread, when ``run_simple`` closes the server: the signal that ends the child without our handler.

    Werkzeug's handler of SIGTERM exits with 0, and ``run_simple`` swallows Ctrl-C. A code change exits with 3.
    """
    error = sys.exc_info()[1]
    if role() != CHILD:
        return None
    if error is None:
        return signal.SIGINT
    return signal.SIGTERM if isinstance(error, SystemExit) and error.code == 0 else None


def _handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; ``True`` if that is unknown."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return True  # /proc is of another namespace, where this number belongs to another process
        with open(f"/proc/{pid}/status") as status:
            caught = next(line.split()[1] for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _close_listener(*, if_child_does: bool = False) -> None:
    """Close the parent's copy of the listener; the child has a descriptor of its own."""
    sock = _listener()
    if sock is not None and not (if_child_does and os.get_blocking(sock.fileno())):
        sock.close()
