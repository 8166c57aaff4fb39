"""Health checks: their registry, and the runner that cannot be hung by them.

A check is a function that returns nothing (it passes), returns a mapping (it passes, and this is what it saw) or
raises (it fails). All the checks that a probe asks for run side by side, each in a thread of its own, and the probe
waits for each no longer than that check's timeout.

A thread cannot be ended from outside, so the one bound that protects the process is on how many there are: a check
has at most one run at a time, however often it is asked. A probe that finds a run under way joins it (single
flight); one that finds a run past its timeout reports it as failing, "hanging since", without waiting. Python peers
that start a thread for each probe grow one thread for each probe of a hung database; here it stays at one.

No lock is held while a check runs: :class:`_Slot` holds its own only to look at, or to put in, the current run.
"""

from __future__ import annotations

import inspect
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._state import logger

GROUPS = ("live", "ready", "startup")

# Two seconds is what hellofresh/health-go gives a check; a kubelet waits for one unless it is told to wait longer.
DEFAULT_TIMEOUT = 2.0


@dataclass(frozen=True)
class Check:
    """One registered health check.

    :param name: how it is called in logs and details; unique within a :class:`~flask_lifecycle.Lifecycle`.
    :param function: called without arguments, in an application context, in a thread of its own.
    :param timeout: seconds a probe waits for it.
    :param critical: whether its failure fails the probe (503) or only warns (200, ``warn``).
    :param groups: which probes ask it, of ``live``, ``ready`` and ``startup``; ``/healthcheck`` asks all.
    """

    name: str
    function: Callable[[], Any]
    timeout: float = DEFAULT_TIMEOUT
    critical: bool = True
    groups: tuple[str, ...] = ("ready",)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"The check '{self.name}' is not callable; register a function, or an object with __call__."
            )
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"A check needs a name that is a string, not {self.name!r}; pass name='...'.")
        if inspect.iscoroutinefunction(self.function):
            raise TypeError(
                f"The check '{self.name}' is an async function, which is not supported; make it a plain one."
            )
        check_timeout(f"check '{self.name}'", self.timeout)
        if isinstance(self.groups, str) or not self.groups or set(self.groups) - set(GROUPS):
            raise ValueError(
                f"The check '{self.name}' names the groups {self.groups!r};"
                f" give a tuple of {', '.join(map(repr, GROUPS))}."
            )
        object.__setattr__(self, "groups", tuple(self.groups))

    @classmethod
    def of(cls, check: Any) -> Check:
        """A check from any callable object with (some of) the attributes of this class."""
        if isinstance(check, cls):
            return check
        if not callable(check):
            raise TypeError(f"The check {check!r} is not callable; register a function, or an object with __call__.")
        named = {key: getattr(check, key) for key in ("timeout", "critical", "groups") if hasattr(check, key)}
        name = getattr(check, "name", None) or getattr(check, "__name__", None) or type(check).__name__
        return cls(name, check, **named)


def check_timeout(what: str, timeout: Any) -> None:
    """Refuse a timeout that is not a positive, finite number of seconds."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or timeout <= 0:
        raise ValueError(f"The timeout of the {what} must be a number of seconds greater than zero, not {timeout!r}.")


class CheckReport(NamedTuple):
    """What one check answered: ``status`` is ``pass``, ``warn`` or ``fail``; the rest is detail."""

    name: str
    status: str
    duration: float
    observed: Mapping[str, Any] = {}
    error: BaseException | None = None
    hanging: bool = False


class Registry:
    """The checks of one ``Lifecycle``, in the order of their registration. Any thread may add and run."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()  # guards _slots against two registrations of one name

    def add(self, check: Check) -> None:
        """Register a check; the next probe sees it.

        :raises ValueError: the name is taken.
        """
        with self._lock:
            if check.name in self._slots:
                raise ValueError(f"There is a check '{check.name}' already; give this one another name.")
            self._slots = self._slots | {check.name: _Slot(check)}

    def run(self, group: str | None, context: Callable[[], AbstractContextManager[Any]]) -> tuple[CheckReport, ...]:
        """Run the checks of a group (``None``: all) side by side and report on each within its timeout.

        Blocks for the longest timeout among them at most.
        """
        slots = [slot for slot in self._slots.values() if group is None or group in slot.check.groups]
        runs = [(slot, slot.join_or_start(context)) for slot in slots]
        return tuple(slot.report(run, run.done if group == "live" else run.hurried) for slot, run in runs)

    def hurry(self) -> None:
        """Let every probe that waits for a check have its answer now, but for liveness; the checks themselves go on.

        Called when a drain begins: readiness is no matter of checks any more, and nobody may wait for a hung one.
        """
        for slot in self._slots.values():
            slot.hurry()


def overall(reports: Iterable[CheckReport]) -> str:
    """The worst of the statuses: ``fail`` before ``warn`` before ``pass``."""
    statuses = {report.status for report in reports}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"


class _Run:
    """One execution of a check, which may outlive the probe that started it."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.ended: float | None = None
        self.done = threading.Event()
        self.hurried = threading.Event()  # done, or no longer to be waited for
        self.observed: Mapping[str, Any] = {}
        self.error: BaseException | None = None

    def execute(self, check: Check, context: Callable[[], AbstractContextManager[Any]]) -> None:
        try:
            with context():
                observed = check.function()
            if isinstance(observed, Mapping):
                self.observed = observed
        except BaseException as error:  # SystemExit too: a check fails, it does not end its thread unheard
            self.error = error
        finally:
            self.ended = time.monotonic()
            self.done.set()
            self.hurried.set()


class _Slot:
    """A check and its one run."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._lock = threading.Lock()  # guards _run and _failing
        self._run: _Run | None = None
        self._failing = False

    def join_or_start(self, context: Callable[[], AbstractContextManager[Any]]) -> _Run:
        with self._lock:
            if self._run is not None and not self._run.done.is_set():
                return self._run
            run = self._run = _Run()
        thread = threading.Thread(
            target=run.execute, args=(self.check, context), name=f"lifecycle-check-{self.check.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads to be had: that is no reason to answer a probe with 500
            run.error = error
            run.done.set()
            run.hurried.set()
        return run

    def hurry(self) -> None:
        with self._lock:
            run = self._run
        if run is not None:
            run.hurried.set()

    def report(self, run: _Run, event: threading.Event) -> CheckReport:
        check = self.check
        event.wait(max(0.0, run.started + check.timeout - time.monotonic()))
        ended = run.done.is_set()
        duration = (run.ended or time.monotonic()) - run.started
        error = run.error
        if not ended:
            error = TimeoutError(f"no answer within {check.timeout:g} s, hanging since {duration:.1f} s")
        status = "pass" if error is None else "fail" if check.critical else "warn"
        self._log_change(error, duration)
        return CheckReport(check.name, status, duration, run.observed if ended else {}, error, not ended)

    def _log_change(self, error: BaseException | None, duration: float) -> None:
        with self._lock:
            if self._failing == (error is not None):
                return
            self._failing = error is not None
        extra = {"lifecycle_check": self.check.name}
        if error is None:
            logger.info("check '%s' passes again", self.check.name, extra=extra)
        else:
            logger.warning("check '%s' fails after %.2f s", self.check.name, duration, exc_info=error, extra=extra)
