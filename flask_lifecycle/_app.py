"""One application: its state, health, probes and features. The object in ``app.extensions["lifecycle"]``."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flask import Flask
from werkzeug import Response

from ._config import AUTO, Settings, given_keys
from ._core.callbacks import error_text
from ._core.feature import Feature
from ._core.hooks import HookRecord, Hooks
from ._core.inflight import Ledger, Load
from ._core.log import logger, show_log
from ._core.report import ShutdownReport, shutdown_complete
from ._core.startup import Startup, StartupTasks
from ._core.state import Event, State, StateMachine, announce_change, send
from ._core.work import WorkLedger
from ._probes.blueprint import Guard
from ._probes.endpoints import Probes
from ._probes.self_test import check_setup
from ._servers.serving import Serving
from .checks import CheckContext, HealthReport
from .checks._health import Health, Registry

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ._core.process import Process
    from ._core.server import AdaptiveDelay, Peers
    from ._core.shutdown import StopRequest
    from ._operators.cordon import Control
    from ._probes.listener import ProbePort


def _operators_over_http(settings: Settings) -> bool:
    return settings.token is not None and settings.probe_port is not None


# The name of each feature, what asks for it, and the class that is imported then. In the order in which they begin and
# stop: the probe listener is closed last.
FEATURES: tuple[tuple[str, Callable[[Settings], object], str], ...] = (
    ("report file", lambda settings: settings.report_file, "_core.report_file:ReportFile"),
    ("metrics", lambda settings: settings.metrics, "metrics:Metrics"),
    ("cordon", lambda s: s.control_dir or _operators_over_http(s), "_operators.cordon:Control"),
    ("operators over HTTP", _operators_over_http, "_operators.http:Operators"),
    ("control directory", lambda settings: settings.control_dir, "_operators.files:ControlDirectory"),
    ("stuck workers", lambda settings: settings.stuck_after, "_monitors.stuck_workers:PoolWatch"),
    ("systemd", lambda settings: os.environ.get("NOTIFY_SOCKET"), "_monitors.systemd:Notifier"),
    ("crash watch", lambda settings: settings.stop_on_crash, "_monitors.crash:CrashWatch"),
    ("adaptive delay", lambda settings: settings.shutdown_delay == AUTO, "_probes.adaptive_delay:AdaptiveDelay"),
    ("self-test", lambda settings: settings.self_test, "_probes.self_test:SelfTest"),
    ("probe listener", lambda settings: settings.probe_port is not None, "_probes.listener:ProbePort"),
    ("routes of verify", lambda settings: os.environ.get("LIFECYCLE_VERIFY"), "_verify.routes:VerifyRoutes"),
)
NOT_IN_TESTING_MODE = {"systemd", "crash watch", "self-test"}


class Registered:
    """The checks and functions registered on one ``Lifecycle``, and its applications, which share them."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.checks = Registry()
        self.work = WorkLedger()
        self.tasks = StartupTasks()
        self.apps: weakref.WeakSet[Flask] = weakref.WeakSet()


