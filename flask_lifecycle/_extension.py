"""The extension: what users hold in their hands. Wiring only; each step says where its work is done."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from flask import Flask, current_app, has_app_context

from ._cli import group
from ._config import Settings
from ._inflight import Ledger, RequestInfo, count_requests
from ._probe_server import ProbeServer
from ._process import Process, this_process
from ._shutdown import Hooks, ShutdownReport
from ._state import Event, State, StateMachine, announce_change
from ._views import Probes, install_guard, make_blueprint
from .checks import DEFAULT_TIMEOUT, Check, Registry, check_timeout

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

F = TypeVar("F", bound=Callable[..., Any])


class Lifecycle:
    """Honest health probes for a Flask application, and a shutdown that loses nothing.

    ::

        lifecycle = Lifecycle(app)      # or Lifecycle() and lifecycle.init_app(app) in a factory

    Checks and hooks are registered on this object, before or after ``init_app``, and hold for every application that it
    was given. Unless it says otherwise a method may be called from any thread and does not block. What asks about an
    application means the current one, or the only one.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._hooks = Hooks()
        self._checks = Registry()
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an application its probes, its ledger of requests, its guard, its commands and its signal handler.

        Reads the ``LIFECYCLE_*`` keys of ``app.config``, once. The handler (SIGTERM, or ``LIFECYCLE_SIGNALS``) is
        installed in the main thread only and never when ``app.testing`` is set.

        :raises RuntimeError: the application has been initialized already.
        :raises ValueError: a key is unknown or a value out of range.
        :raises TypeError: a value is of the wrong type.
        """
        if "lifecycle" in app.extensions:
            raise RuntimeError(f"The application '{app.name}' has a Lifecycle already; call init_app once for each.")
        settings = Settings.from_mapping(app.config)
        process = Process(signals=False) if app.testing else this_process
        state = app.extensions["lifecycle"] = AppState(app, settings, self._hooks, self._checks, process)
        self._apps.add(app)
        app.register_blueprint(make_blueprint(state.probes.by_path, settings.probe_paths()))
        counted = count_requests(app.wsgi_app, state.ledger, state.probes.by_path, state.before_first)
        app.wsgi_app = counted  # type: ignore[method-assign,assignment]
        app.cli.add_command(group)
        process.join(state, (signal.SIGTERM,) if settings.signals is None else settings.signals)

    # -- registration ---------------------------------------------------------------------------------------------

    @overload
    def check(self, name: F, /) -> F: ...
    @overload
    def check(
        self,
        name: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        critical: bool = True,
        groups: tuple[str, ...] = ("ready",),
    ) -> Callable[[F], F]: ...
    def check(
        self,
        name: Any = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        critical: bool = True,
        groups: tuple[str, ...] = ("ready",),
    ) -> Any:
        """Register a health check, as ``@lifecycle.check`` or ``@lifecycle.check("database", timeout=2)``.

        It runs in an application context, in a thread of its own. It passes by returning nothing, or a mapping of what
        it observed; it fails by raising.

        :param name: by default the function's.
        :param timeout: seconds that a probe waits for it, by default 2.
        :param critical: whether its failure makes the probe fail (503), or warn (200).
        :param groups: which probes ask it: ``"ready"``, ``"live"``, ``"startup"``. ``/healthcheck`` asks all. Put
            nothing into ``live`` that depends on anything outside the process: its failure gets the process killed.
        :raises ValueError: the name is taken, a group is unknown, or the timeout is not positive.
        """
        options = {"timeout": timeout, "critical": critical, "groups": groups}

        def register(function: F) -> F:
            given = name if isinstance(name, str) else getattr(function, "__name__", repr(function))
            self._checks.add(Check(given, function, **options))  # type: ignore[arg-type]
            return function

        return register if name is None or isinstance(name, str) else register(name)

    def add_check(self, check: Any) -> None:
        """Register a :class:`Check`, or any callable object that has (some of) its attributes.

        :raises TypeError: it is not callable.
        :raises ValueError: as for :meth:`check`.
        """
        self._checks.add(Check.of(check))

    @overload
    def on_startup(self, function: F, /) -> F: ...
    @overload
    def on_startup(self, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...
    def on_startup(self, function: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Register a function to be called before the application is ready, in the order of registration.

        Under ``run`` that is as soon as the listener accepts (probes are answered meanwhile, work waits), elsewhere
        before the first request is served. If it raises, the process shuts down with exit code 1.

        :param timeout: seconds that it may take; by default as long as it does.
        """
        return self._register("startup", function, name, timeout)

    @overload
    def on_drain(self, function: F, /) -> F: ...
    @overload
    def on_drain(self, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...
    def on_drain(self, function: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Register a function to be called at the moment when the shutdown begins: end streams and consumers here.

        :param timeout: seconds that it may take.
        """
        return self._register("drain", function, name, timeout)

    @overload
    def on_shutdown(self, function: F, /) -> F: ...
    @overload
    def on_shutdown(self, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...
    def on_shutdown(self, function: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Register a function to be called after the drain, last registered first.

        One that raises or hangs is logged by its name, and the others still run. It may take one argument, the
        :class:`ShutdownContext`.

        :param timeout: seconds that it may take; by default half of what is left of the grace period, all of it
            for the last.
        :raises TypeError: it is not callable, or takes more than one argument.
        :raises ValueError: there is one of this name already.
        """
        return self._register("shutdown", function, name, timeout)

    def _register(self, kind: str, function: Any, name: str | None, timeout: float | None) -> Any:
        if timeout is not None:
            check_timeout(f"on_{kind} function", timeout)

        def register(function: F) -> F:
            self._hooks.add(kind, function, name, timeout)
            return function

        return register if function is None else register(function)

    # -- the state, and readiness by hand -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the application now."""
        return self._state().machine.state

    @property
    def in_flight(self) -> int:
        """How many requests the application has not finished answering; probes are not counted."""
        return self._state().in_flight

    def requests(self) -> tuple[RequestInfo, ...]:
        """A snapshot of the requests in flight, oldest first: method, path, age in seconds, thread."""
        return self._state().ledger.requests()

    @property
    def draining(self) -> Draining:
        """For loops, streams and consumers: set once the shutdown has begun."""
        return Draining(self._state().draining)

    def remaining(self) -> float | None:
        """Seconds left of the grace period; ``None`` when no shutdown has begun."""
        return self._state().remaining()

    def set_ready(self) -> None:
        """Answer readiness probes with 200 from now on; before the start-up is over, from then on.

        :raises RuntimeError: a shutdown has begun, and nothing leads back from it.
        """
        self._state().machine.apply(Event.SET_READY, "set_ready()")

    def set_not_ready(self, reason: str = "set_not_ready()") -> None:
        """Answer readiness probes with 503 until :meth:`set_ready`; work that comes all the same is served.

        :raises RuntimeError: a shutdown has begun.
        """
        self._state().machine.apply(Event.SET_NOT_READY, reason)

    # -- running and stopping -------------------------------------------------------------------------------------

    def run(
        self,
        app: WSGIApplication,
        host: str | None = None,
        port: int | None = None,
        server: str = "waitress",
        **server_options: Any,
    ) -> ShutdownReport:
        """Serve an application until it is stopped by a signal or by :meth:`shutdown`, and report.

        Blocks. For the main thread only. ``sys.exit(lifecycle.run(app).exit_code)`` is the whole of a main program.

        :param app: the Flask application, or a WSGI application that contains it.
        :param host: by default 127.0.0.1.
        :param port: by default 5000; 0 takes a free one and logs it.
        :param server: ``"waitress"`` or ``"werkzeug"``.
        :param server_options: what the server takes, by its own names (``threads=8``, ``listen=...``).
        :raises RuntimeError: called outside the main thread, or before ``init_app``, or the server is not installed.
        :raises ValueError: the server or an option is unknown.
        :raises OSError: an address cannot be listened on.
        """
        state = app.extensions.get("lifecycle") if isinstance(app, Flask) else self._state()
        if not isinstance(state, AppState):
            raise RuntimeError(_NO_APP)
        return state.run(app, host, port, server, server_options)

    @overload
    def shutdown(self, reason: str = ..., wait: Literal[True] = ...) -> ShutdownReport: ...
    @overload
    def shutdown(self, reason: str = ..., *, wait: Literal[False]) -> None: ...
    def shutdown(self, reason: str = "shutdown()", wait: bool = True) -> ShutdownReport | None:
        """Stop as a signal would, or join the shutdown that is under way.

        With ``wait`` it blocks and returns the report, the same to every caller; else it returns ``None`` at once.

        :raises RuntimeError: waiting in a thread that the shutdown waits for: a request, a hook or the server's loop.
        """
        return self._state().process.shutdown(reason, wait)

    def _state(self) -> AppState:
        apps = list(self._apps)
        if has_app_context() and (this := current_app._get_current_object()) in self._apps:  # type: ignore[attr-defined]
            apps = [this]
        if not apps:
            raise RuntimeError(_NO_APP)
        if len(apps) > 1:
            raise RuntimeError("This Lifecycle has several applications; ask it inside the application context of one.")
        state: AppState = apps[0].extensions["lifecycle"]
        return state


_NO_APP = "This Lifecycle has no application yet; call lifecycle.init_app(app) first."


class Draining:
    """Whether the shutdown has begun, for code that runs in loops."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def is_set(self) -> bool:
        """Whether it has begun."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has begun, at most ``timeout`` seconds; say whether it has."""
        return self._event.wait(timeout)


class AppState:
    """One application's part: what ``app.extensions["lifecycle"]`` holds."""

    def __init__(self, app: Flask, settings: Settings, hooks: Hooks, checks: Registry, process: Process) -> None:
        self.settings = settings
        self.hooks = hooks
        self._checks = checks
        self.process = process
        self.ledger = Ledger()
        self.draining = threading.Event()
        self.machine = StateMachine(
            ready=settings.ready == "auto", notify=lambda old, new, reason: announce_change(app, old, new, reason)
        )
        self.probes = Probes(settings, self.machine, lambda group: checks.run(group, app.app_context), self.nudge)
        self._app = app
        self._probe_server: ProbeServer | None = None
        self._gate = threading.Event()  # opened when the start-up is over or will not come
        self._lock = threading.Lock()  # guards the one-time steps: start, refuse, and the probe listener
        self._started_in = 0
        self._refusing = False

    def context(self) -> AbstractContextManager[Any]:
        return self._app.app_context()

    @property
    def in_flight(self) -> int:
        return len(self.ledger)

    def remaining(self) -> float | None:
        return self.process.coordinator.remaining()

    def run(
        self, app: WSGIApplication, host: str | None, port: int | None, server: str, options: dict[str, Any]
    ) -> ShutdownReport:
        return self.process.run(app, self, host, port, server, options)

    # -- start-up -------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the start-up has succeeded, in this process and not in one that was forked into it."""
        return self._started_in == os.getpid()

    def before_first(self) -> bool:
        """Hold a request until the start-up is over; run the start-up where nobody else does."""
        if not self._gate.is_set():
            if self.process.coordinator.owned:
                self._gate.wait()
            else:
                self.start()
        return True

    def nudge(self) -> None:
        """A probe has come: it may be the first request, but must not wait for a start-up that takes its time."""
        if self._gate.is_set() or self.process.coordinator.owned:
            return
        if not self.hooks.of("startup"):
            self.start()
        elif not self.hooks.startup_begun.is_set():
            threading.Thread(target=self.start, name="lifecycle-startup", daemon=True).start()

    def start(self) -> None:
        """Run the start-up, once; blocks until it is over."""
        coordinator = self.process.coordinator
        failed = self.hooks.start(self.context, coordinator)
        if failed:
            self.process.shutdown(f"start-up failed: on_startup '{failed}'", wait=False)
            return
        with self._lock:
            if self._gate.is_set():
                return
            self._started_in = os.getpid()
            try:
                self.machine.apply(Event.STARTED)
            except RuntimeError:  # the shutdown was quicker
                return
        if not coordinator.owned:
            try:
                self.open_probe_listener()
            except OSError:
                self.process.shutdown("the probe listener could not start", wait=False)
                raise
        self._gate.set()

    # -- shutdown -------------------------------------------------------------------------------------------------

    def begin_drain(self, reason: str) -> None:
        if not self.started:
            self.refuse()
        self.machine.apply(Event.DRAIN, reason)
        self.draining.set()
        self._checks.hurry()
        self._gate.set()

    def refuse(self) -> None:
        with self._lock:
            if not self._refusing:
                self._refusing = True
                install_guard(self._app, self.process.coordinator.remaining)

    # -- the probe listener ---------------------------------------------------------------------------------------

    def open_probe_listener(self) -> None:
        port = self.settings.probe_port
        with self._lock:
            if port is not None and self._probe_server is None:
                self._probe_server = ProbeServer(self.probes, self.settings.probe_host, port)
                self._probe_server.start()

    def lane(self, path: str) -> str | None:
        return self.probes.lane(path)

    def close_probe_listener(self) -> None:
        with self._lock:
            server, self._probe_server = self._probe_server, None
        if server is not None:
            server.close()
