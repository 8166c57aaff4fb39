"""How a process exits: with an exit code or by a signal, and what runs before.

Theory of operation
-------------------

The end of a shutdown depends on who has the main loop (:meth:`Exit.leave`):

- :class:`OwnLoop`: ``run``, or gunicorn's worker with our hooks. The server's loop ends, and ``run`` returns.
- :class:`OthersServer`: a server that the user has started. The adapter ends its loop if it can. Otherwise the handler
  before ours gets the signal, in the main thread. Without such a handler the main thread raises ``SystemExit`` with the
  report's exit code, which ends every server's loop. (waitress swallows the code; our ``atexit`` function restores it.)
- :class:`Jobs`: a process without a server that has opened a work item. A loop that checks for the drain ends by
  itself. If the main thread still runs a moment later, blocked in a queue for example, it raises ``SystemExit`` too.
- :class:`ServesNothing`: a shell, a migration, a Celery worker that imports the application. There is nothing to drain,
  and the process may still need its resources: the handler before ours gets the signal at once, and no hook runs.

If the exit code differs from the interpreter's, or the process dies by a signal (``LIFECYCLE_EXIT``), it exits in our
``atexit`` function, which first runs the other ones. So ours must be the first, and is registered again when the main
thread has ended (:meth:`Exit._main_has_ended`).

One watchdog thread enforces the grace period. It waits for the deadline and then exits at once: the shutdown may be
stuck (a log handler that blocks, a receiver that hangs), the main thread may not end although we interrupted it, or
non-daemon threads may keep the interpreter open. When ``run`` has returned, the watchdog does nothing while the main
thread runs, because the caller may continue.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .log import logger
from .report import ShutdownReport, signal_name
from .shutdown import StopRequest
from .signals import die_by, interrupt_main
from .stacks import callers, collector_paused

if TYPE_CHECKING:
    from .process import Process

# A loop over jobs that checks for the drain is about to end when the shutdown is over. We do not interrupt it for this
# many seconds.
_OWN_END = 1.0


class ServesNothing:
    """The process serves nothing and does not end."""

    def leave(self, exits: Exit, report: ShutdownReport) -> None:
        """Make the process exit. Called in the shutdown's thread."""
        exits.process.end_applications()


class OwnLoop:
    """The caller of ``run``, or gunicorn, ends the process."""

    def leave(self, exits: Exit, report: ShutdownReport) -> None:
        """Do nothing: the loop ends with its server."""


class Jobs:
    """The application's own loop over jobs ends by itself, or we interrupt the main thread."""

    def leave(self, exits: Exit, report: ShutdownReport) -> None:
        exits.process.end_applications()
        if not exits.may_interrupt:
            return
        main = threading.main_thread()
        main.join(0.0 if report.work else min(_OWN_END, exits.process.shutdown.last_moment.remaining() / 2))
        if main.is_alive():  # blocked in a queue, or in an abandoned job
            exits.decide(report)
            exits.interrupt_main(report)


class OthersServer:
    """The adapter ends the server's loop, or we interrupt the main thread."""

    def leave(self, exits: Exit, report: ShutdownReport) -> None:
        exits.process.end_applications()
        if not exits.may_interrupt:
            return
        exits.decide(report)
        server = exits.process.shutdown.server
        if not threading.main_thread().is_alive():
            return  # the interpreter joins its threads, and then runs our atexit function
        if server is not None and server.stays and exits.drained:
            exits.code = exits.signal = 0
            exits.returned.set()
        elif server is None or not server.end():
            exits.interrupt_main(report)


