"""The fixture ``lifecycle_app``: an application in the process of the test."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask

from .._config import TEST_SETTINGS
from .._core.report import ShutdownReport
from .._core.state import ENDING
from .._core.work import Work
from ..checks import Check, CheckReport, HealthCheckError

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from .._app import Application

# No load balancer has to notice, the test sends requests until it stops the application, and the directory need not
# exist on this machine.
_IN_TESTS = {
    "TESTING": True,
    "LIFECYCLE_SHUTDOWN_DELAY": 0,
    "LIFECYCLE_DRAIN_POLICY": "serve",
    "LIFECYCLE_CONTROL_DIR": None,
}


class AppUnderTest:
    """An application in the process of the test, made by the fixture ``lifecycle_app``.

    It takes no signal, opens no port and runs no background checks. Results of checks are not cached.

    :ivar app: the application.
    """

    def __init__(self, app: Flask, timeout: float) -> None:
        self.app = app
        self._timeout = timeout
        self._state = _testable(app)
        self._failing: dict[str, str] = {}
        self._checks: dict[str, Check] = {}
        self._hold: Work | None = None
        for feature in ("control directory", "probe listener"):  # a directory that others share, and a port
            self._state.features.pop(feature, None)
        self._state.health.engine.checks = self._all_checks

    @functools.cached_property
    def client(self) -> FlaskClient:
        """A test client, the same each time."""
        return self.app.test_client()

    def start(self) -> None:
        """Run the ``on_startup`` functions and open the resources, unless that has been done. Blocks.

        :raises AssertionError: one failed, or has not returned in time.
        """
        startup = self._state.startup
        startup.ensure()
        if not startup.over.wait(self._timeout):
            raise AssertionError(f"on_startup '{startup.function}' has not returned within {self._timeout:g} s.")
        for record in self._state.hooks.records:
            if record.kind == "startup" and record.outcome != "ok":
                raise AssertionError(f"on_startup '{record.name}' {record.outcome}: {record.error}")

    # -- checks -------------------------------------------------------------------------------------------------------

    def check(self, name: str) -> CheckReport:
        """Run a check now, as a probe does, and return what it reports.

        :raises ValueError: there is no such check.
        """
        self._find(name)
        engine, timeout = self._state.health.engine, self._state.settings.probe_timeout
        (report,) = engine.run(lambda check: check.name == name, timeout)
        return report

    @contextlib.contextmanager
    def failing(self, name: str, reason: str = "made to fail by the test") -> Iterator[None]:
        """Make a check fail inside a ``with`` block, whatever it checks.

        ``fail_after`` and ``fail_for`` of the check still apply: with ``fail_after=3`` the third probe fails.

        :raises ValueError: there is no such check.
        """
        self._find(name)
        self._failing[name] = reason
        try:
            yield
        finally:
            del self._failing[name]

    def _find(self, name: str) -> None:
        names = [check.name for check in self._all_checks()]
        if name not in names:
            raise ValueError(f"There is no check '{name}'; there are {', '.join(map(repr, names)) or 'none'}.")

    def _all_checks(self) -> tuple[Check, ...]:
        for check in self._state.registered.checks.checks():
            if check.name not in self._checks:
                self._checks[check.name] = self._switchable(check)
        return tuple(self._checks.values())

    def _switchable(self, check: Check) -> Check:
        """The same check, run by each probe, and failing where the test wants it."""

        def fail() -> None:
            if check.name in self._failing:
                raise HealthCheckError(self._failing[check.name])

        def call(*arguments: Any) -> Any:
            fail()
            return check.function(*arguments)

        async def call_coroutine(*arguments: Any) -> Any:
            fail()
            return await check.function(*arguments)

        function = functools.wraps(check.function, updated=())(call if check.coroutine is None else call_coroutine)
        return dataclasses.replace(check, function=function, ttl=0.0, fail_ttl=None, interval=None, fail_interval=None)

    # -- the shutdown -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin a shutdown, as SIGTERM does, and keep it in the drain until :meth:`stop`.

        When it returns, readiness fails, ``draining`` is set and the ``on_drain`` functions have been started. Requests
        of the test client are still answered. The grace period runs.
        """
        if self._state.process.shutdown.begun:
            return
        self._hold = Work(self._state.work, "lifecycle_app", {})
        self._state.process.stop("drain()", wait=False)
        self._state.machine.wait_for(lambda state: state in ENDING, self._timeout)

    def stop(self) -> ShutdownReport:
        """Shut down: wait for open requests and work items, run the ``on_shutdown`` functions, return the report.

        Blocks, at most for the grace period. Later calls return the same report.

        :raises RuntimeError: this thread has not read or closed a response of the test client.
        """
        shutdown = self._state.process.shutdown
        if self._hold is not None:
            self._hold.done()
        report = self._state.process.stop("stop()", wait=True)
        assert report is not None
        assert shutdown.thread is not None
        shutdown.thread.join(self._timeout)  # it stops the features after it has made the report
        return report

    def _end(self) -> None:
        """Stop it if it has started, without waiting for responses that the test has left open."""
        if self._state.startup.succeeded or self._state.process.shutdown.begun:
            self._state.ledger.forget(None)
            self.stop()
        # Until the garbage collector finds it, its Lifecycle would have two applications in the next test.
        self._state.registered.apps.discard(self.app)


