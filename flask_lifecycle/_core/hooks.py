"""The functions that users register for the start-up and the shutdown, and how they are run.

Each runs in its own thread, so a hook that hangs does not block the others. On Python 3.12 and later, ``atexit``
functions cannot start threads. There a hook runs in the calling thread, and faulthandler's watchdog, which needs no
Python thread, ends the process if the hook hangs; later hooks do not run then.

A *resource* is a hook at the start, which opens it, and a hook of the same name after the drain, which closes it if the
first has succeeded. A resource whose opening exceeded its timeout may still open later. If it opens before its turn in
the shutdown, the shutdown closes it; otherwise the thread that opens it closes it. The shutdown first records that the
turn is over and then checks whether the resource is open; the opening thread first records that it is open and then
checks whether the turn is over. So at least one of them sees both, and ``dict.pop`` gives the resource to only one of
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from .callbacks import error_text, name_of, takes_context
from .deadline import Clock, Deadline
from .log import logger

if TYPE_CHECKING:
    from .server import Application
    from .shutdown import Shutdown


class HookRecord(NamedTuple):
    """The outcome of one hook.

    :param name: the name of the hook.
    :param kind: ``startup``, ``drain`` or ``shutdown``; ``task`` for a startup task that failed, ``listener`` for a
        probe listener that could not be opened, ``crash`` for the thread whose crash began the shutdown.
    :param outcome: ``ok``, ``failed``, ``hung``, or ``skipped`` because the ``on_startup`` function of the same name
        did not succeed.
    :param duration: seconds that it took.
    :param error: what went wrong, such as type and text of the exception; or empty.
    """

    name: str
    kind: str
    outcome: str
    duration: float
    error: str = ""


class ShutdownContext:
    """The shutdown, for the hooks that are part of it. Any thread may use it; nothing blocks.

    ``reason`` and ``signal`` say why the process stops; ``signal`` is ``None`` if no signal came.
    """

    def __init__(self, reason: str, signal: int | None, shutdown: Shutdown) -> None:
        self.reason = reason
        self.signal = signal
        self._shutdown = shutdown

    def remaining(self) -> float | None:
        """Seconds left of the grace period, or ``None`` in an ``on_startup`` function."""
        return self._shutdown.remaining()

    @property
    def in_flight(self) -> int:
        """The number of requests in flight now."""
        return self._shutdown.in_flight


@dataclasses.dataclass(eq=False, repr=False)
class Hook:
    """A registered function.

    :param hold: of an ``on_drain`` function: whether the listener stays open until it has returned.
    :param group: of an ``on_shutdown`` function: whether it runs once for the whole process group.
    :param opened_late: of the function that closes a resource: :meth:`Resource.opened_late`.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    timeout: float | None = None
    hold: bool = False
    group: bool = False
    opened_late: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        self.takes_context = takes_context(f"on_{self.kind} function '{self.name}'", self.function)

    @property
    def label(self) -> str:
        return f"on_{self.kind} '{self.name}'"


class Hooks:
    """The hooks of one application, in a list that all applications of a ``Lifecycle`` share, and their records."""

    def __init__(self, registered: dict[str, list[Hook]] | None = None) -> None:
        self._hooks = registered or {"startup": [], "drain": [], "shutdown": []}
        self.records: list[HookRecord] = []

    def of_application(self) -> Hooks:
        """The same functions for another application, with its own records."""
        return Hooks(self._hooks)

    def add(self, kind: str, function: Any, name: str | None, timeout: float | None, **options: Any) -> None:
        """Register a function; ``options`` are those of :class:`Hook`.

        :raises TypeError: it is not callable without or with one argument.
        :raises ValueError: the name is taken.
        """
        if not callable(function):
            raise TypeError(f"on_{kind} was given {function!r}, which is not callable; register a function.")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"on_{kind} was given the async function {function!r}; register a plain one.")
        hook_name = name or name_of(function)
        if not isinstance(hook_name, str):
            raise TypeError(f"An on_{kind} function needs a name that is a string, not {name!r}.")
        if any(hook.name == hook_name for hook in self._hooks[kind]):
            raise ValueError(
                f"There is an on_{kind} function '{hook_name}' already; pass name='...' to distinguish them, or, if a"
                " factory registers it for each application, register it once, outside the factory."
            )
        self._hooks[kind].append(Hook(kind, hook_name, function, timeout, **options))

    def of(self, kind: str) -> tuple[Hook, ...]:
        """The functions of a kind in the order in which they are called."""
        hooks = self._hooks[kind]
        return tuple(reversed(hooks)) if kind == "shutdown" else tuple(hooks)

    @property
    def for_group(self) -> bool:
        """Whether an ``on_shutdown`` function runs once for the whole group of processes."""
        return any(hook.group for hook in self._hooks["shutdown"])

    def unopened(self, hook: Hook) -> bool:
        """Whether the ``on_startup`` function of the same name has not succeeded."""
        if hook.kind != "shutdown" or all(other.name != hook.name for other in self._hooks["startup"]):
            return False
        if any(r.kind == "startup" and r.name == hook.name and r.outcome == "ok" for r in self.records):
            return False
        return hook.opened_late is None or not hook.opened_late()


