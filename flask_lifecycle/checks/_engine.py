"""The engine that runs checks, and that no check can block.

Theory of operation
-------------------

A probe runs all its checks side by side, each in its own thread. It waits for each check no longer than that check's
timeout, and for all of them no longer than its own.

A thread cannot be stopped from outside, so the engine bounds how many there are: a check has at most one *run* at a
time. A probe that finds a run under way joins it (single flight). If that run is past its timeout, the check is
reported as "hanging since" without waiting, and no second run starts until the first returns. When a run ends, its
result is cached for ``ttl`` seconds, a failure for ``fail_ttl``, so frequent probes do not load what is checked.

A run that returns after its timeout has failed, whatever it returns. A run that keeps hanging counts as one more
failure for each timeout that passes; otherwise a hang would never reach ``fail_after``.

A check with an ``interval`` is run by the :class:`Scheduler`, and its result is good until the next run is overdue. So
probes only read it, and wait for no run but the first. Where no scheduler runs (before the start-up, in tests) probes
run it themselves.

A change is recorded under the lock that guards the status, so a caller who sees a new status also finds the change
listed. It is published later (log, signals), in order, by one thread at a time for each check (:class:`Outbox`). No
lock is held while any code of the application runs.

Interleaving: two probes find a run past its timeout at once, or it returns meanwhile. All take the lock, and a timeout
that was counted is not counted again: either the hang came first and the late return adds nothing, or there is none.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .._core.fork import renew_in_children
from .._core.log import logger
from .._core.scheduler import Scheduler
from ._check import Check, CheckHistory, CheckReport, CheckResult
from ._outbox import Outbox
from ._returned import CheckMistakeError, as_result

# A tenth of an interval up or down: a hundred workers that started together drift apart within a few runs.
JITTER = 0.1
# Durations kept of each check: as many as a line of the status page has room for.
KEPT_DURATIONS = 30
# Probes that wait for one check at once. In a flood while it hangs, further ones get the last known status at once.
MOST_WAITING = 128


class Debounce:
    """Decides when a result counts. The caller holds a lock.

    The very first result counts at once: before it there is no good state to protect.

    :param fail_after: this many failures in a row ...
    :param fail_for: ... and this many seconds since the first of them, before the status becomes ``fail``.
    :param recover_after: this many good results in a row before it recovers.
    """

    def __init__(self, fail_after: int = 1, recover_after: int = 1, fail_for: float = 0.0) -> None:
        self.status = ""  # empty before the first result
        self.streak = 0  # how many results in a row have contradicted it
        self._fail_after = fail_after
        self._recover_after = recover_after
        self._fail_for = fail_for
        self._since = 0.0

    def add(self, status: str, now: float, times: int = 1) -> str:
        """Add a result (a hang may count several times) and return the status from now on."""
        failed, failing = status == "fail", self.status == "fail"
        if not self.status or failed == failing:
            self.status, self.streak = status, 0
            return self.status
        if not self.streak:
            self._since = now
        self.streak += times
        enough = self._fail_after if failed else self._recover_after
        if self.streak >= enough and (not failed or now - self._since >= self._fail_for):
            self.status, self.streak = status, 0
        return self.status


class _Run:
    """One execution of a check. It may take longer than the probe that started it waits."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.done = threading.Event()
        self.released = threading.Event()  # done, or readiness no longer waits for it
        self.hangs = 0  # how many timeouts were counted as failures
        self.result = CheckResult()
        self.error: BaseException | None = None


