"""One process: the applications in it, the signals it gets, the server it runs and the way it leaves.

All applications that are not in testing mode share :data:`this_process`, because they share its signals: one signal
stops them all, and the process exits once. An application in testing mode has a :class:`Process` of its own, which
never touches a signal.

How the process leaves depends on who is in charge of the main thread:

- ``run``: the server's loop ends, ``run`` restores the handlers and returns the report.
- A server that somebody else started: the signal is given back, in the main thread, to whoever had it. Where nobody
  had it, the main thread raises ``SystemExit`` with the report's exit code, which ends every server's loop (waitress
  swallows the code; the ``atexit`` function restores it).
- The application's own work: a token has been opened. The loop that opens them ends by itself if it looks at the
  drain; where the main thread is still there a moment later, blocked in a queue perhaps, it raises ``SystemExit``, too.
- Nobody: a shell, a migration, a Celery worker that imports the application. There is nothing to drain, and tearing
  down what the process works with would be wrong, so the signal is given back at once and no hook runs.

One watchdog keeps the grace period where our reach ends. It is a thread that waits for the deadline and then leaves
without asking anybody: whether the coordinator is stuck (a log handler that blocks, a receiver that hangs), the
main thread does not leave although it was told to, or non-daemon threads hold the interpreter open after it has. Once
``run`` has returned it does nothing as long as the main thread lives: the caller may have other things to do.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ._fork import is_to_be_patched, renew_in_children
from ._hooks import HookRecord
from ._inflight import Load
from ._parties import STARTED, Member, Server, ServerInfo
from ._report import ShutdownReport, signal_name
from ._shutdown import Coordinator
from ._signals import SignalRelay, die_by, in_main_thread, interrupt_main
from ._state import logger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ._handover import Generation
    from ._run_simple import RunSimple
    from ._stuck import PoolWatch
    from .checks._health import Health
    from .servers import Runner
    from .servers.found import Found
    from .servers.found.werkzeug import FoundWerkzeug

T = TypeVar("T")

# GNU timeout signals its child and then the child's group: the same event, microseconds later. The time is taken where
# the signal is read, which a busy interpreter delays; nobody presses Ctrl-C twice within a tenth of a second.
_SAME_SIGNAL = 0.1
# What Werkzeug's reloader leaves a child with that is to be replaced by the next.
_RELOAD = 3
# A loop over jobs that looks at the drain is on its way out when the shutdown is over, and is not to be interrupted in
# what it does last.
_OWN_END = 1.0

# How long a fork waits for the thread that looks for a server, which may be about to start the application.
_UNDISTURBED = 1.0
_MOMENT = 0.02


class App(Member, Protocol):
    """What a process asks of an application beyond what the coordinator does."""

    health: Health
    served_since: float | None  # when requests stopped to wait for the start-up

    def start(self) -> None:
        """Run the start-up, once; blocks until it is over."""

    def see_to_start(self) -> None:
        """Run the start-up, unless that is done or somebody else sees to it; it may have a thread of its own."""

    def open_probe_listener(self) -> None:
        """Bind and start the probe listener, if one is configured."""

    @property
    def probe_socket(self) -> socket.socket | None:
        """The probe listener's own."""

    def start_probe_listener(self) -> None:
        """Begin to answer, where :meth:`open_probe_listener` has not."""

    def close_probe_listener(self) -> None:
        """Close the probe listener; twice is harmless."""

    def after_fork(self, *, answers: bool = False) -> None:
        """Forget in a forked child that the parent has started, unless the child answers a request for it."""

    def begin(self) -> None:
        """The process is about to serve; twice is harmless."""

    def end(self) -> None:
        """The shutdown is over: close the probe listener, the last thing that is closed; twice is harmless."""

    def lane(self, path: str) -> str | None:
        """The name of the probe that a request path asks for, if it does."""


