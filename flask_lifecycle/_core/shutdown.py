"""One shutdown: its deadline, its phases, its hooks and its report.

Theory of operation
-------------------

A process stops once. :class:`Shutdown` stops it, for all applications of the process (:class:`.server.Application`) and
for the server they run in (:class:`.server.Server`), which does not know the phases.

``begin`` takes a :class:`StopRequest` and starts one thread, which runs ``PHASES`` one after the other. One
:class:`Deadline`, made at the moment of the request, bounds all phases; there is no other timeout below it. The main
thread stays in its server's loop until the end: once it has returned, executors refuse new work ("cannot schedule new
futures after interpreter shutdown"), and requests in flight would fail.

==============  ==================================================================================================
announce        readiness fails, ``draining`` is set, answers close their connections, ``on_drain`` begins
delay           everything is still accepted and served while balancers notice (``delay.py``)
stop accepting  the listener is closed without losing a connection that the kernel has accepted (ours), or the
                guard refuses new work (not ours)
drain           until nothing is in flight, or the deadline less the hook reserve
hooks           ``on_shutdown`` functions, last registered first
==============  ==================================================================================================

``on_drain`` functions run one after the other in parallel to the phases: a slow one must not keep the listener open,
unless it was registered with ``hold``, which extends the delay until it has returned. The drain waits for all of them
as it waits for requests.

On Python 3.12 and later, ``atexit`` functions cannot start threads. There the shutdown and its hooks run in the calling
thread.

Races
-----

Two signals, or a signal and ``shutdown()``: ``begin`` tests and sets under a lock, so one of them starts the thread and
both wait for the same report.

A shutdown may begin while ``run`` makes its server, which listens before it is attached: the thread waits for a moment,
so that connected clients are answered (``expect_server``). Or it may begin before ``run`` makes the server: ``attach``
and ``begin`` take the same lock, so either the thread finds the server, or ``attach`` returns ``False`` and ``run``
does not serve.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .deadline import Clock, Deadline
from .delay import Delay, Plan
from .hooks import HookRecord, HookRunner, inside_a_hook
from .log import logger
from .report import PhaseRecord, ShutdownReport, Unfinished, each_once, requests_now, work_ledgers, work_now
from .server import Application, Peers, Server
from .state import Event

if TYPE_CHECKING:
    from .exit import Exit

# Seconds before the drain waits once more, if new work has begun meanwhile.
_PAUSE = 0.01

# Seconds that a shutdown waits for a server that is being made.
MAKING = 1.0

# Seconds at the end of the grace period for the report, the threads and the interpreter's end.
WAY_OUT = 0.25


class StopRequest(NamedTuple):
    """Why and how the process stops.

    :param delay: whether load balancers have to notice; ``False`` if other processes keep serving the listener.
    :param late: the number of seconds since the other processes at this address began to stop.
    :param successor: another process serves at this address now, so the service stays ready.
    :param crash: the thread whose crash began the shutdown, which is then not clean.
    :param alone: no other thread is left that could end a request or a work item, so the drain does not wait.
    """

    reason: str
    signal: int | None = None
    delay: bool = True
    late: float = 0.0
    successor: bool = False
    crash: HookRecord | None = None
    alone: bool = False


class _Start:
    """What orders the beginning of a shutdown and the attaching of its server."""

    def __init__(self) -> None:
        # Guards begun/attach; held for a few assignments. A signal handler or a finalizer may begin a shutdown in a
        # thread that holds it: the lock is reentrant, and ``first`` is taken then.
        self.lock = threading.RLock()
        self.first = threading.Lock()  # taken once, by the thread that begins
        self.settled = threading.Event()  # cleared while a server is being made
        self.settled.set()


class Progress:
    """The phases of one shutdown, and what they have abandoned."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.phase = ""  # the current one
        self.records: list[PhaseRecord] = []  # of the phases that are over
        self.abandoned = Unfinished()
        self._began = 0.0

    def enter(self, phase: str) -> None:
        self.phase, self._began = phase, self.clock.monotonic()

    @property
    def current(self) -> PhaseRecord:
        return PhaseRecord(self.phase, self.clock.monotonic() - self._began)