class _Runner:
    """Runs one check of one application and keeps its last result."""

    def __init__(self, check: Check, engine: Engine) -> None:
        self.check = check
        self._engine = engine
        self._lock = threading.Lock()  # guards what follows but the outbox and the semaphore
        self._run: _Run | None = None
        self._last: CheckReport | None = None
        self._last_ended = 0.0
        self._debounce = Debounce(check.fail_after, check.recover_after, check.fail_for)
        self._durations: deque[float] = deque(maxlen=KEPT_DURATIONS)
        self._changed = 0.0
        self._logged: set[str] = set()  # the texts of what is logged once
        self.due = 0.0  # when a background check runs next
        self._outbox = Outbox()
        self._waiters = threading.Semaphore(MOST_WAITING)

    # -- running --------------------------------------------------------------------------------------------------

    def begin(self, now: float, *, anew: bool = False) -> _Run | None:
        """The run to wait for: the one under way or a new one; ``None`` if the last result is still good."""
        with self._lock:
            good = not anew and self._last is not None and now - self._last_ended < self._good_for(self._last)
            if self._run is not None:
                # Probes only read a background check, also while it runs, unless it hangs.
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
        except RuntimeError as error:  # the system has no more threads: fail the check, do not answer the probe 500
            run.error = error
            self._settle(run)
        return run

    def _good_for(self, last: CheckReport) -> float:
        check = self.check
        if check.interval is not None:
            # Until the scheduler's next run is overdue.
            return max(check.interval, check.fail_interval or 0.0) * (1 + JITTER) + check.timeout
        failed = last.error is not None or last.result.status == "fail"
        return check.ttl if check.fail_ttl is None or not failed else check.fail_ttl

    def _execute(self, run: _Run) -> None:
        check, app = self.check, self._engine.app
        try:
            with app.context():
                function = check.function if check.coroutine is None else app.ensure_sync(check.coroutine)
                run.result = as_result(function(app.check_context()) if check.wants_context else function())
        except BaseException as error:  # SystemExit too: it fails the check and must not end the thread silently
            run.error = error
        self._settle(run)

    def _settle(self, run: _Run) -> None:
        """Take a run's result. In the run's thread."""
        now, timeout = self._engine.now(), self.check.timeout
        duration = now - run.started
        if duration >= timeout and run.error is None:
            run.error = TimeoutError(f"answered after {duration:.1f} s, {timeout:g} s were allowed")
        raw = "fail" if run.error is not None else run.result.status
        report = CheckReport(self.check, raw, duration, time.time(), run.result, run.error)
        output = report.output  # outside the lock: the exception's class may be the application's
        with self._lock:
            old, new = self._debounce.status, self._debounce.add(raw, now, 0 if run.hangs else 1)
            self._run, self._last_ended = None, now
            self._last = report._replace(status=new)
            self._durations.append(duration)
            self.due = run.started + self._engine.pause(self.check, new)
            if raw != "fail" and duration > timeout / 2:
                text = "check '%s' took %.2f s, more than half of its timeout of %g s"
                self._log_once(logging.WARNING, text, duration, timeout)
            if isinstance(run.error, CheckMistakeError):
                self._log_once(logging.ERROR, "check '%s': %s", run.error)
            if old != new:
                self._record_change(old, new, self._last, output)
        run.done.set()
        run.released.set()
        if self.check.interval is not None:
            self._engine.wake()
        self._outbox.flush()

    def _count_hang(self, run: _Run, now: float) -> None:
        """Count a run that is past its timeout, once for each timeout that has passed."""
        times = int((now - run.started) / self.check.timeout)
        with self._lock:
            if run is not self._run or times <= run.hangs:
                return
            old, new = self._debounce.status, self._debounce.add("fail", now, times - run.hangs)
            run.hangs = times
            if old == new:
                return
            error = TimeoutError(f"no answer within {self.check.timeout:g} s, hanging since {now - run.started:.1f} s")
            report = CheckReport(self.check, new, now - run.started, time.time(), error=error)
            self._record_change(old, new, report, report.output)
        # A probe has found the hang, and a receiver or a log handler must not block that probe.
        if not self._outbox.flush_in_thread(f"lifecycle-check-{self.check.name}-hangs"):
            self._outbox.flush()

    def look(self, now: float) -> float | None:
        """Count the current run if it hangs; return when to look again, ``None`` if nothing runs."""
        with self._lock:
            run = self._run
        if run is None:
            return None
        self._count_hang(run, now)
        return run.started + self.check.timeout * (run.hangs + 1)

    def release(self) -> None:
        """Let probes stop waiting for the current run."""
        with self._lock:
            run = self._run
        if run is not None:
            run.released.set()

    # -- reporting ------------------------------------------------------------------------------------------------

    def report(self, run: _Run | None, until: float, *, releasable: bool) -> CheckReport:
        """Wait for a run, no longer than its timeout and ``until``, and report the check."""
        if run is not None:
            waits = not (releasable and self._engine.released)
            if waits and self._waiters.acquire(blocking=False):
                try:
                    seconds = min(run.started + self.check.timeout, until) - self._engine.now()
                    (run.released if releasable else run.done).wait(max(0.0, seconds))
                finally:
                    self._waiters.release()
            if not run.done.is_set():
                now = self._engine.now()
                self._count_hang(run, now)
                if not run.hangs:
                    return self._report_unfinished(now - run.started)
        known = self.known()
        assert known is not None  # a run leaves one before it is done, and if it hangs
        return known

    def _report_unfinished(self, waited: float) -> CheckReport:
        """The probe's own time is over, or a drain has begun; the check may still answer within its timeout."""
        with self._lock:
            status = self._debounce.status or "fail"
        result = CheckResult("fail", f"no answer yet after {waited:.1f} s")
        return CheckReport(self.check, self._weigh(status), waited, time.time(), result)

    def known(self) -> CheckReport | None:
        """The current run if it hangs, or else the last result; ``None`` before the first.

        It runs nothing and waits for nothing.
        """
        with self._lock:
            run, known, status, streak = self._run, self._last, self._debounce.status, self._debounce.streak
            if run is not None and run.hangs:
                waited = self._engine.now() - run.started
                known = CheckReport(self.check, status, waited, time.time(), hanging=True)
        return known and known._replace(status=self._weigh(status), damped=streak)

    def history(self) -> CheckHistory:
        with self._lock:
            return CheckHistory(tuple(self._durations), self._changed)

    def _weigh(self, status: str) -> str:
        return "warn" if status == "fail" and not self.check.critical else status

    # -- publishing -----------------------------------------------------------------------------------------------

    def _record_change(self, old: str, new: str, report: CheckReport, output: str) -> None:
        """Record a change and queue what is to be published. The caller holds the lock."""
        self._changed = report.time
        self._outbox.put(functools.partial(self._publish, old, new, report, output))
        old, new = self._weigh(old), self._weigh(new)
        if old != new:  # where the check is not critical, a warning that becomes a failure stays a warning
            self._engine.record(self.check, old, new, output)

    def _log_once(self, level: int, text: str, *arguments: object) -> None:
        """Queue a log record unless it was logged before. The caller holds the lock."""
        if text not in self._logged:
            self._logged.add(text)
            name, extra = self.check.name, {"lifecycle_check": self.check.name}
            self._outbox.put(functools.partial(logger.log, level, text, name, *arguments, extra=extra))

    def _publish(self, old: str, new: str, report: CheckReport, output: str) -> None:
        """Log a change and pass it to the engine. Only here the exception is logged."""
        name, extra = self.check.name, {"lifecycle_check": self.check.name}
        if new == "fail":
            text = f": {' '.join(output.split())}" if report.error is None and output else ""
            # The traceback of a mistake shows only this package.
            error = None if isinstance(report.error, CheckMistakeError) else report.error
            logger.warning("check '%s' fails after %.2f s%s", name, report.duration, text, exc_info=error, extra=extra)
        elif old == "fail":
            logger.info("check '%s' passes again", name, extra=extra)
        old, new = self._weigh(old), self._weigh(new)
        if old != new:
            self._engine.changed(self.check, old, new, output)