class Process:
    """The applications that stop together. Any thread may use it, but for what says otherwise."""

    def __init__(self, *, signals: bool) -> None:
        self.signals = signals  # whether this one may touch signals at all
        self.relay = SignalRelay(self.receive)
        self._signals: set[signal.Signals] = set()  # what the applications stop at
        self._members: list[weakref.ref[App]] = []
        # Guards _members. In a thread that holds it a signal handler or a finalizer may end a task, or shut down.
        self._lock = threading.RLock()
        self._watches: dict[float, PoolWatch] = {}
        self._renew()
        self._loop_thread: int | None = None
        self._exit_code = 0
        self._exit_signal = 0  # instead
        self._exiting = False
        self._forked = False
        self.generation: Generation | None = None
        self._shared: dict[Any, Any] = {}  # see share()
        self._looking = False  # for a server; guarded by _lock
        # Held by who looks for one, and imports for it. A child that is forked meanwhile would wait for ever for a
        # module that a thread has imported in part.
        self._undisturbed = threading.RLock()
        if signals:
            atexit.register(self._at_exit)
            os.register_at_fork(before=self._before_fork, after_in_parent=self._let_go_on)
            renew_in_children(self._after_fork)

    def _before_fork(self) -> None:
        if self._run_simple is not None:
            self._run_simple.await_start()
        self._undisturbed.acquire(timeout=_UNDISTURBED)

    def _let_go_on(self) -> None:
        with contextlib.suppress(RuntimeError):  # not ours: it was waited for in vain
            self._undisturbed.release()

    def _after_fork(self) -> None:
        run_simple = self._run_simple
        answers = run_simple is not None and run_simple.answers()
        self._forked = True
        self._lock = threading.RLock()
        self._undisturbed = threading.RLock()
        self._looking = False
        self._renew()
        for member in self.members():
            member.after_fork(answers=answers)
        if run_simple is not None and answers:
            from .servers.found import _threads

            _threads.leave_signals_to_parent(run_simple.signals())
        elif not is_to_be_patched():  # else this is called again when it has been
            self._look_out()

    def _renew(self) -> None:
        self.coordinator = Coordinator(self.members, self._find_server, self._keep, self._leave)
        self._first_signal = 0.0
        self._watched: Found | None = None
        self._run_simple: RunSimple | None = None
        self._came: set[int] = set()  # the signals
        self._code: int | None = None  # what to leave with by force, where it is settled
        self._searched = False  # whether known_load() has looked for one
        self._told_server = False
        self._drained = False  # by an operator
        self._left = threading.Event()  # run() is over
        for watch in self._watches.values():
            watch.forget()

    def members(self) -> Sequence[App]:
        """The applications, in the order of their registration."""
        with self._lock:
            return [member for reference in self._members if (member := reference()) is not None]

    def share(self, kind: Callable[[Process], T]) -> T:
        """What all the applications have one of: made from the process by the first that asks."""
        if kind not in self._shared:
            self._shared[kind] = kind(self)
        return cast("T", self._shared[kind])

    def join(self, member: App, signals: Iterable[signal.Signals]) -> None:
        """Add an application and take over its signals; off the main thread one warning says what to do instead."""
        with self._lock:
            self._members = [reference for reference in self._members if reference() is not None]
            self._members.append(weakref.ref(member))
        if self.coordinator.done.is_set():
            self._renew()
        if not self.signals or "mod_wsgi" in sys.modules:  # which lets nobody have a signal, and says so each time
            return
        self._signals.update(signals)
        if in_main_thread():
            self.take_signals()
            if self.relay.installed:
                self._look_out_for_run_simple()
        else:
            logger.warning(
                "init_app was called outside the main thread, where no signal handler can be installed;"
                " call lifecycle.shutdown() when the process is to stop.",
                extra={"lifecycle_thread": threading.current_thread().name},
            )
        self._look_out()

    # -- starting -------------------------------------------------------------------------------------------------

    def _look_out(self) -> None:
        """Have a thread look for a server that somebody else starts; see ``servers/found/_lookout.py``."""
        with self._lock:
            if self._looking or not self._waits_for_server():
                return
            self._looking = True
        with contextlib.suppress(RuntimeError):  # the interpreter is finalizing
            threading.Thread(target=self._start_when_served, name="lifecycle-lookout", daemon=True).start()

    def _waits_for_server(self) -> bool:
        """Whether an application waits for its start; asked by the thread that looks, which ends if there is none."""
        with self._lock:
            done = self.coordinator.owned or self.coordinator.begun or all(each.started for each in self.members())
            self._looking = self._looking and not done  # whoever joins now has another thread look
            return not done

    def _start_when_served(self) -> None:
        threading.Event().wait(_MOMENT)  # most commands are over by then, and run() has begun
        with self._undisturbed:
            from .servers.found._lookout import LookOut
        if LookOut(self._waits_for_server, self._undisturbed).wait():
            for member in self.members():
                try:
                    with self._undisturbed:
                        member.see_to_start()
                except Exception as error:
                    logger.error("%s", error, extra={"lifecycle_error": str(error)})
        with self._lock:
            self._looking = False

    def take_signals(self) -> None:
        """Take over the signals of the applications, again where somebody has taken them since. For the main thread."""
        self.relay.install(self._signals)

    def _look_out_for_run_simple(self) -> None:
        if self._run_simple is None:
            from ._run_simple import RunSimple  # tests, which take no signals, do not pay for it

            self._run_simple = RunSimple(self, self._find_werkzeug, self._server_leaves)
        self._run_simple.look_out()

    def _find_werkzeug(self) -> FoundWerkzeug | None:
        with self._undisturbed:
            from .servers.found import werkzeug

            return werkzeug.find()

    def _server_leaves(self, reloads: bool) -> None:
        """``run_simple`` closes its server in the main thread. Returns when the process may go on to leave."""
        coordinator = self.coordinator
        self._exiting = True
        if not coordinator.begun:
            self._code = _RELOAD if reloads else None
            coordinator.delayed = False  # nobody is let in any more
            self._begin("code change" if reloads else "the server's loop has ended")
        self._hold_main(coordinator)
        if not reloads:
            self._left.set()  # the program may have other things to do
        report = coordinator.report
        if reloads and report is not None and coordinator.signal is not None:
            raise SystemExit(report.exit_code)  # whoever stops the process does not want another child

    # -- stopping -------------------------------------------------------------------------------------------------

    def receive(self, signum: int) -> None:
        """A signal has come; called in the relay's thread, which must not log: a stalled handler would stop it."""
        run_simple = self._run_simple
        if run_simple is not None and run_simple.parent is not None:
            run_simple.parent.receive(signum)
        elif signum != signal.SIGURG:  # which is for a reloader's parent, and not for a child that has it from there
            self._receive(signum)

    def _receive(self, signum: int) -> None:
        coordinator = self.coordinator
        now = time.monotonic()
        first, self._first_signal = self._first_signal, self._first_signal or now
        run_simple = self._run_simple
        again = signum in self._came or run_simple is None or not run_simple.reloads
        self._came.add(signum)
        if coordinator.begun:
            if first and again and now - first >= _SAME_SIGNAL and not coordinator.done.is_set():
                self._force(signum)
            # The first signal after shutdown() joins it, as shutdown() joins a signal's.
            coordinator.signal = coordinator.signal or signum
        elif not first and run_simple is not None and run_simple.keeps(signum):
            pass  # until it serves
        elif not coordinator.owned and not self._serving():
            self._first_signal = 0.0
            self.relay.run_in_main(lambda: self._give_back(signum, 128 + signum))
        else:
            self._begin(signal_name(signum), signum)

    def passed_on(self, signum: int) -> None:
        """Whoever started this process has got a signal. It may have come here as well, and is no second one."""
        if signum not in self.relay.installed:
            os.kill(os.getpid(), signum)
            return
        self._first_signal = self._first_signal or time.monotonic()
        if not self.coordinator.begun:
            self._begin(signal_name(signum), signum)

    def shutdown(self, reason: str, wait: bool) -> ShutdownReport | None:
        """Begin the shutdown, or join the one that is under way.

        :raises RuntimeError: the caller would wait for itself.
        """
        coordinator = self.coordinator
        if wait and (coordinator.would_wait_for_itself() or threading.get_ident() == self._loop_thread):
            raise RuntimeError(
                "shutdown() was called in a thread that the shutdown itself waits for (a request, a hook, a piece of"
                " work or the server's loop); call shutdown(wait=False) there."
            )
        self._begin(str(reason))
        return coordinator.wait() if wait else None

    def drain(self, reason: str) -> None:
        """Begin the shutdown, as an operator says; who would be replaced at once stays when it is over."""
        self._drained = True
        self.shutdown(reason, wait=False)

    def _begin(self, reason: str, signum: int | None = None, crash: HookRecord | None = None) -> bool:
        coordinator = self.coordinator
        must_leave = self.signals and (crash is not None or coordinator.owned or self._serving())
        begun = coordinator.begin(reason, signum, crash)
        if begun and must_leave:
            with contextlib.suppress(RuntimeError):  # the interpreter is finalizing, and leaves
                threading.Thread(target=self._watch, name="lifecycle-watchdog", daemon=True).start()
        return begun

    def patterns_of_crashes(self) -> Sequence[str]:
        """The patterns of the applications for the names of threads whose crash stops the process."""
        return [pattern for member in self.members() for pattern in member.settings.stop_on_crash]

    def crashed(self, reason: str, record: HookRecord, *, main: bool) -> None:
        """A thread has died of an exception. Called in it; in the main thread it returns when the shutdown is over."""
        if not main:
            self._begin_for(reason, record)
        elif self.coordinator.begun or self._serving():
            self._exiting = True  # as soon as this returns
            try:
                self._begin_for(reason, record)
                self._hold_main(self.coordinator)
            except KeyboardInterrupt:  # no handler of ours has the signal
                self._force(signal.SIGINT)

    def _begin_for(self, reason: str, crash: HookRecord) -> None:
        if self._begin(reason, crash=crash):
            logger.error(
                "thread %r crashed: %s; the process stops", crash.name, crash.error,
                extra={"lifecycle_thread": crash.name, "lifecycle_error": crash.error},
            )  # fmt: skip

    def _hold_main(self, coordinator: Coordinator) -> None:
        """Keep the interpreter from ending before the shutdown has; it is the watchdog that bounds it."""
        if coordinator.done.wait(coordinator.last_moment.remaining()) and coordinator.thread is not None:
            with contextlib.suppress(RuntimeError):  # it could not be started, and this thread has done its work
                coordinator.thread.join(coordinator.last_moment.remaining())

    def _watch(self) -> None:
        """Leave at the deadline, whatever still runs."""
        coordinator = self.coordinator
        what = "the shutdown or the main thread has not ended"
        last_moment = coordinator.last_moment
        if self._left.wait(last_moment.remaining()):
            threading.main_thread().join(last_moment.remaining())
            if threading.main_thread().is_alive():
                return
            threading.Event().wait(last_moment.remaining())
            what = "threads still run: " + ", ".join(thread.name for thread in _non_daemons())
        report = coordinator.report
        code = self._code or (report.exit_code or 1 if report else 1)
        limit = coordinator.remaining() or 0.0
        self._exit_now(code, f"grace period over, leaving at once: {what}", limit=limit)

    def _force(self, signum: int) -> None:
        def words() -> Iterable[str]:
            unfinished = [*self.coordinator.unfinished(), *self.coordinator.live_work()]
            yield f"forced by {signal_name(signum)}: abandoned {len(unfinished)}"
            yield from (f"abandoned {info}" for info in unfinished)

        self._exit_now(128 + signum, words=words)

    def _busy(self) -> bool:
        # Tokens of work are as good as requests: a job loop without a server has something to drain, too.
        return any(member.started or member.work.working for member in self.members())

    def _serving(self) -> bool:
        return self._busy() or self._find_server() is not None

    def _find_server(self) -> Found | None:
        if self.coordinator.owned or not self.signals:
            return None
        run_simple = self._run_simple
        if run_simple is not None and (run_simple.parent is not None or run_simple.server is not None):
            return run_simple.server
        from .servers import found  # whoever serves by run() does not pay for it

        return found.find()

    def load(self) -> Load | None:
        """What the server that carries this process has to do; ``None`` where there is none that we know."""
        server = self.carrier()
        return server.load() if server is not None else None

    def carrier(self, search: bool = True) -> Server | None:
        """The server that carries this process, if we know it, or find it; that takes as long as a request."""
        server = self.coordinator.server or self._watched
        if server is None and search:
            found = self._find_server()  # a search of all objects, so what it found is kept
            if found is not None:
                found.use_lanes(_lane_finder(self.members()))
            server = self._watched = found
        return server

    def server_info(self, search: bool = True) -> ServerInfo | None:
        """Which server carries this process; ``None`` where nothing is served. Searches, if need be."""
        server = self.carrier(search)
        if server is not None:
            return ServerInfo(server.name, server.means, server.promise, server.advice)
        served = any(member.started for member in self.members())
        return ServerInfo("unknown", "none that is known was found", STARTED) if served else None

    def tell_server(self) -> None:
        """Log which server carries this process and what it can promise, once."""
        info = None if self._told_server else self.server_info()
        if info is not None:
            self._told_server = True
            if self._watched is not None:
                self._watched.begin(self)  # before the promise, which holds from then on
            logger.info("%s", info, extra={"lifecycle_server": info.name, "lifecycle_promise": info.promise})

    def watch(self, after: float) -> PoolWatch:
        """The watch of the pool, one for all applications with the same patience in seconds."""
        from ._stuck import PoolWatch  # whoever has no such setting does not pay for it

        if after not in self._watches:
            self._watches[after] = PoolWatch(after, self.members, self.carrier)
        return self._watches[after]

    def known_load(self) -> Load | None:
        """As :meth:`load`, for who asks often: one search is made for a server that somebody else started."""
        served = any(member.started for member in self.members())  # before, there need not be one yet
        server = self.carrier(search=served and not self._searched)
        self._searched = self._searched or served
        return server.load() if server is not None else None

    # -- running --------------------------------------------------------------------------------------------------

    def run(
        self,
        app: WSGIApplication,
        member: App,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        generation: Generation | None = None,
    ) -> ShutdownReport:
        """Serve until stopped. For the main thread only.

        :param generation: this process's place in a row of processes that serve one after the other.
        """
        self._check_run()
        self.generation = generation
        try:
            return self._run(app, member, host, port, server, options)
        finally:
            # Not before: what is closed after the loop may hang as well, and so may a log.
            if self.coordinator.begun:
                self._left.set()

    def _run(
        self,
        app: WSGIApplication,
        member: App,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
    ) -> ShutdownReport:
        coordinator = self.coordinator
        coordinator.owned = True
        before: dict[int, Any] | None = {}
        try:
            if self.signals:
                given = member.settings.signals
                before = self.relay.install((signal.SIGTERM, signal.SIGINT) if given is None else given)
            if "LISTEN_FDS" in os.environ:
                from . import _activation  # few are started so

                options = _activation.with_passed_on(host, port, options)
            from . import servers  # whoever is served by others does not pay for it

            self._serve(app, member, servers.create(server, app, host, port, _lane_finder(self.members()), options))
            before = None  # all of them: this process has stopped
        except BaseException:
            if not coordinator.begun:
                coordinator.owned = False
            raise
        finally:
            for each in self.members():
                each.end()
            if self.signals:
                self.relay.restore(before)
        report = coordinator.wait()
        if report.signal is not None and member.settings.exit == "signal":
            die_by(report.signal)
            raise SystemExit(128 + report.signal)  # PID 1, whom it does not kill
        if self.signals and (others := _non_daemons()):
            names = [thread.name for thread in others]
            logger.warning("non-daemon threads still run: %s", ", ".join(names), extra={"lifecycle_threads": names})
        return report

    def _check_run(self) -> None:
        if not in_main_thread():
            raise RuntimeError(
                "run() was called outside the main thread, where no signal arrives; call it in the main one."
            )
        if self.coordinator.begun:
            raise RuntimeError(
                "run() was called after a shutdown had begun, and a process stops once; start a new process."
            )
        if self.coordinator.owned:
            raise RuntimeError("run() is serving already; to serve several applications combine them into one.")

    def _serve(self, app: WSGIApplication, member: App, runner: Runner) -> None:
        coordinator = self.coordinator
        try:
            member.open_probe_listener()
        except OSError:
            runner.close()
            raise
        if not coordinator.attach(runner):
            runner.close()
            coordinator.wait()
            return
        if self.generation is None:
            _tell_addresses(runner)
        else:
            coordinator.await_sole_owner = self.generation.await_sole_owner
            self.generation.begin(self, member, runner, lambda: _tell_addresses(runner))
        self.tell_server()
        paths = list(member.settings.probe_paths().values())
        logger.info("probes at %s", " ".join(paths), extra={"lifecycle_paths": paths})
        for each in self.members():
            each.begin()
            threading.Thread(target=each.start, name="lifecycle-startup", daemon=True).start()
        self._loop_thread = threading.get_ident()
        try:
            runner.serve()
        except BaseException as error:
            # The loop is gone and nothing can be drained; the hooks still run.
            logger.exception("the server failed", extra={"lifecycle_server": runner.name})
            self._loop_thread = None
            coordinator.server = None
            coordinator.begin(f"server failed: {type(error).__name__}")
            coordinator.wait()
            raise
        finally:
            self._loop_thread = None

    # -- carried --------------------------------------------------------------------------------------------------

    def carry(self, server: Server) -> bool:
        """Serve as the worker of a master that says when it stops; the main loop is the server's, all else as under
        ``run``. For the main thread only; ``False`` if a shutdown has begun already.
        """
        self.relay.restore()
        self.coordinator.owned = self.coordinator.carried = True
        if not self.coordinator.attach(server):
            return False
        self.tell_server()
        for each in self.members():
            each.begin()
            threading.Thread(target=_start_carried, args=(each,), name="lifecycle-startup", daemon=True).start()
        return True

    def succeed(self, reason: str) -> None:
        """Stop because another process goes on with the listeners."""
        if not self.coordinator.begun:
            self.coordinator.succeeded = True
        self.stop(reason, delay=False)

    def signalled(self, signum: int) -> None:
        """Take a signal that somebody else's handler has had; for a handler in the main thread."""
        self.relay.pass_on(signum)

    def hold(self) -> None:
        """The server has returned, and no ``atexit`` function will run: see the shutdown through, and leave with its
        code. Blocks, within the grace period.
        """
        self._at_exit()
        report = self.coordinator.report
        if report is not None and report.exit_code:
            _exit_now(report.exit_code)

    def stop(self, reason: str, signum: int | None = None, *, delay: bool, late: float = 0.0) -> None:
        """Begin the shutdown, as the master says.

        :param delay: whether all workers stop; one that is replaced leaves nobody to notice.
        :param late: for how many seconds the others have been stopping.
        """
        if not self.coordinator.begun:
            self.coordinator.delayed, self.coordinator.late = delay, late
        self._begin(reason, signum)

    def let_go(self, live: Callable[[], object]) -> ShutdownReport | None:
        """The main loop has ended: wait until the shutdown is over. The watchdog bounds it, and what comes after.

        :param live: called once a second meanwhile.
        """
        coordinator = self.coordinator
        while coordinator.report is None and coordinator.last_moment.remaining():
            live()
            coordinator.done.wait(min(1.0, coordinator.last_moment.remaining()))
        for each in self.members():
            each.end()
        self._left.set()
        return coordinator.report

    # -- leaving --------------------------------------------------------------------------------------------------

    def _keep(self, report: ShutdownReport) -> None:
        """Write the report to the files that the applications name."""
        if not self.signals:
            return
        for path in dict.fromkeys(member.settings.report_file for member in self.members()):
            if path is not None:
                from . import _receipt  # most processes leave none

                _receipt.write(path, report)

    def _exit_now(self, code: int, *lines: str, words: Callable[[], Iterable[str]] = tuple, limit: float = 0.5) -> None:
        """Leave without the interpreter's own end; if the shutdown has left no receipt yet, this one does."""
        coordinator = self.coordinator
        cut_short = coordinator.begun and coordinator.report is None
        keep = (lambda: self._keep(coordinator.report_so_far(code))) if cut_short else None
        _exit_now(code, *lines, words=words, keep=keep, limit=limit)

    def _leave(self, report: ShutdownReport, served: bool) -> None:
        """The last step of the coordinator, in its thread."""
        if self.coordinator.server is not None:
            self.coordinator.server.stop()
        if self.coordinator.owned:
            return
        for member in self.members():
            member.end()
        if not self.signals or self._exiting or not (served or self._is_left_behind(report)):
            return
        self._exit_code = report.exit_code
        signum = report.signal or signal.SIGTERM
        by_signal = report.signal is not None and any(m.settings.exit == "signal" for m in self.members())
        if not threading.main_thread().is_alive():
            return  # the interpreter waits for its threads, and then runs _at_exit
        self._exit_signal = signum if by_signal else 0
        found = cast("Found | None", self.coordinator.server)
        if found is not None and found.stays and self._drained:
            self._exit_code = 0
            self._left.set()
            return
        if found is not None and found.end():
            return
        self._exit_signal = 0
        if not self.relay.run_in_main(lambda: self._give_back(signum, None if by_signal else report.exit_code)):
            # No handler of ours: whoever has the signal gets it, and decides.
            self._exit_code = 0 if callable(signal.getsignal(signum)) else report.exit_code
            interrupt_main(signum)

    def _is_left_behind(self, report: ShutdownReport) -> bool:
        """Whether this is a process of jobs whose main thread does not end by itself: blocked in a queue, or in the job
        that was abandoned.
        """
        if not any(member.work.working for member in self.members()):
            return False
        main = threading.main_thread()
        main.join(0.0 if report.work else min(_OWN_END, self.coordinator.last_moment.remaining() / 2))
        return main.is_alive()

    def _give_back(self, signum: int, code: int | None) -> None:
        """Let whoever had a signal have it. Runs in the main thread, inside the signal handler.

        :param code: what to exit with if nobody had it; ``None`` to die by the signal.
        """
        previous = self.relay.previous(signum)
        served = self.coordinator.begun
        self.relay.restore()
        if callable(previous):
            self._exit_code = 0
            os.kill(os.getpid(), signum)
        elif not served and previous == signal.SIG_IGN:
            return
        else:
            if not served or code is None:
                die_by(signum)
            raise SystemExit(128 + signum if code is None else code)

    def _at_exit(self) -> None:
        """The interpreter leaves: run the hooks if nothing else has, and keep an exit code that a server swallowed."""
        coordinator = self.coordinator
        self._exiting = True
        # A forked child has its parent's server among its objects: what it has not used itself is not its to tear down.
        serving = self._busy if self._forked else self._serving
        if coordinator.begun or (self.members() and not coordinator.owned and serving()):
            coordinator.delayed = False  # nobody accepts any more
            coordinator.begin("interpreter exit")
            coordinator.done.wait(coordinator.last_moment.remaining())
            report = coordinator.report
            if report is None:
                limit = coordinator.remaining() or 0.0
                self._exit_now(1, "grace period over, leaving at once: the shutdown has not ended", limit=limit)
        if self._exit_signal:
            die_by(self._exit_signal)
        if self._exit_code and not coordinator.owned:
            _exit_now(self._exit_code)


