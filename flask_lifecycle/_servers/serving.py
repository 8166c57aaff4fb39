"""The server of one process: started by ``run``, attached to by gunicorn's hooks, or discovered.

With ``init_app`` alone no event reports that a server begins to serve, so two threads wait for it: one for any server
that listens (``discovery.py``), to run the start-up, and one for ``run_simple`` (``werkzeug/run_simple.py``), to
install our signal handlers. This module keeps the results, for the process and the upper layers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._core import fork
from .._core.exit import non_daemons
from .._core.inflight import Load
from .._core.log import logger
from .._core.process import Process
from .._core.report import ShutdownReport, signal_name
from .._core.server import STARTED, Application, Peers, Server, ServerInfo, Servers
from .._core.shutdown import StopRequest
from .._core.signals import in_main_thread

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .adapter import Adapter, ConnectionAdapter
    from .werkzeug import Werkzeug
    from .werkzeug.run_simple import RunSimple

_RELOAD = 3  # the exit code at which Werkzeug's reloader starts the next child
# Servers whose forked workers keep their signals: two handle them in C, where Python cannot see it, and gunicorn's
# master distinguishes its workers by what they do at them.
_THEIR_SIGNALS = {"gunicorn.arbiter", "mod_wsgi", "uwsgi"}
UNDISTURBED = 1.0  # seconds that a fork waits for the thread that searches, which may be about to start the application
_MOMENT = 0.02


class Serving(Servers):
    """The server of one process. Any thread may use it, except where noted."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lock = threading.RLock()  # guards _looking
        self._looking = False
        # Held by a thread that searches for a server and imports modules for it. A child forked meanwhile would wait
        # forever for a module that this thread has imported in part.
        self._undisturbed = threading.RLock()
        self.renew()
        process.servers = self
        if process.signals:
            fork.around_forks(self._before_fork, self._after_fork_in_parent)

    def renew(self) -> None:
        self._adapter: Adapter | None = None  # of the discovered server
        self._run_simple: RunSimple | None = None
        self._searched = False  # whether known_load() has searched
        self._logged = False
        self._listened = False  # whether there was a listener at the start
        self._loop_thread: int | None = None

    # -- discovery ------------------------------------------------------------------------------------------------

    def find(self) -> Adapter | None:
        if self.process.owner or not self.process.signals:
            return None
        run_simple = self._run_simple
        if run_simple is not None and (run_simple.parent is not None or run_simple.server is not None):
            return run_simple.server
        from . import discovery  # not imported under run()

        return discovery.find()

    def current(self, search: bool = True) -> Server | None:
        """The server, from an earlier search if there was one."""
        server = self.process.shutdown.server or self._adapter
        if server is not None or not search:
            return server
        self._adapter = self.find()  # a search takes as long as a request, so its result is kept
        if self._adapter is not None:
            self._adapter.use_probe_workers(probe_worker_finder(self.process.applications()))
        return self._adapter

    def info(self, search: bool = True) -> ServerInfo | None:
        """Name and guarantee of the server; ``None`` if the process does not serve."""
        server = self.current(search)
        if server is not None:
            return ServerInfo(server.name, server.means, server.guarantee, server.advice)
        return ServerInfo("unknown", "no known server detected", STARTED) if self._has_started() else None

    def _has_started(self) -> bool:
        return any(application.startup.succeeded for application in self.process.applications())

    def load(self) -> Load | None:
        """The server's load now; ``None`` if unknown."""
        server = self.current()
        return server.load() if server is not None else None

    def known_load(self) -> Load | None:
        """As :meth:`load`, for frequent callers: it searches only once."""
        # Before the start-up there need not be a server yet.
        served = self._has_started()
        server = self.current(search=served and not self._searched)
        self._searched = self._searched or served
        return server.load() if server is not None else None

    def attach(self) -> None:
        if not self._listened and not self.process.owner:
            from . import discovery

            self._listened = discovery.listens()
        info = None if self._logged else self.info()
        if info is not None:
            self._logged = True
            if self._adapter is not None:
                self._adapter.begin(self.process)  # before the line about the guarantee, which holds from then on
            logger.info("%s", info, extra={"lifecycle_server": info.name, "lifecycle_guarantee": info.guarantee})

    def prepare_exit(self) -> None:
        if not self.process.signals:
            return
        self.attach()
        if self.current() is None and self.serves():
            from .adapter import Adapter

            self.process.shutdown.attach(Adapter())  # an unknown server

    def serves(self) -> bool:
        """Whether a server runs in this process, known or unknown."""
        if not self.process.signals:
            return False
        if self.process.owner or self.current() is not None:
            return True
        from . import discovery

        with discovery.main_listeners() as listeners:
            # A notebook's kernel listens too, but serves no application.
            return bool(listeners) and not hasattr(sys, "ps1")

    def has_listened(self) -> bool:
        from . import discovery

        return self._listened or self.current(search=False) is not None or discovery.listens()

    def main_host(self) -> tuple[str, bool]:
        """The host that the server listens on, and whether it is for IPv6 only; 127.0.0.1 if unknown."""
        from . import discovery, sockets

        with discovery.main_listeners() as listeners:
            return sockets.common_host(listeners)

    # -- the start-up of what is served ----------------------------------------------------------------------------

    def look(self) -> None:
        """Start a thread that waits for a server to begin serving, and then starts the applications."""
        with self._lock:
            if self._looking or not self._waits_for_server():
                return
            self._looking = True
        with contextlib.suppress(RuntimeError):  # the interpreter is finalizing
            threading.Thread(target=self._start_when_served, name="lifecycle-discovery", daemon=True).start()

    def _waits_for_server(self) -> bool:
        """Whether an application waits for its start. If not, the waiting thread, which asks this, ends."""
        with self._lock:
            process = self.process
            started = all(each.startup.succeeded for each in process.applications())
            done = process.owner or process.shutdown.begun or started
            self._looking = self._looking and not done  # an application added now gets another thread
            return not done

    def _start_when_served(self) -> None:
        threading.Event().wait(_MOMENT)  # by then most commands have ended, and run() has begun
        with self._undisturbed:
            from . import discovery
        if discovery.wait_for_server(self._waits_for_server, self._undisturbed):
            if self._run_simple is not None:
                self._run_simple.await_server()
            for application in self.process.applications():
                try:
                    with self._undisturbed:
                        application.startup.ensure()
                except Exception as error:
                    logger.error("%s", error, extra={"lifecycle_error": str(error)})
        with self._lock:
            self._looking = False

    # -- signals --------------------------------------------------------------------------------------------------

    def keeps_all_signals(self) -> bool:
        # mod_wsgi permits no signal handler, and logs each attempt.
        return "mod_wsgi" in sys.modules or _in_uwsgis_master()

    def take_signals_in_child(self) -> None:
        """Install our signal handlers in a forked child that begins to serve.

        Not earlier, because most children serve nothing, and their parent may end them by the same signal. Any thread
        may call this; it waits for the main thread.
        """
        process = self.process
        if not process.forked or process.relay.installed or process.owner or process.shutdown.begun:
            return
        if not _THEIR_SIGNALS.isdisjoint(sys.modules):
            return
        from . import discovery

        if discovery.listens():
            process.relay.run_in_main_by_sigurg(process.take_signals)

    def signals_taken(self) -> None:
        if self._run_simple is None:
            from .werkzeug.run_simple import RunSimple  # not imported in tests, which take no signals

            self._run_simple = RunSimple(self.process, self._find_werkzeug, self._server_ends)
        self._run_simple.watch()

    def _find_werkzeug(self) -> Werkzeug | None:
        with self._undisturbed:
            from . import discovery, werkzeug

            found = discovery.find(only="werkzeug")
            return found if isinstance(found, werkzeug.Werkzeug) else None

    def _server_ends(self, reloads: bool) -> None:
        """Drain before ``run_simple`` closes its server in the main thread. Returns when the process may exit."""
        from .werkzeug.run_simple import signal_that_ends

        process, shutdown = self.process, self.process.shutdown
        process.exit.under_way = True
        signum = signal_that_ends()
        if signum is not None:
            process.begin(StopRequest(signal_name(signum), signum))
        if not shutdown.begun:
            process.exit.forced_code = _RELOAD if reloads else None
            # The server accepts no more connections, so a delay has no use.
            process.begin(StopRequest("code change" if reloads else "the server's loop has ended", delay=False))
        process.exit.hold_main()
        if not reloads:
            process.exit.returned.set()  # the program may have other things to do
        report = shutdown.report
        if reloads and report is not None and shutdown.signal is not None:
            raise SystemExit(report.exit_code)  # stopped by a signal: the parent must not start the next child

    @property
    def reloads(self) -> bool:  # type: ignore[override]
        return self._run_simple is not None and self._run_simple.reloads

    def takes_signal(self, signum: int) -> bool:
        if self._run_simple is not None and self._run_simple.parent is not None:
            self._run_simple.parent.receive(signum)
            return True
        return signum == signal.SIGURG  # meant for a reloader's parent; its child has the same handler

    def postpones_signal(self, signum: int) -> bool:
        return self._run_simple is not None and self._run_simple.postpones(signum)

    # -- forks ----------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        if self._run_simple is not None:
            self._run_simple.await_start()
        self._undisturbed.acquire(timeout=UNDISTURBED)

    def _after_fork_in_parent(self) -> None:
        with contextlib.suppress(RuntimeError):  # not ours: the wait for it timed out
            self._undisturbed.release()

    def leave_to_parent(self) -> bool:
        discovery = sys.modules.get("flask_lifecycle._servers.discovery")
        if discovery is not None and self.current(search=False) is not None:
            discovery.leave_to_parent()
        self._lock = threading.RLock()
        self._undisturbed = threading.RLock()
        self._looking = False
        if self._run_simple is None or not self._run_simple.forked_for_request():
            return False
        from . import werkzeug

        werkzeug.leave_signals_to_parent(self._run_simple.signals())
        return True

    def begin_in_child(self, answers: bool) -> None:
        if not answers and not fork.is_to_be_patched():  # after patching this is called again
            if self.process.wanted:
                self.process.relay.take_sigurg()  # for take_signals_in_child()
            self.look()

    # -- run ------------------------------------------------------------------------------------------------------

    def in_loop(self) -> bool:
        return threading.get_ident() == self._loop_thread

    def run(
        self,
        app: WSGIApplication,
        application: Application,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        peers: Peers | None = None,
    ) -> ShutdownReport:
        """Serve until stopped. For the main thread only.

        :param peers: the processes that serve at this address before and after this one.
        """
        from . import bind, create

        def make_server() -> ConnectionAdapter:
            return create(server, app, host, port, bind.with_passed_on(host, port, options))

        self._check_run()
        self.process.shutdown.peers = peers or Peers()
        try:
            return self._run(application, make_server)
        finally:
            # Only now, because closing the server and logging may hang too.
            if self.process.shutdown.begun:
                self.process.exit.returned.set()

    def _check_run(self) -> None:
        if not in_main_thread():
            raise RuntimeError(
                "run() was called outside the main thread, where no signal arrives; call it in the main one."
            )
        if self.process.shutdown.begun:
            raise RuntimeError(
                "run() was called after a shutdown had begun, and a process stops once; start a new process."
            )
        if self.process.owner:
            raise RuntimeError("run() is serving already; to serve several applications combine them into one.")

    def _run(self, application: Application, make_server: Callable[[], ConnectionAdapter]) -> ShutdownReport:
        process, shutdown = self.process, self.process.shutdown
        process.owner = "run"
        shutdown.expect_server(True)
        before: dict[int, Any] | None = {}
        try:
            if process.signals:
                given = application.settings.signals
                before = process.relay.install((signal.SIGTERM, signal.SIGINT) if given is None else given)
            self._serve(application, make_server())
            before = None  # restore all handlers, because this process has stopped
        except BaseException:
            if not shutdown.begun:
                process.owner = ""
            raise
        finally:
            shutdown.expect_server(False)
            process.end_applications()
            if process.signals:
                process.relay.restore(before)
        report = shutdown.wait()
        process.exit.decide(report)
        if process.exit.signal:  # our atexit function ends the process by it
            raise SystemExit(128 + process.exit.signal)
        if process.signals and (others := non_daemons()):
            names = [thread.name for thread in others]
            logger.warning("non-daemon threads still run: %s", ", ".join(names), extra={"lifecycle_threads": names})
        return report

    def _serve(self, application: Application, runner: ConnectionAdapter) -> None:
        process, shutdown, peers = self.process, self.process.shutdown, self.process.shutdown.peers
        runner.use_probe_workers(probe_worker_finder(process.applications()))
        # The process is ready when all its applications are.
        others = [] if peers.one_application else [each for each in process.applications() if each is not application]
        try:
            for each in (application, *others):
                each.open()
        except OSError:
            runner.close()
            raise
        if not shutdown.attach(runner):
            runner.close()
            shutdown.wait()
            return
        peers.attach(process, application, runner, lambda: _log_addresses(runner))
        self.attach()
        paths = list(application.settings.probe_paths().values())
        logger.info("probes at %s", " ".join(paths), extra={"lifecycle_paths": paths})
        for each in process.applications():
            each.startup.begin()
            threading.Thread(target=each.startup.run, name="lifecycle-startup", daemon=True).start()
        self._loop_thread = threading.get_ident()
        try:
            runner.serve()
        except BaseException as error:
            # The loop has ended, so nothing can be drained; the hooks still run.
            logger.exception("the server failed", extra={"lifecycle_server": runner.name})
            self._loop_thread = None
            shutdown.server = None
            process.begin(StopRequest(f"server failed: {type(error).__name__}", delay=False))
            shutdown.wait()
            raise
        finally:
            self._loop_thread = None

    def serve_in_worker(self, server: Server) -> bool:
        """Begin to serve in a worker of gunicorn, which has the main loop.

        Call it in the main thread only. Returns ``False`` if a shutdown has begun already.
        """
        self.process.relay.restore()
        self.process.owner = "gunicorn"
        if not self.process.shutdown.attach(server):
            return False
        self.attach()
        for each in self.process.applications():
            each.startup.begin()
            threading.Thread(target=_start_in_worker, args=(each,), name="lifecycle-startup", daemon=True).start()
        return True


