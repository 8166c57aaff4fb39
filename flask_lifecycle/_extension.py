"""The extension: what users hold in their hands. Wiring only; each step says where its work is done."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from flask import Flask, current_app, has_app_context

from ._access_log import silence
from ._app import AppState
from ._cli import group as commands
from ._config import Settings, read_headers, read_path, read_status_codes
from ._hooks import Hooks
from ._inflight import RequestInfo, count_requests
from ._process import Process, this_process
from ._shutdown import ShutdownReport
from ._state import Event, State
from ._views import make_blueprint
from .checks import Check, Group, HealthReport, Transition
from .checks._check import DEFAULT_TIMEOUT, DEFAULT_TTL, check_timeout
from .checks._health import ALWAYS
from .checks._registry import Registry

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Callable[[HealthReport], Any])


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
        app.register_blueprint(make_blueprint(state.probes, settings.probe_paths()))
        find = state.probes.find if settings.case_insensitive else state.probes.by_path.get
        counted = count_requests(app.wsgi_app, state.ledger, find, state.before_first)
        app.wsgi_app = counted  # type: ignore[method-assign,assignment]
        app.cli.add_command(commands)
        if not settings.log_probes:
            silence(state.probes)
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

        It runs in an application context, in a thread of its own. It passes by returning nothing, a mapping of
        what it observed, or a :class:`CheckResult`; it fails by raising. Times are seconds.

        :param name: by default the function's.
        :param options: see :class:`Check`.
        :raises ValueError: the name is taken, a group is unknown, or a value is out of range.
        :raises TypeError: there is no such option.
        """

        def register(function: F) -> F:
            self._checks.add(Check.of(function, **options | ({"name": name} if isinstance(name, str) else {})))
            return function

        return register if name is None or isinstance(name, str) else register(name)

    def add_check(self, check: Any, **options: Any) -> None:
        """Register a :class:`Check`, or any callable object that has (some of) its attributes, as the ready-made ones.

        :param options: in place of its attributes.
        :raises TypeError: it is not callable, or there is no such option.
        :raises ValueError: as for :meth:`check`.
        """
        self._checks.add(Check.of(check, **options))

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
        """Make a group of checks with a probe of its own, or say how one that is always there answers.

        To be called before the checks that name it.

        :param name: what checks name in their ``groups``; ``live``, ``ready``, ``startup``, ``healthcheck`` are there.
        :param path: where it is asked, below ``LIFECYCLE_URL_PREFIX``.
        :param status_codes: in place of ``LIFECYCLE_STATUS_CODES``, as far as they are given.
        :param headers: over ``LIFECYCLE_HEADERS``.
        :param details: ``"never"``, ``"token"`` or ``"always"``, in place of ``LIFECYCLE_DETAILS``.
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
            check_renderer(renderer)
        codes = None if status_codes is None else read_status_codes("status_codes", status_codes)
        sent = None if headers is None else read_headers("headers", headers)
        path = None if path is None else read_path("path", path)
        self._checks.set_group(Group(name, path, codes, sent, details, renderer))

    def renderer(self, function: R) -> R:
        """Register the function that makes the bodies of all probes, but for groups that have their own.

        It gets the whole :class:`HealthReport` and returns a mapping or list (sent as JSON), a text, bytes, any of
        these in a tuple with its content type, or ``None`` for the default. Look at ``report.details`` before you tell
        more than ``report.status``. If it raises, the default is sent, and the log says so once.
        """
        self._checks.renderer = check_renderer(function)
        return function

    def transitions(self) -> tuple[Transition, ...]:
        """The last hundred changes of the state, of checks and of the health as a whole, oldest first."""
        return self._state().health.transitions()

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


def check_renderer(function: R) -> R:
    """Refuse a renderer that cannot be called."""
    if not callable(function):
        raise TypeError(f"The renderer {function!r} is not callable; give a function that takes the report.")
    return function


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