class Engine:
    """The checks of one application. Any thread may use it.

    :param app: has ``context()``, an application context; ``ensure_sync()`` for coroutine functions, as of an async
        view; and ``check_context()``, the argument of a check that takes one.
    :param checks: gives the registered checks, in order; called each time, so one added later is seen at once.
    :param changed: called as ``changed(check, old, new, reason)`` after each change of a status; ``old`` is empty
        after the first result.
    :param record: called with the same arguments at the moment of the change, under a lock: it must not block.
    """

    def __init__(
        self,
        app: Any,
        checks: Callable[[], Iterable[Check]],
        changed: Callable[[Check, str, str, str], None],
        record: Callable[[Check, str, str, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.changed = changed
        self.record = record
        self.now = now
        self.checks = checks
        self._random = random.SystemRandom()  # forked processes must not draw the same numbers
        self._resume = False  # whether a forked child has to start the background checks at its first probe
        self._reset()
        renew_in_children(self.after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()  # guards _runners
        self._runners: dict[str, _Runner] = {}
        self._scheduler = Scheduler(self.tick, "lifecycle-checks", "background checks")
        self._started = False  # whether background checks run
        self.released = False

    def after_fork(self) -> None:
        """Start anew in a child: no check runs there, and the parent's results are not its own.

        Where the parent ran background checks, the child does so from its first probe on and not before: most children
        of a process are not servers.
        """
        self._resume = self._started and not self._scheduler.ended
        self._reset()

    def _runners_of(self, wanted: Callable[[Check], bool] = lambda check: True) -> list[_Runner]:
        with self._lock:
            for check in self.checks():
                if check.name not in self._runners:
                    self._runners[check.name] = _Runner(check, self)
            return [runner for runner in self._runners.values() if wanted(runner.check)]

    def run(
        self, wanted: Callable[[Check], bool], timeout: float, *, releasable: bool = True
    ) -> tuple[CheckReport, ...]:
        """Run the wanted checks side by side, unless their cached results are still good, and report them.

        Blocks for the longest of their timeouts at most, and for ``timeout``.

        :param releasable: whether :meth:`release` ends the waiting.
        """
        if self._resume:
            self._resume = False
            self.start()
        now = self.now()
        runs = [(runner, runner.begin(now)) for runner in self._runners_of(wanted)]
        return tuple(runner.report(run, now + timeout, releasable=releasable) for runner, run in runs)

    def release(self) -> None:
        """Answer each probe that waits for a check now, but for liveness; the checks themselves go on.

        Called when a drain begins: readiness then no longer depends on checks, and a hung one must not delay it.
        """
        self.released = True  # for runs that begin from now on
        for runner in self._runners_of():
            runner.release()

    def known(self) -> tuple[CheckReport, ...]:
        """The last reports of the checks that have run, without running any."""
        reports = (runner.known() for runner in self._runners_of())
        return tuple(report for report in reports if report is not None)

    def histories(self) -> dict[str, CheckHistory]:
        return {runner.check.name: runner.history() for runner in self._runners_of()}

    # -- background checks ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run background checks from now on. Idempotent. Call it in the process that serves."""
        self._started = True
        self.wake()

    def wake(self) -> None:
        """Look for background checks that are due, and start the thread if there is a first one."""
        if self._started and any(check.interval is not None for check in self.checks()):
            self._scheduler.wake()

    def stop(self) -> None:
        """Start no more background checks, not even if :meth:`start` is called later, and end the thread."""
        self._scheduler.stop()

    def tick(self) -> float | None:
        """Start the background checks that are due; return in how many seconds to call this again."""
        now = self.now()
        moments: list[float] = []
        for runner in self._runners_of(lambda check: check.interval is not None):
            overdue = runner.look(now)
            if overdue is not None:
                moments.append(overdue)
            elif runner.due <= now:
                runner.begin(now, anew=True)  # its end sets when it is due again, and wakes the scheduler
                moments.append(now + runner.check.timeout)
            else:
                moments.append(runner.due)
        return max(0.0, min(moments) - now) if moments else None

    def pause(self, check: Check, status: str) -> float:
        """Seconds from one background run of a check to the next."""
        seconds = check.fail_interval if status == "fail" and check.fail_interval is not None else check.interval
        return (seconds or 0.0) * (1 + JITTER * self._random.uniform(-1, 1))
