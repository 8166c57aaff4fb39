"""One process: the applications in it, the signals that it gets, and the shutdown that they begin.

All applications that are not in testing mode share one :class:`Process`, because they share its signals: one signal
stops them all, and the process exits once. An application in testing mode has a process of its own, which never touches
a signal.

A signal takes one way: its handler writes to a pipe (``signals.py``), :meth:`Process.receive` begins the shutdown
(``shutdown.py``), which drains the applications and their server and then makes the process exit (``exit.py``).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar, cast

from .exit import Exit
from .fork import renew_in_children
from .hooks import HookRecord
from .log import logger
from .report import ShutdownReport, signal_name
from .server import Application, Servers
from .shutdown import Shutdown, StopRequest
from .signals import SignalRelay, in_main_thread

T = TypeVar("T")

# GNU timeout signals its child and then the child's group: the same event, microseconds later. We take the time when we
# read the signal, which a busy interpreter delays; no user presses Ctrl-C twice within a tenth of a second.
SAME_SIGNAL = 0.1


class Process:
    """The applications that stop together. Any thread may use it, except where noted.

    :param signals: whether it handles signals and may exit; ``False`` in testing mode.
    """

    def __init__(self, *, signals: bool) -> None:
        self.signals = signals
        self.relay = SignalRelay(self.receive)
        self.servers = Servers()
        self.exit = Exit(self)
        self.forked = False
        self.awaits_master = False  # a gunicorn worker whose hooks will take its signals
        self.wanted: set[signal.Signals] = set()  # the signals that stop the applications
        self._applications: list[weakref.ref[Application]] = []
        # Guards _applications. A signal handler or a finalizer may end a task, or shut down, in a thread that holds it.
        self._lock = threading.RLock()
        self._shared: dict[Hashable, Any] = {}  # see share()
        self._renew()
        if signals:
            renew_in_children(self._after_fork)

    def _renew(self) -> None:
        self.shutdown = Shutdown(self.applications, self.exit, lambda: self.servers.find())
        self.owner = ""  # of the main loop: "run", or "gunicorn" for a worker with our hooks
        self._first_signal = 0.0  # its time
        self._received: set[int] = set()
        self.exit.renew()
        self.servers.renew()

    def _after_fork(self) -> None:
        answers = self.servers.leave_to_parent()
        self.forked = True
        self.awaits_master = False
        self._lock = threading.RLock()
        self._renew()
        for application in self.applications():
            application.after_fork(answers=answers)
        self.servers.begin_in_child(answers)

    # -- applications ---------------------------------------------------------------------------------------------

    def applications(self) -> Sequence[Application]:
        """The applications, in the order of their registration."""
        with self._lock:
            return [application for reference in self._applications if (application := reference()) is not None]

    def join(self, application: Application, signals: Iterable[signal.Signals]) -> None:
        """Add an application and handle its signals; outside the main thread, log what to do instead."""
        with self._lock:
            self._applications = [reference for reference in self._applications if reference() is not None]
            self._applications.append(weakref.ref(application))
        if self.shutdown.done.is_set():
            self._renew()
        if not self.signals or self.awaits_master or self.servers.keeps_all_signals():
            return
        self.wanted.update(signals)
        if in_main_thread():
            self.take_signals()
        else:
            logger.warning(
                "init_app was called outside the main thread, where no signal handler can be installed;"
                " call lifecycle.shutdown() when the process is to stop.",
                extra={"lifecycle_thread": threading.current_thread().name},
            )
        self.servers.look()

    def share(self, make: Callable[[Process], T], key: Hashable = None) -> T:
        """Return the one object that all applications share; the first caller makes it."""
        key = make if key is None else key
        if key not in self._shared:
            self._shared[key] = make(self)
        return cast("T", self._shared[key])

    def end_applications(self) -> None:
        """Stop the features of all applications, after the shutdown. Idempotent."""
        for application in self.applications():
            application.end()

    # -- signals --------------------------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Handle the signals of the applications, even if a server has replaced our handlers. For the main thread."""
        self.relay.install(self.wanted)
        if self.relay.installed:
            self.servers.signals_taken()

    def receive(self, signum: int) -> None:
        """Handle a signal. Called in the relay's thread, which must not log, because a stalled log would block it."""
        if self.servers.takes_signal(signum):
            return
        now = time.monotonic()
        first, self._first_signal = self._first_signal, self._first_signal or now
        again = signum in self._received or not self.servers.reloads
        self._received.add(signum)
        if self.shutdown.begun:
            if first and again and now - first >= SAME_SIGNAL and not self.shutdown.done.is_set():
                self.exit.force(signum)
            # The first signal after shutdown() joins that shutdown; so does shutdown() after a signal.
            self.shutdown.join_by_signal(signum)
        elif not first and self.servers.postpones_signal(signum):
            pass  # handled when the process serves
        elif self.is_served():
            self.begin(StopRequest(signal_name(signum), signum))
        else:
            self._first_signal = 0.0
            self.relay.run_in_main(lambda: self.exit.give_back(signum, 128 + signum))

    def forwarded(self, signum: int) -> None:
        """Handle a signal that the supervisor passes on. This process may have received it too; it counts once."""
        if signum not in self.relay.installed:
            os.kill(os.getpid(), signum)
            return
        self._first_signal = self._first_signal or time.monotonic()
        self.begin(StopRequest(signal_name(signum), signum))

    # -- stopping -------------------------------------------------------------------------------------------------

    def stop(self, reason: str, wait: bool) -> ShutdownReport | None:
        """Begin the shutdown, or join the one under way.

        :raises RuntimeError: the caller would wait for itself.
        """
        if wait and (self.shutdown.would_wait_for_itself() or self.servers.in_loop()):
            raise RuntimeError(
                "shutdown() was called in a thread that the shutdown itself waits for (a request, a hook, a work item"
                " or the server's loop); call shutdown(wait=False) there."
            )
        self.begin(StopRequest(str(reason)))
        return self.shutdown.wait() if wait else None

    def begin(self, request: StopRequest) -> bool:
        """Begin the shutdown; ``False`` if it has begun already. Does not block."""
        must_leave = self.signals and (request.crash is not None or self.is_served())
        begun = self.shutdown.begin(request)
        if begun and must_leave:
            self.exit.start_watchdog()
        return begun

    def fail_start(self, cause: str) -> None:
        """Stop and exit with 1, because the start-up of an application has failed. Does not log or block."""
        if not self.shutdown.begun:
            self.servers.prepare_exit()
        self.exit.start_failed = True
        self.stop(f"start-up failed: {cause}", wait=False)

    def drain(self, reason: str) -> None:
        """Begin the shutdown for an operator; afterwards a process that would be replaced at once keeps running."""
        self.exit.drained = True
        self.stop(reason, wait=False)

    def crashed(self, reason: str, record: HookRecord, *, main: bool) -> None:
        """Stop because of an uncaught exception. Called in its thread; blocks the main thread until the end."""
        if main and not self.shutdown.begun and not self.is_served():
            return
        self.exit.under_way = self.exit.under_way or main  # the main thread ends when this returns
        try:
            if self.begin(StopRequest(reason, crash=record)):
                logger.error(
                    "thread %r crashed: %s; the process stops", record.name, record.error,
                    extra={"lifecycle_thread": record.name, "lifecycle_error": record.error},
                )  # fmt: skip
            if main:
                self.exit.hold_main()
        except KeyboardInterrupt:  # we do not handle SIGINT
            self.exit.force(signal.SIGINT)

    def is_served(self) -> bool:
        """Whether there is something to drain: a server, or an application that has started or has work items."""
        return (
            bool(self.owner) or self.shutdown.server is not None or self._is_used() or self.servers.find() is not None
        )

    def _is_used(self) -> bool:
        # Work items count like requests: a job loop without a server has something to drain too.
        return any(application.startup.succeeded or application.work.working for application in self.applications())

    def has_to_drain_at_exit(self) -> bool:
        """Whether the interpreter's end begins a shutdown."""
        if self.owner or not self.applications():
            return False
        # A forked child has copies of its parent's server objects, and must not close resources that it has not used.
        return self._is_used() if self.forked else self.is_served()