class HookRunner:
    """Runs the hooks of all applications in a shutdown, those of later applications first."""

    def __init__(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._drain_hooks_ended = threading.Event()

    def begin_drain(self, applications: Sequence[Application], deadline: Deadline) -> None:
        """Run the ``on_drain`` functions in parallel to the phases."""
        hooks = [hook for each in applications for hook in each.hooks.of("drain")]
        if not any(hook.hold for hook in hooks):
            self._shutdown.delay.release()
        if not hooks:
            self._drain_hooks_ended.set()
            return

        def run() -> None:
            self.run(applications, "drain", deadline)
            self._shutdown.delay.release()
            self._drain_hooks_ended.set()

        try:
            threading.Thread(target=run, name="lifecycle-on-drain", daemon=True).start()
        except RuntimeError:  # the interpreter is finalizing
            run()

    def wait(self, applications: Sequence[Application], until: Deadline) -> None:
        """Wait for the ``on_drain`` functions, and for start-ups under way."""
        # Their own deadline is the same. We wait a moment longer, so that a hung one is recorded.
        self._shutdown.clock.wait(self._drain_hooks_ended, until.remaining() + 0.1)
        for each in applications:
            if each.startup.runs_functions:
                self._shutdown.clock.wait(each.startup.functions_over, until.remaining())

    def run(self, applications: Sequence[Application], kind: str, deadline: Deadline, group: bool = False) -> None:
        """Run the hooks of a kind, each within its own timeout and its share of the remaining time.

        :param group: run the hooks of the process group instead of those of each process.
        """
        shutdown = self._shutdown
        context = ShutdownContext(shutdown.request.reason, shutdown.request.signal, shutdown)
        todo = [(hook, each) for each in reversed(applications) for hook in each.hooks.of(kind) if hook.group is group]
        for number, (hook, application) in enumerate(todo, 1):
            if kind == "drain" and not any(waiting.hold for waiting, *_ in todo[number - 1 :]):
                shutdown.delay.release()
            if application.hooks.unopened(hook):
                extra = {"lifecycle_hook": hook.name, "lifecycle_kind": kind, "lifecycle_outcome": "skipped"}
                logger.info("%s skipped: its start did not succeed", hook.label, extra=extra)
                application.hooks.records.append(HookRecord(hook.name, kind, "skipped", 0.0))
                continue
            share = deadline.remaining() if number == len(todo) else deadline.remaining() / 2
            limit = min(hook.timeout or share, share)
            application.hooks.records.append(run_hook(hook, context, limit, application.context, shutdown.clock))


# Not a threading.local(): one made before gevent patches is shared by all greenlets.
_hook_threads: set[threading.Thread] = set()


def inside_a_hook() -> bool:
    """Whether a hook runs in the calling thread."""
    return threading.current_thread() in _hook_threads


def run_hook(
    hook: Hook,
    argument: ShutdownContext,
    limit: float | None,
    context: Callable[[], AbstractContextManager[Any]],
    clock: Clock,
) -> HookRecord:
    """Call a hook in its own thread and wait for it at most ``limit`` seconds; ``None`` is no limit."""
    ended = threading.Event()
    raised: list[BaseException] = []

    def call() -> None:
        _hook_threads.add(threading.current_thread())
        try:
            with context():
                hook.function(*([argument] if hook.takes_context else []))
        except BaseException as error:  # SystemExit too: a hook must not end the thread that runs the shutdown
            raised.append(error)
        finally:
            _hook_threads.discard(threading.current_thread())
            ended.set()

    began = clock.monotonic()
    try:
        threading.Thread(target=call, name=f"lifecycle-on-{hook.kind}-{hook.name}", daemon=True).start()
    except RuntimeError:  # the interpreter is finalizing: see the docstring of this module
        if limit is not None:
            faulthandler.dump_traceback_later(max(0.1, limit), exit=True)
        call()
        faulthandler.cancel_dump_traceback_later()
    back = ended.wait() if limit is None else clock.wait(ended, limit)
    duration = clock.monotonic() - began
    error = raised[0] if back and raised else None
    what = error_text(error) if error is not None else ""
    outcome = "hung" if not back else "failed" if error is not None else "ok"
    record = HookRecord(hook.name, hook.kind, outcome, duration, what)
    _log_end(hook.label, record, error)
    return record


def _log_end(label: str, record: HookRecord, error: BaseException | None) -> None:
    """Log how a hook ended."""
    extra = {
        "lifecycle_hook": record.name,
        "lifecycle_kind": record.kind,
        "lifecycle_outcome": record.outcome,
        "lifecycle_seconds": record.duration,
    }
    if record.outcome == "ok":
        level = logging.INFO if record.kind == "startup" else logging.DEBUG  # the report has all hooks of a shutdown
        logger.log(level, "%s done after %.1f s", label, record.duration, extra=extra)
    elif record.outcome == "hung":
        logger.warning("%s hung: it did not return within %.1f s", label, record.duration, extra=extra)
    else:
        logger.warning("%s failed after %.1f s: %s", label, record.duration, record.error, exc_info=error, extra=extra)


class Resource:
    """A resource that :meth:`Lifecycle.resource` has registered; :attr:`value` is the open resource.

    It is opened and closed in two threads, neither of which serves requests.

    :param application: returns the application that the caller acts for; each has its own value.
    """

    def __init__(self, function: Any, name: str | None, application: Callable[[], object]) -> None:
        self.name = name or name_of(function)
        self._application = application
        self._make = _maker(function, self.name)
        self._open: dict[object, tuple[contextlib.ExitStack, Any]] = {}
        self._over = False  # its turn in the shutdown is over

    @property
    def value(self) -> Any:
        """The yielded value, or what ``__enter__`` returned. Any thread may ask.

        :raises RuntimeError: it is not open yet, or not any more.
        """
        opened = self._open.copy()
        kept = opened.get(self._application()) or (next(iter(opened.values())) if len(opened) == 1 else None)
        if kept is not None:
            return kept[1]
        if opened:
            raise RuntimeError(
                f"The resource '{self.name}' is open for several applications; use it inside the application context of"
                " one."
            )
        raise RuntimeError(f"The resource '{self.name}' is not open; it is, from the start-up to the end of the drain.")

    def open(self) -> None:
        """Open it; an ``on_startup`` function."""
        manager = self._make()
        if not hasattr(type(manager), "__enter__"):
            raise TypeError(
                f"The resource '{self.name}' gave {manager!r}, which is not a context manager; yield once, or return"
                " one."
            )
        stack = contextlib.ExitStack()
        self._open[self._application()] = (stack, stack.enter_context(manager))
        if self._over:
            self.close()

    def opened_late(self) -> bool:
        """Whether it is open although its opening exceeded the timeout; one that opens after this closes itself."""
        self._over = True
        return bool(self._open)

    def close(self) -> None:
        """Close it; an ``on_shutdown`` function."""
        opened = self._open.pop(self._application(), None)
        if opened is not None:
            opened[0].close()


def _maker(function: Any, name: str) -> Callable[[], AbstractContextManager[Any]]:
    """The function that makes the context manager of a resource.

    :raises TypeError: ``function`` cannot make one.
    """
    if inspect.isgeneratorfunction(function):
        return contextlib.contextmanager(function)
    if hasattr(type(function), "__enter__"):
        return lambda: function  # it is a context manager
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"The resource '{name}' is {function!r}; register a generator function that yields once, a context manager,"
            " or a function that returns one."
        )
    return function  # type: ignore[no-any-return]  # its result is checked when the resource is opened
