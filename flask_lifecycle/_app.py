"""One application's part: its ledger, its states, its health, its probes. The wiring of what does the work."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from flask import Flask

from ._config import AUTO, METRICS_PATH, Settings
from ._inflight import Ledger, Load
from ._parties import Notice
from ._probers import Probers
from ._process import Process
from ._registration import Registered
from ._report import ShutdownReport, shutdown_complete
from ._self_test import obstacle
from ._state import Event, State, StateMachine, announce_change, logger, send
from ._views import Probes, install_guard
from .checks import CheckContext, HealthReport
from .checks._health import Health

if TYPE_CHECKING:
    import socket

    from _typeshed.wsgi import WSGIApplication

    from ._control import Control
    from ._handover import Generation
    from ._page import StatusPage
    from ._probe_server import ProbeServer
    from ._startup import StartupTask


# How often is said what holds up a start: often enough for whoever watches a deploy, and no flood over a night.
STILL_STARTING = 60.0


def _is_spawned() -> bool:
    """Whether a supervisor that uses multiprocessing has started this process, as those of ASGI servers do."""
    parent = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    return parent is not None and parent() is not None


class Companion(Protocol):
    """What goes along with an application from its start to its end. An application in testing mode has none begin."""

    def begin(self) -> None:
        """The process serves, or is about to: take up work. Called once, before the start-up."""

    def state_changed(self, new: State, reason: str) -> None:
        """The state has changed; called in the thread that changed it, so it must not block."""

    def end(self) -> None:
        """The shutdown is over; give back what is held."""


class AppState:
    """One application's part: what ``app.extensions["lifecycle"]`` holds."""

    def __init__(self, app: Flask, settings: Settings, registered: Registered, process: Process) -> None:
        self.settings = settings
        self.hooks = registered.hooks
        self.work = registered.work
        self.tasks = registered.tasks
        checks = registered.checks
        self.process = process
        self.ledger = Ledger()
        self.ledger.remote = settings.log_remote_addr
        self.refused = 0  # requests that the guard has answered
        self.last_receipt: dict[str, Any] | None = None  # of the stop before this start, where there is a file of it
        self.draining = threading.Event()
        self.probers = Probers()
        self.machine = StateMachine(ready=settings.ready == "auto", notify=self._state_changed)
        keep = settings.readiness_on_drain == "keep"
        self.health = Health(self, checks.checks, app, self.machine, settings.probe_timeout, keep=keep)
        self.probes = Probes(settings, checks, self.health, app, self.nudge, self.document, self.page, self.probers)
        self.notice = self._automatic_delay()
        checks.watch(self.probes.judge, self._registered)
        self.tasks.listen(self._look_at_tasks)
        self.companions: list[Companion] = []
        if settings.metrics:
            self._add_metrics()
        self.name = app.name
        self.since = time.monotonic()  # when this process began to serve it
        self._page: StatusPage | None = None
        self.control: Control | None = None
        self._add_operators()
        self._app = app
        self._served: WSGIApplication = app  # what a request goes through
        self._probe_server: ProbeServer | None = None
        self._gate = threading.Event()  # opened when the start-up is over or will not come
        self._lock = threading.Lock()  # guards the one-time steps: start, refuse, and the probe listener
        self._seen_to_in = 0
        self._started_in = 0
        self._begun_in = 0
        self._functions_over = False  # of the start-up
        self._failed: list[StartupTask] = []  # those that have made it not ready; set_ready() may come after that
        self._refusing = False
        self.served_since: float | None = None  # when requests stopped to wait for the start-up
        if settings.stuck_after is not None:
            self.health.watch_pool(process.watch(settings.stuck_after))
        if process.signals:
            self._take_along()

    def _take_along(self) -> None:
        """Make the companions that are wanted; what only a few want is imported for them alone."""
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            from ._advice import Advice

            paths = self.settings.probe_paths()
            named = {"ready": paths["readyz"], "healthcheck": paths["healthcheck"], "live": paths["livez"]}
            self.companions.append(Advice(self.probers, named, self._is_alone))
        if os.environ.get("NOTIFY_SOCKET"):
            from ._systemd import Notifier

            self.companions.append(self.process.share(Notifier))
        if self.settings.stop_on_crash:
            from ._crash import CrashWatch

            watch = self.process.share(CrashWatch)
            watch.install()
            self.companions.append(watch)

    def _is_alone(self) -> bool:
        """Whether whoever asks this instance asks this process."""
        return self.process.coordinator.owned and not self.process.coordinator.carried

    def _add_operators(self) -> None:
        """What operators may ask for, by HTTP and by file; whoever lets them ask for nothing does not pay for it."""
        settings = self.settings
        by_http = settings.token is not None and settings.probe_port is not None
        if not by_http and settings.control_dir is None:
            return
        from ._control import Control

        self.control = Control(self.machine, self.process.drain)
        self.companions.append(self.control)
        if by_http:
            from ._operators import Operators

            self.probes.operators = Operators(self.control, self.probes.fold(settings.url_prefix))
        if settings.control_dir is not None:
            from ._control_dir import ControlDirectory

            self.companions.append(ControlDirectory(settings.control_dir, self.control))

    def _automatic_delay(self) -> Notice | None:
        if self.settings.shutdown_delay != AUTO:
            return None
        from ._notice import Probed  # whoever has a delay of so many seconds does not pay for it

        return Probed(self.settings, self.probers, self.ledger, bool(os.environ.get("KUBERNETES_SERVICE_HOST")))

    def _add_metrics(self) -> None:
        from .metrics import Metrics  # whoever has none does not pay for it

        metrics = Metrics(self.process.members)
        self.companions.append(metrics)
        self.probes.beside |= {METRICS_PATH: metrics, f"{METRICS_PATH}/": metrics}

    def context(self) -> AbstractContextManager[Any]:
        return self._app.app_context()

    def ensure_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if type(self._app).ensure_sync is not Flask.ensure_sync:
            return self._app.ensure_sync(function)
        # A loop for each call, as Flask's own does it; but in the thread of the check, which is a daemon. asgiref's
        # would be one that the interpreter waits for at its end, for as long as the check hangs.
        import asyncio  # takes longer than all of this package

        return lambda *arguments: asyncio.run(function(*arguments))

    def check_context(self) -> CheckContext:
        return CheckContext(self.machine.state, self.machine.reason, self.in_flight, self.remaining())

    def _state_changed(self, old: State, new: State, reason: str) -> None:
        announce_change(self._app, old, new, reason)
        self.health.state_changed(old, new, reason)
        self._tell_companions(lambda companion: companion.state_changed(new, reason))

    def _tell_companions(self, tell: Callable[[Companion], object]) -> None:
        for companion in self.companions:
            try:
                tell(companion)
            except Exception:
                name = type(companion).__name__
                logger.exception("%s failed", name, extra={"lifecycle_companion": name})

    def _registered(self) -> None:
        """A check or a group was registered."""
        self.probes.update()
        self.health.engine.wake()

    def document(self, report: HealthReport) -> dict[str, Any]:
        """All there is to tell to whoever may see details."""
        from ._status import status_document  # whoever is not asked for it does not pay for it

        return status_document(self, report)

    def page(self) -> StatusPage:
        """The status page; made when somebody looks at it for the first time."""
        from ._page import StatusPage

        with self._lock:
            if self._page is None:
                self._page = StatusPage(self)
                self.companions.append(self._page)
            return self._page

    @property
    def in_flight(self) -> int:
        return len(self.ledger)

    def remaining(self) -> float | None:
        return self.process.coordinator.remaining()

    def run(
        self,
        app: WSGIApplication,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        generation: Generation | None = None,
    ) -> ShutdownReport:
        self._served = app
        return self.process.run(app, self, host, port, server, options, generation)

    # -- start-up -------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the start-up has succeeded, in this process and not in one that was forked into it."""
        return self._started_in == os.getpid()

    def before_first(self) -> bool:
        """Hold a request until the start-up is over or will not come; see to the start-up where nobody else does."""
        if not self._gate.is_set():
            self.see_to_start()
            self._gate.wait()
        return True

    def nudge(self) -> None:
        """A probe has come: it may be the first request, but must not wait for a start-up that takes its time."""
        if self.control is not None:
            self.control.nudge()
        self.see_to_start()

    def see_to_start(self) -> None:
        """Run the start-up, once for each application; one that takes its time has a thread of its own.

        Called for the first request or probe, and by who finds that a server serves, which mostly is before.

        A stop must be able to answer the requests that wait for a start-up that hangs.
        """
        if self._gate.is_set() or self.process.coordinator.owned:
            return
        if not self.hooks.of("startup"):
            self.start()
            return
        with self._lock:
            first = self._seen_to_in != os.getpid()
            self._seen_to_in = os.getpid()
        if first:
            threading.Thread(target=self.start, name="lifecycle-startup", daemon=True).start()

    def begin(self) -> None:
        """The process serves, or is about to; twice is harmless."""
        with self._lock:
            if self._begun_in == os.getpid():
                return
            self._begun_in = os.getpid()
            self.since = time.monotonic()
        if self.settings.report_file is not None:
            from . import _receipt  # most processes leave none

            self.last_receipt = _receipt.read(self.settings.report_file)
        if self.process.signals:  # an application in testing mode gets no threads that nobody ends
            self._tell_companions(lambda companion: companion.begin())
            if self.hooks.of("startup") or self.tasks.active:
                threading.Thread(target=self._watch_start, name="lifecycle-startup-watch", daemon=True).start()

    def start(self) -> None:
        """Run the start-up, once; blocks until its functions are over, but for no task."""
        self.begin()
        coordinator = self.process.coordinator
        failed = self.hooks.start(self.context, coordinator)
        if failed:
            self.process.shutdown(f"start-up failed: on_startup '{failed}'", wait=False)
            return
        with self._lock:
            if self._functions_over or self._gate.is_set():
                return
            self._functions_over = True
            self._started_in = os.getpid()
        if self.process.signals and not self.machine.ending:
            # Before READY: who is sent work may be stopped, and whoever stops the server is to come to us. Before the
            # gate: who waits there may fork next, and a child has what a thread imports only in part.
            self.process.tell_server()
        self.tasks.fail_lost()
        self._look_at_tasks()  # without the lock: whoever hears of READY may send a probe
        if self.machine.ending:
            return
        if not coordinator.owned:
            try:
                self.open_probe_listener()
            except OSError:
                self.process.shutdown("the probe listener could not start", wait=False)
                raise
        self.served_since = self.ledger.clock()
        self._gate.set()
        if self.process.signals:
            self.health.engine.start()
            if self.settings.self_test:
                threading.Thread(target=self._test_probe, name="lifecycle-self-test", daemon=True).start()

    def _look_at_tasks(self) -> None:
        """The start-up is over when its functions and its tasks are, whichever end last (see ``_startup.py``)."""
        fatal = self.tasks.failed("shutdown")
        if fatal and self._begun_in == os.getpid():  # where nothing is served there is nothing to stop
            self.process.shutdown(f"start-up failed: startup task '{fatal[0].name}'", wait=False)
        if fatal or self.machine.state is not State.STARTING:
            return
        with contextlib.suppress(RuntimeError):  # another thread, or the shutdown, was quicker
            for task in [task for task in self.tasks.failed("not_ready") if task not in self._failed]:
                self._failed.append(task)
                self.machine.apply(Event.SET_NOT_READY, f"startup task '{task.name}' failed")
            if self._functions_over and self.tasks.close():
                self.machine.apply(Event.STARTED)

    def _watch_start(self) -> None:
        """Say every minute what the start-up waits for: one that hangs must not do so in silence."""
        waited = 0.0
        while not self.machine.wait_for(lambda state: state is not State.STARTING, STILL_STARTING):
            waited += STILL_STARTING
            running = [f"on_startup '{self.hooks.starting}'"] if self.hooks.starting else []
            running += [f"startup task '{task.name}'" for task in self.tasks.tokens()]
            logger.warning(
                "not ready after %.0f s, waiting for %s", waited, ", ".join(running) or "the start-up",
                extra={"lifecycle_waiting": running},
            )  # fmt: skip

    def _test_probe(self) -> None:
        path = self.settings.probe_paths()["livez"]
        found = obstacle(self._served, path)
        if found:
            logger.warning(
                "A probe as a kubelet sends it (GET %s to an IP address, by http, without cookies) %s;"
                " exempt the probes there, or wrap the application before init_app.",
                path, found, extra={"lifecycle_path": path},
            )  # fmt: skip

    def load(self) -> Load | None:
        """What the server has to do, with the ledger's age of the oldest request, which not every server knows."""
        load = self.process.load()
        running = self.ledger.requests()
        if load is None or not running:
            return load
        return load._replace(oldest=max(load.oldest, running[0].age))

    def after_fork(self, *, answers: bool = False) -> None:
        """Forget in a forked child that the parent has started: what serves there runs its own start-up and hooks.

        An application that was loaded, and warmed up, by the master of a prefork server has started in no worker.

        :param answers: the child answers one request for its parent, which has started and will stop for it.
        """
        self._lock = threading.Lock()
        self._probe_server = None  # its socket is closed in the child
        if answers and self.served_since is not None:
            self.machine.after_fork(keep=True)
            self._gate = threading.Event()
            self._gate.set()
            return
        self.hooks.after_fork()
        self.machine.after_fork()
        if not self.machine.ending:
            self._gate = threading.Event()
            self._functions_over = False
            self.served_since = None
            if self.ledger.rearm is not None:
                self.ledger.rearm()

    # -- shutdown -------------------------------------------------------------------------------------------------

    def begin_drain(self, reason: str) -> None:
        if self.process.coordinator.succeeded:
            self.health.outlive()
        if not self.started:
            self.refuse()
        self.ledger.forget_dropped()
        self.ledger.count_leavers()
        self._gate.set()  # before the state, because who hears of that may hang, and who waits is to be answered
        self.machine.apply(Event.DRAIN, reason)
        self.draining.set()

    def refuse(self) -> None:
        with self._lock:
            if not self._refusing:
                self._refusing = True
                install_guard(self._app, self.process.coordinator.remaining, self._count_refusal)

    def _count_refusal(self) -> None:
        with self._lock:
            self.refused += 1

    @property
    def served(self) -> int:
        """How many requests have been answered since the drain began, but for those that were refused."""
        return max(0, self.ledger.left - self.refused)

    def told(self, report: ShutdownReport) -> None:
        send(shutdown_complete, self._app, report=report)

    def withdraw(self) -> None:
        self.health.withdraw()
        if self._page is not None:
            self._page.audience.changed(closed=True)

    # -- the probe listener ---------------------------------------------------------------------------------------

    def open_probe_listener(self) -> None:
        port = self.settings.probe_port
        if port is None:
            return
        from ._probe_server import ProbeServer  # whoever has no such listener does not pay for it

        with self._lock:
            if self._probe_server is None:
                # Each worker has a listener of its own on the one port, and the kernel deals them out.
                shared = not {"gunicorn.arbiter", "uwsgi", "mod_wsgi"}.isdisjoint(sys.modules) or _is_spawned()
                generation = self.process.generation
                handed = generation.probes if generation is not None else None
                host = self.settings.probe_host
                self._probe_server = ProbeServer(self.probes, host, port, shared=shared, handed=handed)
                if generation is None or generation.first:
                    self._probe_server.start()

    @property
    def probe_socket(self) -> socket.socket | None:
        return self._probe_server.listener if self._probe_server is not None else None

    def start_probe_listener(self) -> None:
        if self._probe_server is not None:
            self._probe_server.start()

    def close_probe_listener(self) -> None:
        with self._lock:
            server, self._probe_server = self._probe_server, None
        if server is not None:
            server.close()

    @property
    def probe_address(self) -> tuple[str, int] | None:
        server = self._probe_server
        return None if server is None else (server.host, server.port)

    def lane(self, path: str) -> str | None:
        return self.probes.lane(path)

    def end(self) -> None:
        self._tell_companions(lambda companion: companion.end())
        self.close_probe_listener()