def _tell_addresses(runner: Runner) -> None:
    for address in runner.addresses():
        extra = {"lifecycle_address": address, "lifecycle_server": runner.name}
        logger.info("listening on %s (%s)", address, runner.name, extra=extra)


def _lane_finder(members: Sequence[App]) -> Callable[[str], str | None]:
    """What names the lane of a request path; it is asked for every request."""
    if len(members) == 1:
        return members[0].lane
    return lambda path: next((lane for member in members if (lane := member.lane(path)) is not None), None)


def _start_carried(member: App) -> None:
    try:
        member.open_probe_listener()
    except OSError as error:
        logger.error("%s", error, extra={"lifecycle_error": str(error)})
    member.start()


def _non_daemons() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]


def _exit_now(
    code: int,
    *lines: str,
    words: Callable[[], Iterable[str]] = tuple,
    keep: Callable[[], object] | None = None,
    limit: float = 0.5,
) -> None:
    """Leave without the interpreter's own end, which might not come; what is logged is kept, if it can be.

    Whatever comes before that has a thread of its own and all together so many seconds: what is in the way may be the
    log, the disk that the report goes to, or an object of the application that is asked what it is.

    :param words: gives more lines.
    :param keep: puts away the report. It has half of the time, so that a disk does not cost the log its part.
    """

    def say() -> None:
        for line in (*lines, *words()):
            logger.error("%s", line, extra={"lifecycle_exit_code": code})
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()

    until = time.monotonic() + limit
    try:
        if keep is not None:
            _within(limit / 2, keep)
        _within(until - time.monotonic(), say)
    finally:
        os._exit(code)


def _within(seconds: float, step: Callable[[], object]) -> None:
    thread = threading.Thread(target=step, name="lifecycle-last-words", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is finalizing
        step()
    else:
        thread.join(seconds)


this_process = Process(signals=True)