class Exit:
    """The exit of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.code = 0
        self.signal = 0  # the signal to die by, instead of the code
        self.under_way = False  # whether the main thread, or the interpreter, is about to end
        self.in_atexit = False  # whether the shutdown is over, and the other atexit functions run
        self.renew()
        if process.signals:
            atexit.register(self._at_exit)
            with contextlib.suppress(RuntimeError):  # the main thread has ended, and another thread imports us
                threading._register_atexit(self._main_has_ended)  # type: ignore[attr-defined]

    def renew(self) -> None:
        self.forced_code: int | None = None  # the exit code for the watchdog, if it is fixed
        self.start_failed = False
        self.drained = False  # whether an operator has begun the shutdown
        self.returned = threading.Event()  # set when run() has returned

    def keep(self, report: ShutdownReport) -> None:
        """Write the report to files, before any caller gets it."""
        if not self.process.signals:
            return
        for path in filter(None, {each.settings.report_file for each in self.process.applications()}):
            from . import report_file  # most processes write no report

            report_file.write(path, report)

    # -- when the shutdown is over --------------------------------------------------------------------------------

    def leave(self, report: ShutdownReport) -> None:
        """Make the process exit. The last step of the shutdown, in its thread."""
        server = self.process.shutdown.server
        if server is not None:
            server.stop()
        self._strategy().leave(self, report)

    def _strategy(self) -> ServesNothing | OwnLoop | Jobs | OthersServer:
        process, crashed = self.process, self.process.shutdown.request.crash is not None
        applications = process.applications()
        if process.owner:
            return OwnLoop()
        if process.shutdown.server is not None or crashed or any(each.startup.succeeded for each in applications):
            return OthersServer()
        if any(each.work.working for each in applications):
            return Jobs()
        return ServesNothing()

    @property
    def may_interrupt(self) -> bool:
        return self.process.signals and not self.under_way

    def decide(self, report: ShutdownReport) -> None:
        """Decide the exit code, or the signal to die by; a handler before ours may override both."""
        self.code = report.exit_code
        if self.start_failed and self.process.shutdown.server is not None:
            self.code = self.process.shutdown.server.start_error
        by_signal = any(each.settings.exit == "signal" for each in self.process.applications())
        self.signal = report.signal if by_signal and report.signal is not None else 0

    def interrupt_main(self, report: ShutdownReport) -> None:
        """Pass the signal to the handler before ours, in the main thread; without one, raise ``SystemExit``."""
        signum = report.signal or signal.SIGTERM
        leave_with = 128 + signum if self.signal else report.exit_code
        if self.process.relay.run_in_main(lambda: self.give_back(signum, leave_with)):
            return
        # We have no handler, so the current one gets the signal and decides.
        self.signal = 0
        if callable(signal.getsignal(signum)) and not self.start_failed:
            self.code = 0
        interrupt_main(signum)

    def give_back(self, signum: int, code: int) -> None:
        """Pass a signal to the handler before ours. Runs in the main thread, inside the signal handler.

        :param code: the exit code if there was none.
        """
        previous = self.process.relay.previous(signum)
        served = self.process.shutdown.begun
        self.process.relay.restore()
        if callable(previous):
            self.code = self.code if self.start_failed else 0
            self.signal = 0
            os.kill(os.getpid(), signum)
        elif served or previous != signal.SIG_IGN:
            if not served:
                die_by(signum)
            raise SystemExit(code)

    # -- at the end of the main thread and of the interpreter -----------------------------------------------------

    def hold_main(self) -> None:
        """Block the main thread until the shutdown is over; the watchdog bounds this."""
        shutdown = self.process.shutdown
        if shutdown.done.wait(shutdown.last_moment.remaining()) and shutdown.thread is not None:
            with contextlib.suppress(RuntimeError):  # the thread could not start, and the shutdown ran in this one
                shutdown.thread.join(shutdown.last_moment.remaining())

    def wait(self, tick: Callable[[], object]) -> ShutdownReport | None:
        """Block until the shutdown is over, after gunicorn's loop has ended. The watchdog bounds this and the exit.

        :param tick: called once a second.
        """
        shutdown = self.process.shutdown
        while shutdown.report is None and shutdown.last_moment.remaining():
            tick()
            shutdown.done.wait(min(1.0, shutdown.last_moment.remaining()))
        self.process.end_applications()
        self.returned.set()
        return shutdown.report

    def finish(self) -> None:
        """Wait for the shutdown and exit with its code, in a process that runs no ``atexit`` functions."""
        self._at_exit()
        report = self.process.shutdown.report
        self.code = 0 if report is None else report.exit_code
        self._exit_as_decided()

    def _at_exit(self) -> None:
        """At the interpreter's end: run the hooks if they have not run, and restore an exit code a server swallowed."""
        process, shutdown = self.process, self.process.shutdown
        self.under_way = True
        if not shutdown.begun and process.has_to_drain_at_exit():
            # The server accepts no more connections, so a delay has no use.
            shutdown.begin(StopRequest("interpreter exit", delay=False, alone=self._forget_endless()))
        if not shutdown.begun:
            return
        shutdown.done.wait(shutdown.last_moment.remaining())
        if shutdown.report is None:
            limit = shutdown.remaining() or 0.0
            self.exit_now(1, "grace period over, leaving at once: the shutdown has not ended", limit=limit)
        self._run_other_exit_functions()
        self._exit_as_decided()

    def _main_has_ended(self) -> None:
        """Called before the interpreter joins the other threads and runs ``atexit``."""
        # The functions of atexit run last in, first out. Registered again, ours is the first and can run the others.
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)
        if self.process.shutdown.begun and self._runs_no_atexit():
            # Executors' threads end only after this function, so it must not wait for them.
            self._at_exit()

    def _runs_no_atexit(self) -> bool:
        """Whether multiprocessing has forked this process. Before Python 3.13 it then runs no ``atexit`` functions."""
        return self.process.forked and sys.version_info < (3, 13) and "multiprocessing.popen_fork" in sys.modules

    def _forget_endless(self) -> bool:
        """Forget the requests that cannot end; return whether no other thread is left. The main thread has ended.

        A response of the test client is in flight while a variable or a traceback refers to it. If the process has not
        served, no other thread sends a response either. Any thread that is left can end a work item.
        """
        served = self.process.servers.has_listened()
        for application in self.process.applications():
            application.ledger.forget(threading.get_ident() if served else None)
        this = threading.current_thread()
        return all(each is this or each.name.startswith("lifecycle-") for each in threading.enumerate())

    def _run_other_exit_functions(self) -> None:
        """Run the other functions of ``atexit`` and flush all open files; the watchdog bounds both.

        The interpreter would not flush every file, because our stopped daemon threads keep the program's variables
        alive.
        """
        self.in_atexit = True
        if self.signal:
            signal.signal(self.signal, signal.SIG_DFL)  # only the main thread may do this; the watchdog dies by it too
        if not self._runs_no_atexit():
            atexit.unregister(self._at_exit)
            atexit._run_exitfuncs()
        _flush_files()

    def _exit_as_decided(self) -> None:
        """Die by the signal, or exit with the shutdown's code, if the interpreter would not do so."""
        if self.signal or (self.code and not self.process.owner):
            exit_now(self.code, signum=self.signal)

    # -- by force -------------------------------------------------------------------------------------------------

    def start_watchdog(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter is finalizing, and exits
            threading.Thread(target=self._watch, name="lifecycle-watchdog", daemon=True).start()

    def _watch(self) -> None:
        """Exit at the deadline, even if something still runs."""
        shutdown = self.process.shutdown
        last_moment = shutdown.last_moment
        if self.returned.wait(last_moment.remaining()):
            threading.main_thread().join(last_moment.remaining())
            if threading.main_thread().is_alive():
                return
            threading.Event().wait(last_moment.remaining())
        report = shutdown.report
        code = self.forced_code or (report.exit_code or 1 if report else 1)
        limit = shutdown.remaining() or 0.0
        signum = self.signal if self.in_atexit else 0
        self.exit_now(code, f"grace period over, leaving at once: {self._obstacle()}", limit=limit, signum=signum)

    def _obstacle(self) -> str:
        """The reason why the process has not exited."""
        if self.in_atexit:
            return f"an atexit function has not returned{_where_main_is()}"
        if threading.main_thread().is_alive() or not non_daemons():
            return "the shutdown or the main thread has not ended"
        return "threads still run: " + ", ".join(thread.name for thread in non_daemons())

    def force(self, signum: int) -> None:
        """Exit at once, on a second signal."""

        def abandoned() -> Iterable[str]:
            unfinished = self.process.shutdown.unfinished()
            yield f"forced by {signal_name(signum)}: abandoned {len(unfinished)}"
            yield from (f"abandoned {info}" for info in (*unfinished.requests, *unfinished.work))

        self.exit_now(128 + signum, more=abandoned)

    def exit_now(self, code: int, *lines: str, **how: Any) -> None:
        """Exit without finalizing the interpreter, see :func:`exit_now`; write the report if the shutdown has not."""
        shutdown = self.process.shutdown
        if shutdown.begun and shutdown.report is None:
            how["keep"] = lambda: self.keep(shutdown.report_so_far(code))
        exit_now(code, *lines, **how)


def exit_now(
    code: int,
    *lines: str,
    more: Callable[[], Iterable[str]] = tuple,
    keep: Callable[[], object] | None = None,
    limit: float = 0.5,
    signum: int = 0,
) -> None:
    """Exit without finalizing the interpreter, which might hang; flush the log if possible.

    Logging and writing run in their own threads, for ``limit`` seconds in all: the log may be stuck, or the report's
    disk, or the ``__str__`` of an application's object.

    :param more: returns more lines.
    :param keep: writes the report. It has half of the time, so that a slow disk leaves time for the log.
    :param signum: a signal with its default handler, to die by instead of the code. It does not kill PID 1.
    """

    def log() -> None:
        for line in (*lines, *more()):
            logger.error("%s", line, extra={"lifecycle_exit_code": code})
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
                stream.flush()

    until = time.monotonic() + limit
    try:
        if keep is not None:
            _within(limit / 2, keep)
        _within(until - time.monotonic(), log)
    finally:
        if signum:
            os.kill(os.getpid(), signum)
        os._exit(128 + signum if signum else code)


def non_daemons() -> list[threading.Thread]:
    """The threads that keep the interpreter open."""
    return [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]


def _flush_files() -> None:
    """Flush the buffers of open files, as the interpreter does at its end; text files first, into their buffers."""
    for kind in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
        for file in [each for each in gc.get_objects() if issubclass(type(each), kind)]:
            with contextlib.suppress(Exception):  # closed, a full disk, or mod_wsgi's log, which has expired by now
                file.flush()


def _where_main_is() -> str:
    """The outermost function of another module that the main thread runs, for a log line; empty if there is none."""
    with collector_paused():
        frames = callers(sys._current_frames().get(threading.main_thread().ident or 0))
        outermost = next((each for each in reversed([*frames]) if each.f_globals is not globals()), None)
    if outermost is None:
        return ""
    return f": '{outermost.f_code.co_name}' ({outermost.f_code.co_filename}, line {outermost.f_lineno})"


def _within(seconds: float, step: Callable[[], object]) -> None:
    thread = threading.Thread(target=step, name="lifecycle-last-words", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is finalizing
        step()
    else:
        thread.join(seconds)