class Shutdown:
    """Stops a process, once. Any thread may use it.

    :param applications: returns the applications that stop together; called when the shutdown begins.
    :param end: keeps the report, and then makes the process exit.
    :param find_server: finds a server that this package has not started, or ``None``.
    """

    def __init__(
        self,
        applications: Callable[[], Sequence[Application]],
        end: Exit,
        find_server: Callable[[], Server | None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or Clock()
        self.applications = applications
        self.server: Server | None = None
        self.peers = Peers()
        self.request = StopRequest("")  # until it begins
        self.deadline: Deadline | None = None
        self.report: ShutdownReport | None = None
        self.progress = Progress(clock)
        self.delay = Delay(clock)
        self.hooks = HookRunner(self)
        self.thread: threading.Thread | None = None
        self.done = threading.Event()
        self._find_server = find_server
        self._end = end
        self._start = _Start()

    # -- for all threads ------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether a shutdown is under way or over."""
        return self.deadline is not None

    @property
    def clock(self) -> Clock:
        return self.progress.clock

    @property
    def signal(self) -> int | None:
        return self.request.signal

    @property
    def phase(self) -> str:
        """The current phase; empty before the first."""
        return self.progress.phase

    @property
    def last_moment(self) -> Deadline:
        """When the process exits even if something still runs; a little before the deadline, to end in time."""
        return Deadline(self.clock, 0.0) if self.deadline is None else self.deadline.earlier(self._way_out / 2)

    @property
    def _way_out(self) -> float:
        grace = 0.0 if self.deadline is None else self.deadline.seconds
        return min(WAY_OUT, grace / 20)

    def remaining(self) -> float | None:
        """Seconds left of the grace period, ``None`` when no shutdown has begun."""
        return None if self.deadline is None else self.deadline.remaining()

    @property
    def in_flight(self) -> int:
        """The number of requests that the applications have not finished."""
        return sum(len(application.ledger) for application in self.applications())

    @property
    def abandoned(self) -> Unfinished:
        """The abandoned requests and work items so far; at the end, those of the report."""
        report = self.report
        return self.progress.abandoned if report is None else Unfinished(report.abandoned, report.work)

    def unfinished(self, stacks: bool = False, applications: Sequence[Application] | None = None) -> Unfinished:
        """What has not ended now: requests of the applications and of the server, work items and start-up tasks.

        :param applications: by default those of now; some may have joined since the shutdown began.
        """
        applications = self.applications() if applications is None else applications
        return Unfinished(requests_now(applications, self.server, stacks), work_now(applications, stacks))

    def expect_server(self, expected: bool) -> None:
        """Set whether a server is about to be attached: a shutdown that begins meanwhile waits a moment for it."""
        if expected:
            self._start.settled.clear()
        else:
            self._start.settled.set()

    def attach(self, server: Server) -> bool:
        """Attach the server that the shutdown drains; ``False`` if a shutdown has begun and does not wait for it."""
        with self._start.lock:
            if self.begun and self._start.settled.is_set():
                return False
            self.server = server
            self._start.settled.set()
            return True

    def begin(self, request: StopRequest) -> bool:
        """Begin the shutdown in its own thread; ``False`` if it has begun already."""
        with self._start.lock:
            if not self._start.first.acquire(blocking=False):
                return False
            grace = min((application.settings.grace_period for application in self.applications()), default=0.0)
            self.request = request
            self.deadline = Deadline.after(self.clock, max(0.0, grace - request.late))  # from here on it has begun
        phases = self.deadline.earlier(self._way_out)
        self.thread = threading.Thread(target=self._run, args=(phases,), name="lifecycle-shutdown", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # the interpreter is finalizing: see the head of this module
            self._run(phases)
        return True

    def join_by_signal(self, signum: int) -> None:
        """Add a signal to a shutdown that ``shutdown()`` has begun, for its report."""
        if self.request.signal is None:
            self.request = self.request._replace(signal=signum)

    def wait(self) -> ShutdownReport:
        """Block until the shutdown is over and return its report."""
        while self.report is None:
            # With a timeout, because without one the main thread may never run the handler of a second signal.
            self.done.wait(1.0)
        return self.report

    def would_wait_for_itself(self) -> bool:
        """Whether the shutdown waits for the calling thread."""
        this = threading.current_thread()
        applications = self.applications()
        serving = any(body.thread == this.ident for each in applications for body in each.ledger.entries())
        working = any(ledger.done_by(this) for ledger in work_ledgers(applications))
        return serving or working or this is self.thread or inside_a_hook()

    def report_so_far(self, forced: int) -> ShutdownReport:
        """The report of a shutdown that is forced to end now, with this exit code."""
        return self._make_report([*self.progress.records, self.progress.current], self.unfinished(stacks=True), forced)

    def run_group_hooks(self, seconds: float) -> bool:
        """Run the hooks of the process group; return whether all succeeded.

        Also returns ``False`` if there are none.
        """
        applications = self.applications()
        self.hooks.run(applications, "shutdown", Deadline.after(self.clock, seconds), group=True)
        records = [record for each in applications for record in each.hooks.records if record.kind == "shutdown"]
        return bool(records) and all(record.outcome == "ok" for record in records)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self, deadline: Deadline) -> None:
        self._start.settled.wait(min(MAKING, deadline.remaining()))
        with self._start.lock:  # attach() comes before, and we see the server, or after, and returns False
            self._start.settled.set()
        applications = self.applications()
        if self.server is None:
            self.server = self._find_server()
        reserve = max((each.settings.hook_reserve for each in applications), default=0.0)
        for name, phase in PHASES:
            self.progress.enter(name)
            failed: Exception | None = None
            try:
                phase(self, applications, deadline if name == "hooks" else deadline.earlier(reserve))
            except Exception as error:
                failed = error
            self.progress.records.append(self.progress.current)
            _log_phase(self.progress.records[-1], failed)
        self._finish(applications)

    def _finish(self, applications: Sequence[Application]) -> None:
        progress = self.progress
        progress.enter("exit")
        _each(applications, "marked as stopped", lambda each: each.machine.apply(Event.STOPPED, self.request.reason))
        # Work items that began after the drain, in code that does not check for it, are abandoned too.
        report = self._make_report(progress.records, progress.abandoned.with_late_work(applications))
        logger.info(
            "shutdown complete in %.1f s: %s (%s; %s)", report.duration, report, self.request.reason, report.course,
            extra={"lifecycle_exit_code": report.exit_code, "lifecycle_report": report.as_dict()},
        )  # fmt: skip
        try:
            self._end.keep(report)
        except Exception:
            logger.exception("the report could not be written", extra={"lifecycle_exit_code": report.exit_code})
        _each(applications, "sent the report", lambda each: each.stopped(report))
        self.report = report
        self.done.set()
        self._end.leave(report)

    def _make_report(
        self, phases: Sequence[PhaseRecord], abandoned: Unfinished, forced: int | None = None
    ) -> ShutdownReport:
        applications, request = self.applications(), self.request
        crash = () if request.crash is None else (request.crash,)
        kept = each_once(records for each in applications for records in (each.tasks.records, each.hooks.records))
        hooks = (*crash, *(record for records in kept for record in records))
        served, refused = (sum(getattr(each, name) for each in applications) for name in ("served", "refused"))
        duration = sum(phase.duration for phase in phases)
        return ShutdownReport(
            request.reason, request.signal, tuple(phases), abandoned.requests, hooks, duration,
            abandoned.work, served, refused, time.time() - duration, forced,
        )  # fmt: skip

    def _plan(self, applications: Sequence[Application], until: Deadline) -> Plan:
        # A process without a server has no balancer in front of it.
        served = self.server is not None or any(len(each.ledger) for each in applications)
        missed = applications if served and self.request.delay else ()
        return Plan.of(missed, self.request.late, until)

    def _announce(self, applications: Sequence[Application], until: Deadline) -> None:
        request, plan = self.request, self._plan(applications, until)
        # All fail readiness before the first log line: where the log blocks, no balancer should wait for it.
        announcements: list[Callable[[], object]] = []
        _each(applications, "made to drain", lambda each: announcements.append(each.begin_drain(request)))
        logger.info(
            "shutdown begins: %s (grace period %.1f s, delay %s)",
            request.reason, self.remaining(), plan,
            extra={"lifecycle_reason": request.reason},
        )  # fmt: skip
        _each(announcements, "made to announce its drain", lambda announce: announce())
        if self.server is not None:
            self.server.announce()
        self.hooks.begin_drain(applications, until)

    def _delay(self, applications: Sequence[Application], until: Deadline) -> None:
        self.delay.wait(self._plan(applications, until), until, self._queued)

    def _queued(self) -> int:
        return 0 if self.server is None else sum(info.stage == "queued" for info in self.server.unfinished())

    def _stop_accepting(self, applications: Sequence[Application], until: Deadline) -> None:
        ours = self.server is not None and self.server.ours
        for application in applications:
            policy = application.settings.drain_policy
            if policy == "reject" or (policy == "auto" and not ours):
                application.refuse()
        if self.server is not None:
            self.peers.await_sole_owner(until.remaining())
            self.server.stop_accepting(until.remaining())
        _each(applications, "made unready", lambda each: each.listener_closed())

    def _drain(self, applications: Sequence[Application], until: Deadline) -> None:
        if not self.request.alone and not self._wait_idle(applications, until.earlier(until.remaining() / 2)):
            self.unfinished(True, applications).log(logging.WARNING, "halfway through the drain, waiting for")
            self._wait_idle(applications, until)
        self.hooks.wait(applications, until)
        self.progress.abandoned = self.unfinished(True, applications)
        self.progress.abandoned.log(logging.ERROR, "abandoned")

    def _wait_idle(self, applications: Sequence[Application], until: Deadline) -> bool:
        """Block until nothing is under way; ``False`` if that is not so at the deadline."""
        linger = max((each.settings.keepalive_linger for each in applications), default=0.0)
        waited_for = [*(each.ledger for each in applications), *work_ledgers(applications)]
        # Repeatedly, because we wait for one ledger after the other, and the end of an entry may begin another one:
        # work that begins other work, or a response that a server, which is not ours, has yet to send.
        while True:
            in_time = self.server is None or self.server.wait_idle(until.remaining(), linger)
            for ledger in waited_for:
                in_time = ledger.wait_idle(until.remaining()) and in_time
            if in_time and not requests_now(self.applications(), self.server) and not any(waited_for):
                return True
            if not in_time or not until.remaining():
                return False
            threading.Event().wait(_PAUSE)

    def _hooks(self, applications: Sequence[Application], deadline: Deadline) -> None:
        _each(applications, "made to refuse work", lambda each: each.refuse())
        _each(applications, "marked as stopping", lambda each: each.machine.apply(Event.STOP, self.request.reason))
        self.hooks.run(applications, "shutdown", deadline)
        if any(each.hooks.for_group for each in applications) and self.peers.is_last(deadline):
            self.hooks.run(applications, "shutdown", deadline, group=True)


T = TypeVar("T")
# A phase gets the moment at which it has to be over: the drain ends before the reserve of the hooks.
Phase = Callable[[Shutdown, Sequence[Application], Deadline], Any]

PHASES: tuple[tuple[str, Phase], ...] = (
    ("announce", Shutdown._announce),
    ("delay", Shutdown._delay),
    ("stop accepting", Shutdown._stop_accepting),
    ("drain", Shutdown._drain),
    ("hooks", Shutdown._hooks),
)


def _log_phase(record: PhaseRecord, failed: Exception | None) -> None:
    """Log the end of a phase; at DEBUG without an error, because the report's line has all phases."""
    extra = {"lifecycle_phase": record.name, "lifecycle_seconds": record.duration}
    if failed is None:
        logger.debug("phase '%s' ended after %.1f s", record.name, record.duration, extra=extra)
    else:
        logger.error("phase '%s' failed; the shutdown continues", record.name, exc_info=failed, extra=extra)


def _each(things: Iterable[T], what: str, step: Callable[[T], object]) -> None:
    """Do a step for every application, or what it has returned, even if it fails for another."""
    for thing in things:
        try:
            step(thing)
        except Exception:
            logger.exception("an application could not be %s", what, extra={"lifecycle_step": what})
