"""The functions that an application is started and stopped by, and how they are called.

Each runs in a thread of its own, because only so can one that hangs be left behind, and the rest still run. Late in an
interpreter's life (``atexit``) no thread can be started on Python 3.12 and later. There a hook runs in the calling
thread, and faulthandler's watchdog, which needs no Python thread, ends the process if it hangs; those behind it
cannot run then.
"""

from __future__ import annotations

import faulthandler
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ._callbacks import error_text, name_of, takes_context
from ._deadline import Clock
from ._record import NamedTuple
from ._state import logger


class HookRecord(NamedTuple):
    """What became of one hook.

    ``kind`` is ``startup``, ``task`` (of the start-up, if it failed), ``drain`` or ``shutdown``; ``outcome`` is ``ok``,
    ``failed``, ``hung``, or ``skipped`` where its twin at the start did not succeed; ``duration`` is in seconds;
    ``error`` is the text of what it raised, or empty. The thread whose crash began the shutdown is one too, of the kind
    ``crash``.
    """

    name: str
    kind: str
    outcome: str
    duration: float
    error: str = ""


class Stop(Protocol):
    """The shutdown that a hook is part of."""

    clock: Clock

    def remaining(self) -> float | None:
        """Seconds left of the grace period, ``None`` when no shutdown has begun."""

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""


class ShutdownContext:
    """What a hook may ask about the shutdown that it is part of. Any thread may use it; nothing blocks.

    ``reason`` and ``signal`` say why the process stops; the latter is ``None`` if it was not for a signal.
    """

    def __init__(self, reason: str, signal: int | None, stop: Stop) -> None:
        self.reason = reason
        self.signal = signal
        self._stop = stop

    def remaining(self) -> float | None:
        """Seconds left of the grace period, or ``None`` in an ``on_startup`` function."""
        return self._stop.remaining()

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self._stop.in_flight


class Hook:
    """A registered function."""

    hold = False  # whether the listener stays open until it has returned; of an on_drain function
    group = False  # whether one process is to run it for all of its group; of an on_shutdown function
    opened_late: Callable[[], bool] | None = None  # whether there is something to close after a start that was given up

    def __init__(
        self, name: str, kind: str, function: Callable[..., Any], timeout: float | None, takes_context: bool
    ) -> None:
        self.name = name
        self.kind = kind
        self.function = function
        self.timeout = timeout
        self.takes_context = takes_context

    @property
    def label(self) -> str:
        return f"on_{self.kind} '{self.name}'"


