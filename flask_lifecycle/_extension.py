"""The extension: what users hold in their hands. Wiring only; each step says where its work is done."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Literal, overload

from flask import Flask, current_app, has_app_context

from ._access_log import silence
from ._app import AppState
from ._cli import group as commands
from ._config import Settings
from ._hooks import inside_a_hook
from ._inflight import RequestInfo, count_requests
from ._parties import ServerInfo
from ._probers import ProberInfo
from ._process import Process, this_process
from ._registration import Registration
from ._report import ShutdownReport
from ._state import ENDING, Event, State
from ._views import make_blueprint
from .checks import Transition

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Lifecycle(Registration):
    """Honest health probes for a Flask application, and a shutdown that loses nothing.

    ::

        lifecycle = Lifecycle(app)      # or Lifecycle() and lifecycle.init_app(app) in a factory

    Checks and hooks are registered on this object, before or after ``init_app``, and hold for every application that it
    was given. Unless it says otherwise a method may be called from any thread and does not block. What asks about an
    application means the current one, or the only one.
    """

    def __init__(self, app: Flask | None = None) -> None:
        super().__init__()
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
        state = app.extensions["lifecycle"] = AppState(app, settings, self._registered, process)
        self._apps.add(app)
        app.register_blueprint(make_blueprint(state.probes, settings.probe_paths()))
        find = state.probes.find if settings.case_insensitive else state.probes.by_path.get
        counted = count_requests(app.wsgi_app, state.ledger, find, state.before_first)
        app.wsgi_app = counted  # type: ignore[method-assign,assignment]
        app.cli.add_command(commands)
        if not settings.log_probes:
            silence(state.probes)
        process.join(state, (signal.SIGTERM,) if settings.signals is None else settings.signals)

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
        """Host and port of the probe listener, ``None`` while it is closed; with port 0, the one that was free."""
        return self._state().probe_address

    @property
    def server(self) -> ServerInfo | None:
        """Which server carries the process, how it was recognised, and what a stop answers under it.

        ``None`` where nothing is served yet. A server that somebody else started is searched for, which takes as long
        as a request.
        """
        return self._state().process.server_info()

    def requests(self, stacks: bool = False) -> tuple[RequestInfo, ...]:
        """A snapshot of the requests in flight, oldest first: method, path, route, age in seconds, thread.

        :param stacks: whether to look at the stacks of their threads, too.
        """
        return self._state().ledger.requests(stacks)

    @property
    def draining(self) -> Draining:
        """For loops, streams and consumers: set once the shutdown has begun."""
        return Draining(self._state().draining)

    def remaining(self) -> float | None:
        """Seconds left of the grace period; ``None`` when no shutdown has begun."""
        return self._state().remaining()

    def transitions(self) -> tuple[Transition, ...]:
        """The last hundred changes of the state, of checks and of the health as a whole, oldest first."""
        return self._state().health.transitions()

    def probers(self) -> tuple[ProberInfo, ...]:
        """Who asks the probes, how often, and what each was told; 64 at most."""
        return self._state().probers.snapshot()

    def set_ready(self) -> None:
        """Answer readiness probes with 200 from now on; before the start-up is over, from then on.

        Under an operator's cordon this is remembered, and holds when the cordon has gone.

        :raises RuntimeError: a shutdown has begun, and nothing leads back from it.
        """
        self._state().machine.apply(Event.SET_READY, "set_ready()")

    def set_not_ready(self, reason: str = "set_not_ready()") -> None:
        """Answer readiness probes with 503 until :meth:`set_ready`; work that comes all the same is served.

        :raises RuntimeError: a shutdown has begun.
        """
        self._state().machine.apply(Event.SET_NOT_READY, reason)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block until the application is ready, at most ``timeout`` seconds; say whether it is.

        Once a shutdown has begun it will not be, and this returns at once.

        :raises RuntimeError: called by a hook or inside a startup task, which readiness itself waits for.
        """
        if inside_a_hook() or self._registered.tasks.done_by(threading.current_thread()):
            raise RuntimeError(
                "wait_ready() was called by a hook or a startup task, which readiness waits for; use a thread of its"
                " own."
            )
        machine = self._state().machine
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            # A second at most, because a main thread that waits without end may never run a signal's handler.
            left = 1.0 if until is None else until - time.monotonic()
            if machine.wait_for(lambda state: state is State.READY or state in ENDING, min(1.0, max(0.0, left))):
                return machine.state is State.READY
            if not left > 0:  # so written because of NaN
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
        """Serve an application until it is stopped by a signal or by :meth:`shutdown`, and report.

        Blocks. For the main thread only. ``sys.exit(lifecycle.run(app).exit_code)`` is the whole of a main program.

        :param app: the Flask application, or a WSGI application that contains it.
        :param host: by default 127.0.0.1.
        :param port: by default 5000; 0 takes a free one and logs it.
        :param server: ``"waitress"``, ``"werkzeug"``, ``"cheroot"`` or ``"gevent"``.
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

        :raises RuntimeError: waiting in a thread that the shutdown waits for: a request, a hook, the inside of a piece
            of work or the server's loop.
        """
        return self._state().process.shutdown(reason, wait)

    def _states(self) -> list[AppState]:
        """Of all its applications, in an order that stays."""
        states: list[AppState] = [app.extensions["lifecycle"] for app in self._apps]
        return sorted(states, key=lambda state: state.since)

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
