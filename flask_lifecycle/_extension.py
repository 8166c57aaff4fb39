"""The extension: the object that users create. Each method delegates; see the module it imports from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from flask import Flask, current_app, has_app_context

from ._app import Application, Registered
from ._cli import group as commands
from ._config import LONGEST, Settings, read_headers, read_path, read_status_codes, settings_under_test
from ._core.hooks import Resource, inside_a_hook
from ._core.inflight import RequestInfo, count_requests
from ._core.process import Process
from ._core.report import ShutdownReport
from ._core.server import ServerInfo
from ._core.startup import StartupTask
from ._core.state import ENDING, Event, State
from ._core.work import Work, WorkInfo, submit
from ._probes.access_log import silence
from ._probes.blueprint import make_blueprint
from ._probes.clients import ProberInfo
from ._servers.serving import Serving, this_serving
from .checks import Check, Group, HealthReport, Transition
from .checks._check import DEFAULT_TIMEOUT, DEFAULT_TTL, check_seconds
from .checks._health import ALWAYS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Callable[[HealthReport], Any])


class Lifecycle:
    """Health probes and graceful shutdown for Flask applications.

    ::

        lifecycle = Lifecycle(app)      # or Lifecycle() and lifecycle.init_app(app) in a factory

    Register checks and hooks on this object, before or after ``init_app``. They apply to every application that it is
    used with, and hooks run once for each application, in its context. Unless a method says otherwise, any thread may
    call it and it does not block. Methods that concern one application use the current one, or the only one.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._registered = Registered()
        self._apps = self._registered.apps
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the probes, the request counter, the commands and the signal handler to an application.

        Reads the ``LIFECYCLE_*`` keys of ``app.config``, once. The handler (SIGTERM, or ``LIFECYCLE_SIGNALS``) is
        installed in the main thread only, and never when ``app.testing`` is set.

        :raises RuntimeError: the application has a ``Lifecycle`` already.
        :raises ValueError: a key is unknown or a value is out of range.
        :raises TypeError: a value has the wrong type.
        """
        if "lifecycle" in app.extensions:
            raise RuntimeError(f"The application '{app.name}' has a Lifecycle already; call init_app once for each.")
        app.config.update(settings_under_test())
        settings = Settings.from_mapping(app.config)
        serving = Serving(Process(signals=False)) if app.testing else this_serving
        state = app.extensions["lifecycle"] = Application(app, settings, self._registered, serving)
        self._apps.add(app)
        app.register_blueprint(make_blueprint(state.probes, settings.probe_paths()))
        find = state.probes.find if settings.case_insensitive else state.probes.by_path.get
        counted = count_requests(app.wsgi_app, state.ledger, find, state.wait_started)
        app.wsgi_app = counted  # type: ignore[method-assign,assignment]
        app.cli.add_command(commands)
        if not settings.log_probes:
            silence(state.probes)
        serving.process.join(state, (signal.SIGTERM,) if settings.signals is None else settings.signals)

    # -- checks ---------------------------------------------------------------------------------------------------

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
        ttl: float = DEFAULT_TTL,
        fail_ttl: float | None = None,
        interval: float | None = None,
        fail_interval: float | None = None,
        fail_after: int = 1,
        recover_after: int = 1,
        fail_for: float = 0.0,
        scope: str = "local",
        affects: tuple[str, ...] = (),
    ) -> Callable[[F], F]: ...
    def check(self, name: Any = None, **options: Any) -> Any:
        """Register a health check, as ``@lifecycle.check`` or ``@lifecycle.check("database", timeout=2)``.

        It runs in an application context, in its own thread. It passes by returning ``None``, a mapping of what it
        observed, or a :class:`CheckResult`; it fails by raising. Times are seconds.

        :param name: by default the function's.
        :param options: see :class:`Check`.
        :raises ValueError: the name is taken, a group is unknown, or a value is out of range.
        :raises TypeError: an option is unknown.
        """

        def register(function: F) -> F:
            named = {"name": name} if isinstance(name, str) else {}
            self.add_check(function, **options | named)
            return function

        return register if name is None or isinstance(name, str) else register(name)

    def add_check(self, check: Any, **options: Any) -> None:
        """Register a :class:`Check`, or a callable object with some of its attributes, such as the ready-made checks.

        :param options: replace the attributes of the object.
        :raises TypeError: the object is not callable, or an option is unknown.
        :raises ValueError: as for :meth:`check`.
        """
        self._registered.checks.add(Check.of(check, **options))

    def group(
        self,
        name: str,
        *,
        path: str | None = None,
        status_codes: Mapping[str, int] | None = None,
        headers: Mapping[str, str] | None = None,
        details: str | None = None,
        renderer: Callable[[HealthReport], Any] | None = None,
    ) -> None:
        """Add a group of checks with its own probe, or configure the answers of a built-in group.

        Call it before you register the checks that name the group.

        :param name: what checks name in their ``groups``; ``live``, ``ready``, ``startup`` and ``healthcheck`` are
            built in.
        :param path: of the probe, below ``LIFECYCLE_URL_PREFIX``.
        :param status_codes: override ``LIFECYCLE_STATUS_CODES``.
        :param headers: override ``LIFECYCLE_HEADERS``.
        :param details: ``"never"``, ``"token"`` or ``"always"``; overrides ``LIFECYCLE_DETAILS``.
        :param renderer: as for :meth:`renderer`, for this group.
        :raises ValueError: the name or the path is taken, or a value is out of range.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"A group needs a name that is a string, not {name!r}.")
        if (path is None) != (name in ALWAYS):
            cure = "set 'LIFECYCLE_PATHS' instead" if name in ALWAYS else "pass path='/health/...'"
            raise ValueError(f"The group '{name}' {'has its' if name in ALWAYS else 'needs a'} path; {cure}.")
        if details not in (None, "never", "token", "always"):
            raise ValueError(
                f"The details of the group '{name}' must be 'never', 'token' or 'always', not {details!r}."
            )
        if renderer is not None:
            _check_renderer(renderer)
        codes = None if status_codes is None else read_status_codes("status_codes", status_codes)
        sent = None if headers is None else read_headers("headers", headers)
        path = None if path is None else read_path("path", path)
        self._registered.checks.set_group(Group(name, path, codes, sent, details, renderer))

    def renderer(self, function: R) -> R:
        """Register the function that makes the bodies of all probes, except for groups with their own.

        It gets the whole :class:`HealthReport` and returns a mapping or list (sent as JSON), a text, bytes, any of
        these in a tuple with its content type, or ``None`` for the default. Check ``report.details`` before you send
        more than ``report.status``. If it raises, the default is sent, and this is logged once.
        """
        _check_renderer(function)
        self._registered.checks.renderer = function
        return function

    def transitions(self) -> tuple[Transition, ...]:
        """The last hundred changes of the state, of checks and of the overall health, oldest first."""
        return self._state().health.transitions()

    def probers(self) -> tuple[ProberInfo, ...]:
        """The clients that ask the probes: how often, and their last answers; 64 at most."""
        return self._state().probes.probers.snapshot()

    # -- start and stop -------------------------------------------------------------------------------------------

    @overload
    def on_startup(self, function: F, /) -> F: ...
    @overload
    def on_startup(self, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...
    def on_startup(self, function: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Register a function to be called before the application is ready, in the order of registration.

        Under ``run`` it is called as soon as the listener accepts (probes are answered meanwhile, requests wait), under
        other supported servers when they start, and always before the first request is served. If it raises, the
        process shuts down with exit code 1. An ``on_shutdown`` function of the same name is skipped unless this one has
        succeeded.

        :param timeout: seconds that it may take; by default there is no limit.
        """
        return self._register("startup", function, name, timeout)

    @overload
    def on_drain(self, function: F, /) -> F: ...
    @overload
    def on_drain(
        self, *, name: str | None = None, timeout: float | None = None, hold: bool = False
    ) -> Callable[[F], F]: ...
    def on_drain(
        self, function: Any = None, *, name: str | None = None, timeout: float | None = None, hold: bool = False
    ) -> Any:
        """Register a function to be called when the shutdown begins: end streams and consumers here.

        These functions run one after the other, in the order of registration, while the shutdown goes on.

        :param timeout: seconds that it may take.
        :param hold: keep the listener open and serve everything until the function has returned, at most until the
            drain's deadline; for steps that need requests to be served, such as leaving a service registry.
        """
        return self._register("drain", function, name, timeout, hold=hold)

    @overload
    def on_shutdown(self, function: F, /) -> F: ...
    @overload
    def on_shutdown(
        self, *, name: str | None = None, timeout: float | None = None, scope: str = "process"
    ) -> Callable[[F], F]: ...
    def on_shutdown(
        self, function: Any = None, *, name: str | None = None, timeout: float | None = None, scope: str = "process"
    ) -> Any:
        """Register a function to be called after the drain; the last one registered is called first.

        If one raises or hangs, its name is logged and the others still run. It may take one argument, the
        :class:`ShutdownContext`.

        :param timeout: seconds that it may take, and never more than half of the grace period that is left, or all of
            it for the last function. That is also the default.
        :param scope: ``"process-group"`` for a function that runs once for all workers of a gunicorn with our hooks: in
            the last worker, after the others have exited. Under every other server it runs after the other functions.
        :raises TypeError: it is not callable, or takes more than one argument.
        :raises ValueError: the name is taken, or the scope is unknown.
        """
        if scope not in ("process", "process-group"):
            raise ValueError(
                f"The scope of an on_shutdown function must be 'process' or 'process-group', not {scope!r}."
            )
        return self._register("shutdown", function, name, timeout, group=scope == "process-group")

    def _register(self, kind: str, function: Any, name: str | None, timeout: float | None, **options: Any) -> Any:
        if timeout is not None:
            check_seconds(f"The timeout of the on_{kind} function", timeout)

        def register(function: F) -> F:
            self._registered.hooks.add(kind, function, name, timeout, **options)
            return function

        return register if function is None else register(function)

    @overload
    def resource(self, function: Callable[[], Any], /) -> Resource: ...
    @overload
    def resource(
        self, *, name: str | None = None, timeout: float | None = None, close_timeout: float | None = None
    ) -> Callable[[Any], Resource]: ...
    def resource(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        timeout: float | None = None,
        close_timeout: float | None = None,
    ) -> Any:
        """Register a resource that is opened at the start and closed after the drain, in reverse order.

        ::

            @lifecycle.resource
            def pool():
                with ConnectionPool(DSN) as pool:
                    yield pool                      # pool.value, while the application runs

        A resource that could not be opened is not closed. One that opens late, after its timeout, is closed. Opening
        and closing run in two different threads.

        :param function: a generator function that yields once, a context manager, or a function that returns one.
        :param timeout: seconds that opening may take, as for :meth:`on_startup`.
        :param close_timeout: seconds that closing may take, as for :meth:`on_shutdown`.
        :raises TypeError: it is none of these.
        :raises ValueError: the name is taken, or a timeout is out of range.
        """

        def register(function: Any) -> Resource:
            resource = Resource(function, name, _current_app)
            self._register("startup", resource.open, resource.name, timeout)
            self._register("shutdown", resource.close, resource.name, close_timeout, opened_late=resource.opened_late)
            return resource

        return register if function is None else register(function)

    def startup_task(self, name: str, *, on_failure: str = "shutdown") -> StartupTask:
        """Begin a task that the application must finish before it is ready: use ``with``, or call ``done()``.

        Unlike an ``on_startup`` function it runs where you start it, and holds back only readiness, not requests. If it
        raises, or you call ``fail()``, the process shuts down with exit code 1. While it runs, this is logged every
        minute.

        :param on_failure: ``"not_ready"`` to answer readiness probes with 503 instead, until :meth:`set_ready`.
        :raises RuntimeError: the start-up is over.
        :raises TypeError: the name is not a string.
        :raises ValueError: ``on_failure`` is unknown.
        """
        return self._registered.tasks.begin(name, on_failure)

    # -- work that is not a request -------------------------------------------------------------------------------

    def work(self, name: str, /, **info: Any) -> Work:
        """Begin a piece of work that a shutdown waits for.

        ::

            with lifecycle.work("import", file=name): ...

        As a decorator, it makes each call of the function a piece of work. Without either, call ``done()`` on the
        returned object when the work is finished. Starting and ending work takes no lock.

        :param name: of the work in logs and in the report; ``info`` adds details.
        :raises TypeError: the name is not a string.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"Work needs a name that is a string, not {name!r}; what it works on goes by keyword.")
        return Work(self._registered.work, name, info)

    def submit(self, executor: Any, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        """Submit a call to an executor, and let a shutdown wait for the future that is returned.

        :raises TypeError: the executor has no ``submit`` method.
        """
        return submit(self._registered.work, executor, function, *arguments, **keywords)

    def work_items(self, stacks: bool = False) -> tuple[WorkInfo, ...]:
        """A snapshot of the work under way, oldest first.

        :param stacks: include the stacks of the threads that began it.
        """
        return self._registered.work.items(stacks)

    # -- the state, and readiness by hand -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the application now."""
        return self._state().machine.state

    @property
    def in_flight(self) -> int:
        """How many requests the application has not finished answering; probes are not counted."""
        return self._state().in_flight

    @property
    def probe_address(self) -> tuple[str, int] | None:
        """Host and port of the probe listener, ``None`` while it is closed; with port 0, the port that was free."""
        listener = self._state().probe_listener
        return None if listener is None else listener.address

    @property
    def server(self) -> ServerInfo | None:
        """The server that serves this process, how it was recognised, and what a shutdown answers under it.

        ``None`` if nothing is served yet. Without ``run`` this searches for the server and takes as long as a request.
        """
        return self._state().serving.info()

    def requests(self, stacks: bool = False) -> tuple[RequestInfo, ...]:
        """A snapshot of the requests in flight, oldest first: method, path, route, age in seconds, thread.

        :param stacks: include the stacks of their threads.
        """
        return self._state().ledger.requests(stacks)

    def set_ready(self) -> None:
        """Answer readiness probes with 200 from now on, or from the end of the start-up.

        Under an operator's cordon this is remembered and takes effect when the cordon ends.

        :raises RuntimeError: a shutdown has begun; it cannot be undone.
        """
        self._state().machine.apply(Event.SET_READY, "set_ready()")

    def set_not_ready(self, reason: str = "set_not_ready()") -> None:
        """Answer readiness probes with 503 until :meth:`set_ready`; requests are still served.

        :raises RuntimeError: a shutdown has begun.
        """
        self._state().machine.apply(Event.SET_NOT_READY, reason)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block until the application is ready, at most ``timeout`` seconds; return whether it is.

        Returns ``False`` at once if a shutdown has begun.

        :raises RuntimeError: called in a hook or a startup task, which readiness itself waits for.
        """
        if inside_a_hook() or self._registered.tasks.done_by(threading.current_thread()):
            raise RuntimeError(
                "wait_ready() was called by a hook or a startup task, which readiness waits for; use a thread of its"
                " own."
            )
        machine = self._state().machine
        until = None if timeout is None else time.monotonic() + min(timeout, LONGEST)
        while True:
            # A second at most, because a main thread that waits without end may never run a signal's handler.
            left = 1.0 if until is None else until - time.monotonic()
            if machine.wait_for(lambda state: state is State.READY or state in ENDING, min(1.0, max(0.0, left))):
                return machine.state is State.READY
            if not left > 0:  # also true for NaN
                return False

    # -- running and stopping -------------------------------------------------------------------------------------

    def run(
        self,
        app: WSGIApplication,
        host: str | None = None,
        port: int | None = None,
        server: str = "waitress",
        **server_options: Any,
    ) -> ShutdownReport:
        """Serve an application until a signal or :meth:`shutdown` stops it, and return the report.

        Blocks; call it in the main thread. ``sys.exit(lifecycle.run(app).exit_code)`` is a whole main program.

        :param app: the Flask application, or a WSGI application that contains it.
        :param host: by default 127.0.0.1.
        :param port: by default 5000; with 0 the system chooses one, which is logged.
        :param server: ``"waitress"``, ``"werkzeug"``, ``"cheroot"`` or ``"gevent"``.
        :param server_options: the options of the server, by its own names (``threads=8``, ``listen=...``).
        :raises RuntimeError: called outside the main thread, or before ``init_app``, or the server is not installed.
        :raises ValueError: the server or an option is unknown.
        :raises OSError: the address cannot be bound.
        :raises SystemExit: ``LIFECYCLE_EXIT`` is ``"signal"`` and a signal came; the process dies by it at its exit.
        """
        state = app.extensions.get("lifecycle") if isinstance(app, Flask) else self._state()
        if not isinstance(state, Application):
            raise RuntimeError(_NO_APP)
        return state.run(app, host, port, server, server_options)

    @overload
    def shutdown(self, reason: str = ..., wait: Literal[True] = ...) -> ShutdownReport: ...
    @overload
    def shutdown(self, reason: str = ..., *, wait: Literal[False]) -> None: ...
    @overload
    def shutdown(self, reason: str = ..., *, wait: bool) -> ShutdownReport | None: ...
    def shutdown(self, reason: str = "shutdown()", wait: bool = True) -> ShutdownReport | None:
        """Begin the shutdown as a signal would, or join the one that is under way.

        With ``wait`` it blocks and returns the report, the same to every caller; otherwise it returns ``None`` at once.

        :raises RuntimeError: waiting in a thread that the shutdown waits for: a request, a hook, a work item or the
            server's loop.
        """
        return self._state().process.stop(reason, wait)

    @property
    def draining(self) -> Draining:
        """For loops, streams and consumers: set once the shutdown has begun."""
        return Draining(self._state().draining)

    def remaining(self) -> float | None:
        """Seconds left of the grace period; ``None`` when no shutdown has begun."""
        return self._state().remaining()

    # -- its applications -----------------------------------------------------------------------------------------

    def _states(self) -> list[Application]:
        """Of all its applications, in the order in which they began to serve."""
        states: list[Application] = [app.extensions["lifecycle"] for app in self._apps]
        return sorted(states, key=lambda state: state.startup.since)

    def _state(self) -> Application:
        """Of the current application, or of the only one."""
        current = _current_app()
        apps = [app for app in self._apps if app is current] or list(self._apps)
        if not apps:
            raise RuntimeError(_NO_APP)
        if len(apps) > 1:
            raise RuntimeError("This Lifecycle has several applications; use it inside the application context of one.")
        state: Application = apps[0].extensions["lifecycle"]
        return state


_NO_APP = "This Lifecycle has no application yet; call lifecycle.init_app(app) first."


def _current_app() -> Flask | None:
    return current_app._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]


def _check_renderer(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"The renderer {function!r} is not callable; give a function that takes the report.")


class Draining:
    """Whether the shutdown has begun, for code that runs in loops."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def is_set(self) -> bool:
        """Whether it has begun."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has begun, at most ``timeout`` seconds; return whether it has."""
        return self._event.wait(None if timeout is None else min(timeout, LONGEST))