class Hooks:
    """The functions that one ``Lifecycle`` calls at its turning points."""

    def __init__(self) -> None:
        self._hooks: dict[str, list[Hook]] = {"startup": [], "drain": [], "shutdown": []}
        self.records: list[HookRecord] = []  # of those that ran
        self.after_fork()

    def after_fork(self) -> None:
        """Forget in a forked child what has run: it runs there anew. The list stays the one that others write to."""
        self.records.clear()
        self.starting = ""  # the on_startup function that runs now
        self.startup_begun = threading.Event()
        self.startup_over = threading.Event()
        self._startup_lock = threading.Lock()  # guards startup_begun's test and set

    def add(self, kind: str, function: Any, name: str | None, timeout: float | None) -> Hook:
        """Register a function.

        :raises TypeError: it cannot be called with nothing or with one argument.
        :raises ValueError: there is one of this kind and name already.
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
                f"There is an on_{kind} function '{hook_name}' already; pass name='...' to tell them apart."
            )
        hook = Hook(hook_name, kind, function, timeout, takes_context(f"on_{kind} function '{hook_name}'", function))
        self._hooks[kind].append(hook)
        return hook

    def of(self, kind: str) -> tuple[Hook, ...]:
        """The functions of a kind in the order in which they are called: teardown in reverse."""
        hooks = self._hooks[kind]
        return tuple(reversed(hooks)) if kind == "shutdown" else tuple(hooks)

    @property
    def for_group(self) -> bool:
        """Whether there is an ``on_shutdown`` function that one process is to run for all of its group."""
        return any(hook.group for hook in self._hooks["shutdown"])

    def unopened(self, hook: Hook) -> bool:
        """Whether an ``on_shutdown`` function has a twin of its name at the start which has not succeeded."""
        if hook.kind != "shutdown" or all(twin.name != hook.name for twin in self._hooks["startup"]):
            return False
        if any(r.kind == "startup" and r.name == hook.name and r.outcome == "ok" for r in self.records):
            return False
        return hook.opened_late is None or not hook.opened_late()

    def start(self, context: Callable[[], AbstractContextManager[Any]], stop: Stop) -> str:
        """Run the ``on_startup`` functions in order, once; return what failed, or an empty string.

        Blocks until they are over, whoever runs them. The first that fails ends the start-up.
        """
        with self._startup_lock:
            first = not self.startup_begun.is_set()
            self.startup_begun.set()
        if first:
            argument = ShutdownContext("", None, stop)
            for hook in self.of("startup"):
                self.starting = hook.name
                self.records.append(run_hook(hook, argument, hook.timeout, context, stop.clock))
                if self.records[-1].outcome != "ok":
                    break
            self.starting = ""
            self.startup_over.set()
        self.startup_over.wait()
        return next((hook.name for hook in self.records if hook.kind == "startup" and hook.outcome != "ok"), "")


# Not a threading.local(), which all greenlets share that is made before gevent patches.
_hook_threads: set[threading.Thread] = set()


def inside_a_hook() -> bool:
    """Whether the calling thread is one in which a hook runs."""
    return threading.current_thread() in _hook_threads


def run_hook(
    hook: Hook,
    argument: ShutdownContext,
    limit: float | None,
    context: Callable[[], AbstractContextManager[Any]],
    clock: Clock,
) -> HookRecord:
    """Call a hook in a thread of its own and wait for it ``limit`` seconds (``None``: as long as it takes)."""
    ended = threading.Event()
    raised: list[BaseException] = []

    def call() -> None:
        _hook_threads.add(threading.current_thread())
        try:
            with context():
                hook.function(*([argument] if hook.takes_context else []))
        except BaseException as error:  # SystemExit too: a hook does not end the process, it is part of its end
            raised.append(error)
        finally:
            _hook_threads.discard(threading.current_thread())
            ended.set()

    began = clock.monotonic()
    try:
        threading.Thread(target=call, name=f"lifecycle-on-{hook.kind}-{hook.name}", daemon=True).start()
    except RuntimeError:  # the interpreter is finalizing: see the head of this module
        if limit is not None:
            faulthandler.dump_traceback_later(max(0.1, limit), exit=True)
        call()
        faulthandler.cancel_dump_traceback_later()
    back = _wait(ended, limit, clock)
    duration = clock.monotonic() - began
    error = raised[0] if back and raised else None
    what = error_text(error) if error is not None else ""
    outcome = "hung" if not back else "failed" if error is not None else "ok"
    record = HookRecord(hook.name, hook.kind, outcome, duration, what)
    _tell_end(hook.label, record, error)
    return record


def _tell_end(label: str, record: HookRecord, error: BaseException | None) -> None:
    """Log how a hook ended."""
    extra = {
        "lifecycle_hook": record.name,
        "lifecycle_kind": record.kind,
        "lifecycle_outcome": record.outcome,
        "lifecycle_seconds": record.duration,
    }
    if record.outcome == "ok":
        logger.info("%s done after %.1f s", label, record.duration, extra=extra)
    elif record.outcome == "hung":
        logger.warning("%s hung: not back after %.1f s", label, record.duration, extra=extra)
    else:
        logger.warning("%s failed after %.1f s: %s", label, record.duration, record.error, exc_info=error, extra=extra)


def _wait(ended: threading.Event, limit: float | None, clock: Clock) -> bool:
    if limit is None:
        return ended.wait()
    return clock.wait(ended, limit)
