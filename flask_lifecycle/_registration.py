"""What an application registers: its checks and groups, and the functions that it is started and stopped by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._config import read_headers, read_path, read_status_codes
from ._hooks import Hooks
from ._record import NamedTuple
from ._startup import StartupTask, StartupTasks, read_on_failure
from ._work import Work, WorkInfo, WorkLedger, submit
from .checks import Check, Group, HealthReport
from .checks._check import DEFAULT_TIMEOUT, DEFAULT_TTL, check_timeout
from .checks._health import ALWAYS
from .checks._registry import Registry

if TYPE_CHECKING:
    from ._resource import Resource

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Callable[[HealthReport], Any])


class Registered(NamedTuple):
    """What was registered, by kinds; every application of a ``Lifecycle`` has the same."""

    hooks: Hooks
    checks: Registry
    work: WorkLedger
    tasks: StartupTasks


class Registration:
    """The half of a :class:`~flask_lifecycle.Lifecycle` that takes things in, before and after ``init_app``."""

    def __init__(self) -> None:
        hooks = Hooks()
        self._registered = Registered(hooks, Registry(), WorkLedger(), StartupTasks(hooks.records))

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

        It runs in an application context, in a thread of its own. It passes by returning nothing, a mapping of
        what it observed, or a :class:`CheckResult`; it fails by raising. Times are seconds.

        :param name: by default the function's.
        :param options: see :class:`Check`.
        :raises ValueError: the name is taken, a group is unknown, or a value is out of range.
        :raises TypeError: there is no such option.
        """

        def register(function: F) -> F:
            named = {"name": name} if isinstance(name, str) else {}
            self._registered.checks.add(Check.of(function, **options | named))
            return function

        return register if name is None or isinstance(name, str) else register(name)

    def add_check(self, check: Any, **options: Any) -> None:
        """Register a :class:`Check`, or any callable object that has (some of) its attributes, as the ready-made ones.

        :param options: in place of its attributes.
        :raises TypeError: it is not callable, or there is no such option.
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
        self._registered.checks.set_group(Group(name, path, codes, sent, details, renderer))

    def renderer(self, function: R) -> R:
        """Register the function that makes the bodies of all probes, but for groups that have their own.

        It gets the whole :class:`HealthReport` and returns a mapping or list (sent as JSON), a text, bytes, any of
        these in a tuple with its content type, or ``None`` for the default. Look at ``report.details`` before you tell
        more than ``report.status``. If it raises, the default is sent, and the log says so once.
        """
        self._registered.checks.renderer = check_renderer(function)
        return function

    # -- start and stop -------------------------------------------------------------------------------------------

    @overload
    def on_startup(self, function: F, /) -> F: ...
    @overload
    def on_startup(self, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...
    def on_startup(self, function: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Register a function to be called before the application is ready, in the order of registration.

        Under ``run`` that is as soon as the listener accepts (probes are answered meanwhile, work waits), elsewhere
        as soon as a server that is known serves, and before the first request is served. If it raises, the process
        shuts down with exit code 1, and an ``on_shutdown`` function of the same name is skipped, here and whenever
        this one has not succeeded.

        :param timeout: seconds that it may take; by default as long as it does.
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
        """Register a function to be called at the moment when the shutdown begins: end streams and consumers here.

        These functions run one after the other, in the order of their registration, beside the phases.

        :param timeout: seconds that it may take.
        :param hold: the listener stays open, and everything is served, until it has returned, at most until the
            drain's deadline; for what has to be done while requests still come, such as leaving a registry.
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
        """Register a function to be called after the drain, last registered first.

        One that raises or hangs is logged by its name, and the others still run. It may take one argument, the
        :class:`ShutdownContext`.

        :param timeout: seconds that it may take; by default half of what is left of the grace period, all of it
            for the last.
        :param scope: ``"process-group"`` for what is to happen once for all workers of a gunicorn that has our hooks:
            in the last of them, when the others have gone. Under every other server it runs after the others.
        :raises TypeError: it is not callable, or takes more than one argument.
        :raises ValueError: there is one of this name already, or there is no such scope.
        """
        if scope not in ("process", "process-group"):
            raise ValueError(
                f"The scope of an on_shutdown function must be 'process' or 'process-group', not {scope!r}."
            )
        return self._register("shutdown", function, name, timeout, group=scope == "process-group")

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
        """Register what is opened at the start and closed after the drain, in the reverse order.

        ::

            @lifecycle.resource
            def pool():
                with ConnectionPool(DSN) as pool:
                    yield pool                      # pool.value, while the application runs

        What could not be opened is not closed; what opens after its timeout is. Opening and closing happen in two
        threads.

        :param function: a generator function that yields once, a context manager, or what returns one when called.
        :param timeout: seconds that opening may take, as for :meth:`on_startup`.
        :param close_timeout: seconds that closing may take, as for :meth:`on_shutdown`.
        :raises TypeError: it is nothing of that.
        :raises ValueError: there is one of this name already, or a timeout is out of range.
        """
        from ._resource import Resource  # whoever has none does not pay for it

        def register(function: Any) -> Resource:
            resource = Resource(function, name)
            self._register("startup", None, resource.name, timeout)(resource.open)
            self._register("shutdown", None, resource.name, close_timeout)(resource.close)
            self._registered.hooks.of("shutdown")[0].opened_late = resource.opened_late
            return resource

        return register if function is None else register(function)

    def _register(self, kind: str, function: Any, name: str | None, timeout: float | None, **marks: bool) -> Any:
        if timeout is not None:
            check_timeout(f"on_{kind} function", timeout)

        def register(function: F) -> F:
            vars(self._registered.hooks.add(kind, function, name, timeout)).update(marks)
            return function

        return register if function is None else register(function)

    def startup_task(self, name: str, *, on_failure: str = "shutdown") -> StartupTask:
        """Begin a task without which the application is not ready, wherever it runs: ``with``, or until ``done()``.

        Unlike an ``on_startup`` function it holds no request, only readiness. If it raises, or ``fail()`` is called,
        the process shuts down with exit code 1. While it lasts, the log says so every minute.

        :param on_failure: ``"not_ready"`` to answer readiness probes with 503 instead, until :meth:`set_ready`.
        :raises RuntimeError: the start-up is over already.
        :raises TypeError: the name is no string.
        :raises ValueError: there is no such way to fail.
        """
        read_on_failure(name, on_failure)
        return self._registered.tasks.begin(name, on_failure)

    # -- work that is not a request -------------------------------------------------------------------------------

    def work(self, name: str, /, **info: Any) -> Work:
        """Begin a piece of work that a shutdown waits for.

        ::

            with lifecycle.work("import", file=name): ...

        Or a decorator, each call of whose function is one; or an object, until its ``done()`` is called. Making and
        ending one takes no lock.

        :param name: what it is, in logs and in the report; ``info`` says which.
        :raises TypeError: the name is no string.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"Work needs a name that is a string, not {name!r}; what it works on goes by keyword.")
        return Work(self._registered.work, name, info)

    def submit(self, executor: Any, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        """Give a call to an executor, as its ``submit`` does, and have a shutdown wait for the future that is returned.

        :raises TypeError: that is no executor.
        """
        return submit(self._registered.work, executor, function, *arguments, **keywords)

    def tokens(self, stacks: bool = False) -> tuple[WorkInfo, ...]:
        """A snapshot of the work that is under way, oldest first.

        :param stacks: whether to look at the stacks of the threads that began it, too.
        """
        return self._registered.work.tokens(stacks)


def check_renderer(function: R) -> R:
    """Refuse a renderer that cannot be called."""
    if not callable(function):
        raise TypeError(f"The renderer {function!r} is not callable; give a function that takes the report.")
    return function