def _testable(app: Flask) -> Application:
    """What the package knows of an application.

    :raises ValueError: it has no ``Lifecycle``, or one that may end the process.
    """
    if not isinstance(app, Flask):
        raise ValueError(f"lifecycle_app needs a Flask application or a function that makes one, not {app!r}.")
    if "lifecycle" not in app.extensions:
        raise ValueError(f"The application '{app.name}' has no Lifecycle; give it one with Lifecycle(app).")
    state: Application = app.extensions["lifecycle"]
    if state.process.signals:
        raise ValueError(
            f"The application '{app.name}' was not in testing mode when it got its Lifecycle, so a shutdown would end"
            " the tests; give lifecycle_app the function that makes it, or test it by lifecycle_server."
        )
    return state


class AppFactory:
    """The fixture ``lifecycle_app``: starts applications in this process and stops them at the end of the test."""

    def __init__(self) -> None:
        self._apps: list[AppUnderTest] = []

    def __call__(
        self,
        app: Flask | Callable[..., Flask],
        *arguments: Any,
        settings: Mapping[str, Any] | None = None,
        start: bool = True,
        timeout: float = 30.0,
        **keywords: Any,
    ) -> AppUnderTest:
        """Make an application, in testing mode and without a shutdown delay, and start it.

        :param app: a factory, called with the arguments that follow; or an application whose ``TESTING`` was set before
            ``init_app``, which keeps its settings.
        :param settings: ``LIFECYCLE_*`` settings, which override those that the factory sets; JSON values.
        :param start: whether to call :meth:`AppUnderTest.start`. Without it, the first request starts the application.
        :param timeout: seconds that the start may take.
        :raises AssertionError: the start failed.
        :raises ValueError: this is no application that can be tested in the process; use ``lifecycle_server``.
        """
        if not isinstance(app, Flask):
            with _test_settings({**_IN_TESTS, **(settings or {})}):
                app = app(*arguments, **keywords)
        elif settings or arguments or keywords:
            raise ValueError("Settings and arguments are for a factory, but lifecycle_app was given an application.")
        made = AppUnderTest(app, timeout)
        self._apps.append(made)
        if start:
            made.start()
        return made

    def close(self) -> None:
        """Stop the applications that were started; the fixture does this at the end of the test."""
        while self._apps:
            self._apps.pop()._end()


@contextlib.contextmanager
def _test_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    before = os.environ.get(TEST_SETTINGS)
    os.environ[TEST_SETTINGS] = json.dumps(settings)
    try:
        yield
    finally:
        os.environ.pop(TEST_SETTINGS)
        if before is not None:
            os.environ[TEST_SETTINGS] = before