def _in_uwsgis_master() -> bool:
    """Whether this process is uWSGI's master, or a mule, where no thread of ours may run.

    uWSGI forks without the interpreter's lock. Interleavings: our thread waits, and the new worker takes the lock; or
    our thread has the lock when the worker is forked, and in the worker nothing releases it, so it never serves. A
    worker starts the application itself.
    """
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and bool(uwsgi.opt.get("master")) and not uwsgi.worker_id()


def _log_addresses(runner: ConnectionAdapter) -> None:
    for address in runner.addresses():
        extra = {"lifecycle_address": address, "lifecycle_server": runner.name, "lifecycle_pid": os.getpid()}
        logger.info("listening on %s (%s, pid %d)", address, runner.name, os.getpid(), extra=extra)


def probe_worker_finder(applications: Sequence[Application]) -> Callable[[str], str | None]:
    """A function that returns the name of the probe at a request path; servers call it for every request."""
    if len(applications) == 1:
        return applications[0].probe_worker
    return lambda path: next(
        (probe_worker for application in applications if (probe_worker := application.probe_worker(path)) is not None),
        None,
    )


def _start_in_worker(application: Application) -> None:
    if application.open_or_fail():
        application.startup.run()


this_process = Process(signals=True)
this_serving = Serving(this_process)
