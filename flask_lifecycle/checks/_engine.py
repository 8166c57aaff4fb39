"""The engine that runs checks and cannot be hung by them.

Theory of operation
-------------------

All the checks that a probe asks for run side by side, each in a thread of its own, and the probe waits for each no
longer than that check's timeout, and for all of them no longer than its own.

A thread cannot be ended from outside, so the one bound that protects the process is on how many there are: a check has
at most one *run* at a time, however often it is asked. A probe that finds a run under way joins it (single flight);
one that finds a run past its timeout reports it as failing, "hanging since", without waiting, and no second run is
started until the first has returned. A peer that starts a thread for each probe grows one thread for each probe of a
hung database; here it stays at one. When a run is over its result is answered to everybody for ``ttl`` seconds, a
bad one for ``fail_ttl``: a storm of probes is no load on what is checked.

A run that returns after its timeout has failed, whatever it returns: a timeout that the next quick answer forgives is
none. A run that goes on hanging counts as one more failure for each timeout that passes, else ``fail_after`` would
never be reached by a hang.

A check with an ``interval`` is run by the scheduler (:class:`Scheduler`), and its result is good until the next run is
overdue; so probes only read, and wait for no run but the first. Where no scheduler runs (before the start-up, in
tests) they run it themselves.

What has changed is told one after the other for each check, by the thread of the run that changed it or, while another
change is still being told, by that change's thread.

No lock is held while a check runs, and none while a receiver, a handler of the log or anybody else's code does:
:class:`_Slot` holds its own only to look at, or to put in, the current run and the last result.

Interleaving: two probes find a run past its timeout at once. Both ask the slot to count the hang; it counts, under its
lock, what the run has not been counted for yet, so the failure is counted once, and the change is told by whoever made
it. A run that returns at the same moment is settled under the same lock: either the hang was counted before, and
the late return counts as nothing more, or the return comes first and there is no hang.
"""

from __future__ import annotations

import functools
import os
import random
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .._fork import renew_in_children
from .._record import NamedTuple
from .._scheduler import Scheduler
from .._state import logger
from ._check import Check, CheckContext, CheckResult, as_result, public_causes, public_text
from ._damping import Damper

# A tenth of an interval up or down: a hundred workers that started together drift apart within a few runs.
JITTER = 0.1


# So many durations are kept of each check: what a line of a status page has room for.
KEPT_DURATIONS = 30

# So many probes wait for one check at once; more than that, as in a flood while it hangs, are told what is known.
MOST_WAITING = 128


class App(Protocol):
    """What the engine asks of the application that it checks."""

    def context(self) -> AbstractContextManager[Any]:
        """An application context."""

    def ensure_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a coroutine function a plain one, as for an async view."""

    def check_context(self) -> CheckContext:
        """What a check may ask."""


class CheckReport(NamedTuple):
    """What one check says.

    :param status: ``pass``, ``warn`` or ``fail``: what counts, after damping and weight.
    :param duration: seconds that the last run took, or has taken so far.
    :param time: when it was over, seconds since the epoch; of one that still runs, now.
    :param result: what it returned.
    :param error: what it raised.
    :param hanging: whether it has not come back in time.
    :param damped: how many results in a row have contradicted ``status`` without changing it yet.
    """

    check: Check
    status: str
    duration: float
    time: float
    result: CheckResult = CheckResult()
    error: BaseException | None = None
    hanging: bool = False
    damped: int = 0

    @property
    def name(self) -> str:
        """What the check is called."""
        return self.check.name

    @property
    def output(self) -> str:
        """What may be told to whoever may see details."""
        if self.hanging:
            return f"hanging since {self.duration:.1f} s"
        return public_text(self.error) if self.error is not None else self.result.output

    @property
    def causes(self) -> dict[str, str]:
        """What its failure consists of, by name."""
        return public_causes(self.error)


class CheckHistory(NamedTuple):
    """What is kept of a check beside its last result.

    :param durations: seconds that its last runs took, oldest first.
    :param changed: when what counts changed last, seconds since the epoch; 0 before the first result.
    """

    durations: tuple[float, ...]
    changed: float


def overall(statuses: Iterable[str]) -> str:
    """The worst of statuses: ``fail`` before ``warn`` before ``pass``."""
    found = set(statuses)
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


class _Run:
    """One execution of a check, which may outlive the probe that started it."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.ended: float | None = None
        self.done = threading.Event()
        self.hurried = threading.Event()  # done, or no longer to be waited for
        self.hangs = 0  # for how many timeouts it has been counted
        self.result = CheckResult()
        self.error: BaseException | None = None

    def execute(self, check: Check, app: App) -> None:
        try:
            with app.context():
                function = check.function if check.coroutine is None else app.ensure_sync(check.coroutine)
                self.result = as_result(function(app.check_context()) if check.wants_context else function())
        except BaseException as error:  # SystemExit too: a check fails, it does not end its thread unheard
            self.error = error

    def finish(self, now: float) -> None:
        self.ended = now
        self.done.set()
        self.hurried.set()