class Application:
    """One application, as ``app.extensions["lifecycle"]`` has it."""

    def __init__(self, app: Flask, settings: Settings, registered: Registered, serving: Serving) -> None:
        self.flask = app
        self.settings = settings
        self.given = given_keys(app.config)  # the keys that the settings were read from
        self.outermost: WSGIApplication = app  # the WSGI application that run() serves; it contains the Flask one
        self.registered = registered
        self.serving = serving
        self.hooks = registered.hooks.of_application()
        self.ledger = Ledger()
        self.ledger.remote = settings.log_remote_addr
        self.machine = StateMachine(
            ready=settings.ready == "auto",
            record=lambda *change: self.health.record_state(*change),
            notify=self._state_changed,
        )
        self.health = Health(
            self, registered.checks.checks, app, self.machine, settings.probe_timeout,
            keep=settings.readiness_on_drain == "keep",
        )  # fmt: skip
        self.startup = Startup(self, serving.process)
        self.probes = Probes(self)
        self.guard = Guard(self.remaining)
        self.features: dict[str, Feature] = {}
        registered.checks.watch(self.probes.validate, self._registered)
        registered.tasks.listen(self._task_ended)
        for name, wanted, place in FEATURES:
            if wanted(settings) and (serving.process.signals or name not in NOT_IN_TESTING_MODE):
                module, _, class_name = place.partition(":")
                self.features[name] = getattr(import_module(f".{module}", __package__), class_name).of(self)

    # -- what others read ---------------------------------------------------------------------------------------------

    @property
    def process(self) -> Process:
        return self.serving.process

    @property
    def work(self) -> WorkLedger:
        return self.registered.work

    @property
    def tasks(self) -> StartupTasks:
        return self.registered.tasks

    @property
    def control(self) -> Control | None:
        return self.features.get("cordon")  # type: ignore[return-value]

    @property
    def adaptive_delay(self) -> AdaptiveDelay | None:
        return self.features.get("adaptive delay")  # type: ignore[return-value]

    @property
    def probe_listener(self) -> ProbePort | None:
        return self.features.get("probe listener")  # type: ignore[return-value]

    @property
    def last_report(self) -> dict[str, Any] | None:
        """The report that the process before this one has written."""
        return getattr(self.features.get("report file"), "last", None)

    @property
    def draining(self) -> threading.Event:
        return self.machine.draining

    @property
    def in_flight(self) -> int:
        return len(self.ledger)

    @property
    def refused(self) -> int:
        return self.guard.refused

    @property
    def served(self) -> int:
        """How many requests have been answered since the drain began, without those that were refused."""
        return max(0, self.ledger.left - self.refused)

    def remaining(self) -> float | None:
        return self.process.shutdown.remaining()

    @property
    def probe_worker(self) -> Callable[[str], str | None]:
        return self.probes.worker  # the method itself: a server may call it for every request

    def load(self) -> Load | None:
        """The server's load, with the age of the oldest request in the application, which not every server knows."""
        load = self.serving.load()
        running = self.ledger.requests()
        if load is None or not running:
            return load
        return load._replace(oldest=max(load.oldest, running[0].age))

    # -- for checks and probes ----------------------------------------------------------------------------------------

    def context(self) -> AbstractContextManager[Any]:
        return self.flask.app_context()

    def ensure_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if type(self.flask).ensure_sync is not Flask.ensure_sync:
            return self.flask.ensure_sync(function)
        # A loop for each call, as Flask does it; but in the thread of the check, which is a daemon. asgiref starts a
        # thread that the interpreter joins at its exit, even if the check hangs.
        import asyncio  # takes longer than all of this package

        return lambda *arguments: asyncio.run(function(*arguments))

    def check_context(self) -> CheckContext:
        return CheckContext(self.machine.state, self.machine.reason, self.in_flight, self.remaining())

    def _registered(self) -> None:
        """A check or a group was registered."""
        self.probes.update()
        self.health.engine.wake()

    def document(self, report: HealthReport) -> Mapping[str, Any]:
        """The status document, for callers allowed to see details."""
        from ._status.document import status_document  # imported when the first caller asks for it

        return status_document(self, report)

    def page(self, report: HealthReport, path: str) -> Response:
        """The status page."""
        from ._status.page import page_response

        return page_response(self.document(report), path)

    def asset(self, name: str, query: str) -> Response:
        """A file of the status page."""
        from ._status.page import asset_response

        return asset_response(name, query)

    # -- start --------------------------------------------------------------------------------------------------------

    def run(
        self,
        app: WSGIApplication,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        peers: Peers | None = None,
    ) -> ShutdownReport:
        """Serve; ``app`` is the Flask application or contains it."""
        self.outermost = app
        show_log()
        return self.serving.run(app, self, host, port, server, options, peers)

    def wait_started(self) -> bool:
        return self.startup.wait()

    def _task_ended(self) -> None:
        self.startup.check_tasks()

    def open(self) -> None:
        for feature in self.features.values():
            feature.open()

    def open_or_fail(self) -> bool:
        """Open the features; where that fails the start-up has failed, if a server runs in this process.

        A test suite or a shell goes on without: another process may have the port. Where a server runs, the features of
        all its applications are opened: a shared probe listener must not say ready while another application starts.
        """
        served = self.serving.current(search=False) is not None
        try:
            for each in self.process.applications() if served else (self,):
                each.open()
        except OSError as error:
            if self.flask.testing or not self.serving.serves():
                logger.warning(
                    "%s No server runs in this process, so it continues without the probe listener.",
                    error.strerror, extra={"lifecycle_error": str(error)},
                )  # fmt: skip
                return True
            self.startup.succeeded = False  # requests are refused
            self.hooks.records.append(HookRecord("probe listener", "listener", "failed", 0.0, error_text(error)))
            logger.error("start-up failed: %s", error.strerror, extra={"lifecycle_error": str(error)})
            self.process.fail_start("probe listener")
            return False
        return True

    def begin_serving(self) -> None:
        self.serving.take_signals_in_child()
        if self.process.signals:  # in testing mode nothing would end their threads
            self._each_feature(lambda feature: feature.begin())

    def check_setup(self) -> None:
        check_setup(self.flask, self.ledger, self.probes, self.given)

    def start_checks(self) -> None:
        self.health.engine.start()

    def after_fork(self, *, answers: bool = False) -> None:
        """Forget in a forked child that the parent has started: a child that serves runs its own start-up and hooks.

        An application that the master of a prefork server has loaded and warmed up has started in no worker.

        :param answers: the child answers one request for its parent, which has started and will stop for it.
        """
        served_since = self.startup.served_since if answers else None
        self.startup = Startup(self, self.process)
        self.startup.served_since = served_since
        self.machine.after_fork(keep=served_since is not None)
        self.health.after_fork()
        for feature in self.features.values():
            feature.after_fork()
        if served_since is not None or self.machine.ending:
            self.startup.over.set()
        elif self.ledger.rearm is not None:
            self.ledger.rearm()
        if served_since is None:
            self.hooks.records.clear()
            self.tasks.records.clear()

    # -- changes of the state, and the shutdown -----------------------------------------------------------------------

    def _state_changed(self, old: State, new: State, reason: str) -> None:
        announce_change(self.flask, old, new, reason)
        self.health.state_changed(new)
        self._each_feature(lambda feature: feature.state_changed(new, reason))

    def _each_feature(self, call: Callable[[Feature], object]) -> None:
        for name, feature in self.features.items():
            try:
                call(feature)
            except Exception:
                logger.exception("%s failed", name, extra={"lifecycle_feature": name})

    def begin_drain(self, request: StopRequest) -> Callable[[], object]:
        if request.successor:
            self.health.hand_over_readiness()
        if not self.startup.succeeded:
            self.refuse()
        self.ledger.count_leavers()
        self.startup.over.set()  # before the state: a receiver may hang, and the requests that wait must be answered
        _state, announce = self.machine.change(Event.DRAIN, request.reason)
        if "socketio" in sys.modules:
            from ._servers import socketio

            socketio.await_events(self.work)
        return announce

    def refuse(self) -> None:
        self.guard.install(self.flask)

    def listener_closed(self) -> None:
        self.health.end_readiness()

    def stopped(self, report: ShutdownReport) -> None:
        send(shutdown_complete, self.flask, report=report)

    def end(self) -> None:
        self._each_feature(lambda feature: feature.stop())