class _Slot:
    """A check and its one run, in one application."""

    def __init__(self, check: Check, engine: Engine) -> None:
        self.check = check
        self._engine = engine
        self._lock = threading.Lock()  # guards what follows
        self._run: _Run | None = None
        self._last: CheckReport | None = None
        self._last_ended = 0.0
        self._damper = Damper(check.fail_after, check.recover_after, check.fail_for)
        self._slow = False
        self._durations: deque[float] = deque(maxlen=KEPT_DURATIONS)
        self._changed = 0.0
        # What nobody hears for so long is too old to be told.
        self._untold: deque[Callable[[], None]] = deque(maxlen=100)
        self._telling = False
        self._waiting = 0  # probes
        self.due = 0.0  # of a background check: when it runs next

    # -- running --------------------------------------------------------------------------------------------------

    def begin(self, now: float, *, anew: bool = False) -> _Run | None:
        """The run to wait for: the one under way or a new one; ``None`` if the last result is still good."""
        with self._lock:
            good = not anew and self._last is not None and now - self._last_ended < self._shelf_life(self._last)
            if self._run is not None:
                # Of a background check probes only read, also while it runs; unless it hangs, which they tell.
                reads = good and self.check.interval is not None and now - self._run.started < self.check.timeout
                return None if reads else self._run
            if good:
                return None
            run = self._run = _Run(now)
        thread = threading.Thread(
            target=self._execute, args=(run,), name=f"lifecycle-check-{self.check.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads to be had: that is no reason to answer a probe with 500
            run.error = error
            self._settle(run)
        return run

    def _shelf_life(self, last: CheckReport) -> float:
        check = self.check
        if check.interval is not None:
            # Until the scheduler's next run is overdue.
            return max(check.interval, check.fail_interval or 0.0) * (1 + JITTER) + check.timeout
        failed = last.error is not None or last.result.status == "fail"
        return check.ttl if check.fail_ttl is None or not failed else check.fail_ttl

    def _execute(self, run: _Run) -> None:
        run.execute(self.check, self._engine.app)
        self._settle(run)

    def _settle(self, run: _Run) -> None:
        """Take a run's result. In the run's thread."""
        now = self._engine.now()
        duration = now - run.started
        late = duration >= self.check.timeout and run.error is None
        if late:
            run.error = TimeoutError(f"answered after {duration:.1f} s, {self.check.timeout:g} s were allowed")
        raw = "fail" if run.error is not None else run.result.status
        with self._lock:
            old, new = self._damper.status, self._damper.feed(raw, now, 0 if run.hangs else 1)
            self._run, self._last_ended = None, now
            self._last = CheckReport(self.check, new, duration, time.time(), run.result, run.error)
            self._durations.append(duration)
            self.due = run.started + self._engine.pause(self.check, new)
            if raw != "fail" and duration > self.check.timeout / 2 and not self._slow:
                self._slow = True
                self._untold.append(functools.partial(self._warn_of_slowness, duration))
            if old != new:
                self._changed = self._last.time
                self._untold.append(functools.partial(self._tell_change, old, new, self._last))
        run.finish(now)
        if self.check.interval is not None:
            self._engine.wake()
        self._tell()

    def _count_hang(self, run: _Run, now: float) -> None:
        """Count a run that is past its timeout, once for each timeout that has passed."""
        times = int((now - run.started) / self.check.timeout)
        with self._lock:
            if run is not self._run or times <= run.hangs:
                return
            old, new = self._damper.status, self._damper.feed("fail", now, times - run.hangs)
            run.hangs = times
            if old == new:
                return
            error = TimeoutError(f"no answer within {self.check.timeout:g} s, hanging since {now - run.started:.1f} s")
            report = CheckReport(self.check, new, now - run.started, time.time(), error=error)
            self._changed = report.time
            self._untold.append(functools.partial(self._tell_change, old, new, report))
        # In a thread of its own: it is a probe that has found out, and a receiver or a handler of the log might block.
        telling = threading.Thread(target=self._tell, name=f"lifecycle-check-{self.check.name}-hangs", daemon=True)
        try:
            telling.start()
        except RuntimeError:  # no more threads to be had
            telling.run()

    def look(self, now: float) -> float | None:
        """Count the run under way if it hangs; return when to look again, ``None`` if nothing runs."""
        with self._lock:
            run = self._run
        if run is None:
            return None
        self._count_hang(run, now)
        return run.started + self.check.timeout * (run.hangs + 1)

    def hurry(self) -> None:
        with self._lock:
            run = self._run
        if run is not None:
            run.hurried.set()

    # -- reporting ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """What counts now, weighed by ``critical``; empty before the first result."""
        return self._weigh(self._damper.status)

    def report(self, run: _Run | None, until: float, *, hurried: bool) -> CheckReport:
        """Wait for a run, no longer than its timeout and ``until``, and say what counts."""
        clock = self._engine.now
        if run is not None:
            event = run.hurried if hurried else run.done
            if not (hurried and self._engine.hurried):
                self._wait(event, min(run.started + self.check.timeout, until) - clock())
            if not run.done.is_set():
                return self._report_unfinished(run, clock())
        with self._lock:
            last, status, streak = self._last, self._damper.status, self._damper.streak
        assert last is not None  # what a run leaves before it is done
        return last._replace(status=self._weigh(status), damped=streak)

    def _wait(self, event: threading.Event, seconds: float) -> None:
        with self._lock:
            room = self._waiting < MOST_WAITING
            self._waiting += room
        if room:
            event.wait(max(0.0, seconds))
            with self._lock:
                self._waiting -= 1

    def _report_unfinished(self, run: _Run, now: float) -> CheckReport:
        self._count_hang(run, now)
        with self._lock:
            status, streak, hangs = self._damper.status, self._damper.streak, run.hangs
        waited = now - run.started
        if hangs:
            return CheckReport(self.check, self._weigh(status), waited, time.time(), hanging=True, damped=streak)
        # The probe's own time is over, or a drain has begun; the check may still answer within its own.
        result = CheckResult("fail", f"no answer yet after {waited:.1f} s")
        return CheckReport(self.check, self._weigh(status or "fail"), waited, time.time(), result)

    def known(self) -> CheckReport | None:
        """What counts now, without running anything or waiting; ``None`` before the first result."""
        with self._lock:
            run, known, status, streak = self._run, self._last, self._damper.status, self._damper.streak
            if run is not None and run.hangs:
                waited = self._engine.now() - run.started
                known = CheckReport(self.check, status, waited, time.time(), hanging=True)
        return known and known._replace(status=self._weigh(status), damped=streak)

    def history(self) -> CheckHistory:
        with self._lock:
            return CheckHistory(tuple(self._durations), self._changed)

    def _weigh(self, status: str) -> str:
        return "warn" if status == "fail" and not self.check.critical else status

    # -- telling --------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell what is to be told, in order, unless another thread is at it already.

        A receiver or a handler of the log may block. What comes meanwhile is left to the thread that it blocks: with a
        thread for each change, a check that comes and goes would use up all there are.
        """
        while True:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                tell = self._untold.popleft()
            try:
                tell()
            finally:
                with self._lock:
                    self._telling = False

    def _warn_of_slowness(self, duration: float) -> None:
        logger.warning(
            "check '%s' took %.2f s, more than half of its timeout of %g s",
            self.check.name, duration, self.check.timeout, extra={"lifecycle_check": self.check.name},
        )  # fmt: skip

    def _tell_change(self, old: str, new: str, report: CheckReport) -> None:
        """Log a change and hand it on; the exception is told here, and nowhere else."""
        name, extra = self.check.name, {"lifecycle_check": self.check.name}
        if new == "fail":
            said = f": {' '.join(report.output.split())}" if report.error is None and report.output else ""
            logger.warning(
                "check '%s' fails after %.2f s%s", name, report.duration, said, exc_info=report.error, extra=extra
            )
        elif old == "fail":
            logger.info("check '%s' passes again", name, extra=extra)
        old, new = self._weigh(old), self._weigh(new)
        if old != new:  # a warning that gets worse stays one where the check is not critical
            self._engine.changed(self.check, old, new, report.output)


class Engine:
    """The checks of one application, as they stand. Any thread may use it.

    :param checks: gives the registered checks, in order; asked each time, so that one added later is seen at once.
    :param changed: called as ``changed(check, old, new, reason)`` after each change that counts; ``old`` is empty
        after the first result.
    """

    def __init__(
        self,
        app: App,
        checks: Callable[[], Iterable[Check]],
        changed: Callable[[Check, str, str, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.changed = changed
        self.now = now
        self._checks = checks
        # Seeded by what tells this process from its siblings, which may have been forked a moment after it.
        self._random = random.Random(f"{socket.gethostname()} {os.getpid()}")
        self._resume = False  # whether the parent of this process ran background checks, and it is still to begin
        self._forget()
        renewed_in_children.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()  # guards _slots
        self._slots: dict[str, _Slot] = {}
        self.scheduler: Scheduler | None = None
        self.hurried = False

    def after_fork(self) -> None:
        """In the child no check runs, and none of the parent's results is its own.

        Where the parent ran background checks the child does so from its first probe on, and not before: most children
        of a process are no servers.
        """
        self._resume = self.scheduler is not None and not self.scheduler.ended
        self._forget()
        self._random.seed(f"{socket.gethostname()} {os.getpid()}")

    def _slots_of(self, wanted: Callable[[Check], bool]) -> list[_Slot]:
        with self._lock:
            for check in self._checks():
                if check.name not in self._slots:
                    self._slots[check.name] = _Slot(check, self)
            return [slot for slot in self._slots.values() if wanted(slot.check)]

    def run(self, wanted: Callable[[Check], bool], timeout: float, *, hurried: bool = True) -> tuple[CheckReport, ...]:
        """Run the checks that are wanted side by side, as far as their results are not good any more, and report.

        Blocks for the longest timeout among them at most, and for ``timeout``.

        :param hurried: whether :meth:`hurry` ends the waiting.
        """
        if self._resume:
            self._resume = False
            self.start()
        now = self.now()
        runs = [(slot, slot.begin(now)) for slot in self._slots_of(wanted)]
        return tuple(slot.report(run, now + timeout, hurried=hurried) for slot, run in runs)

    def hurry(self) -> None:
        """Let every probe that waits for a check have its answer now, but for liveness; the checks themselves go on.

        Called when a drain begins: readiness is no matter of checks any more, and nobody may wait for a hung one.
        """
        self.hurried = True  # for runs that begin from now on
        for slot in self._slots_of(lambda check: True):
            slot.hurry()

    def standing(self) -> list[tuple[Check, str]]:
        """What counts now of every check that has run, without running any."""
        return [(slot.check, slot.status) for slot in self._slots_of(lambda check: True) if slot.status]

    def known(self) -> tuple[CheckReport, ...]:
        """The last reports of every check that has run, without running any."""
        reports = (slot.known() for slot in self._slots_of(lambda check: True))
        return tuple(report for report in reports if report is not None)

    def histories(self) -> dict[str, CheckHistory]:
        """What is kept of every check, by its name."""
        return {slot.check.name: slot.history() for slot in self._slots_of(lambda check: True)}

    # -- background checks ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run background checks from now on; twice is harmless. To be called in the process that serves."""
        with self._lock:
            if self.scheduler is None:
                self.scheduler = self._make_scheduler()
        self.wake()

    def _make_scheduler(self) -> Scheduler:
        return Scheduler(self.tick, "lifecycle-checks", "background checks")

    def wake(self) -> None:
        """A check was registered: if it is the first to be run in the background, begin."""
        scheduler = self.scheduler
        if scheduler is not None and any(check.interval is not None for check in self._checks()):
            scheduler.wake()

    def stop(self) -> None:
        """Start no background check any more, also where :meth:`start` comes later, and give back the thread."""
        with self._lock:
            scheduler = self.scheduler = self.scheduler or self._make_scheduler()
        scheduler.stop()

    def tick(self) -> float | None:
        """Start the background checks that are due; seconds until there is something to do again."""
        now = self.now()
        moments: list[float] = []
        for slot in self._slots_of(lambda check: check.interval is not None):
            overdue = slot.look(now)
            if overdue is not None:
                moments.append(overdue)
            elif slot.due <= now:
                slot.begin(now, anew=True)  # its end sets when it is due again, and wakes the scheduler
                moments.append(now + slot.check.timeout)
            else:
                moments.append(slot.due)
        return max(0.0, min(moments) - now) if moments else None

    def pause(self, check: Check, status: str) -> float:
        """Seconds from one background run of a check to the next."""
        seconds = check.fail_interval if status == "fail" and check.fail_interval is not None else check.interval
        return (seconds or 0.0) * (1 + JITTER * self._random.uniform(-1, 1))


class _Renewed(Protocol):
    def after_fork(self) -> None: ...


# What holds a lock that another thread may have held when a child was forked.
renewed_in_children: weakref.WeakSet[_Renewed] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(renewed_in_children):
        each.after_fork()


renew_in_children(_after_fork)
