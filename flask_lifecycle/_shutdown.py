"""One shutdown: its deadline, its phases, its hooks and its report.

Theory of operation
-------------------

A process stops once. The :class:`Coordinator` is the one place that does it, for all the applications in it
(:class:`Member`) and for the server that carries them, if that server is ours (:class:`Server`). It knows no server
and no Flask; a server knows no phase.

``begin`` starts one thread. The thread walks down ``PHASES`` and every phase is bounded by the same
:class:`Deadline`, made once, at the moment of the signal; there is no other timeout below it. The main thread
stays in its server's loop all the while: once the main thread has returned, executors refuse new work ("cannot
schedule new futures after interpreter shutdown") and requests in flight fail that would have been answered.

==============  ==================================================================================================
announce        readiness fails, ``draining`` is set, answers tell their connections to close, ``on_drain`` begins
delay           everything is still accepted and served while balancers notice; see ``_notice.py`` for one that ends
                when it may
stop accepting  the listener is closed without losing a connection that the kernel has accepted (ours), or the
                guard refuses new work (not ours)
drain           until nothing is in flight, or the deadline less the hook reserve
hooks           ``on_shutdown`` functions, last registered first
==============  ==================================================================================================

A hook without a timeout of its own gets half of what is left, or all of it if it is the last. ``on_drain`` functions
run one after the other beside the phases, not before them: a slow one must not keep the listener open, unless it was
registered to do so (``hold``: the delay lasts until those have returned), and the drain waits for them as it waits for
requests.

Late in an interpreter's life (``atexit``) no thread can be started on Python 3.12 and later. There the coordinator runs
in the calling thread, as the hooks do.

Races
-----

Two signals, or a signal and ``shutdown()``: ``begin`` tests and sets under a lock, so one of them starts the
thread and both wait for the same report. A shutdown that begins before ``run`` has a server: ``attach`` and
``begin`` take the same lock, so either the thread finds the server, or ``attach`` says that it is too late and
``run`` does not serve.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ._deadline import Clock, Deadline
from ._hooks import HookRecord, Hooks, ShutdownContext, inside_a_hook, run_hook
from ._inflight import RequestInfo
from ._parties import Member, Notice, Server
from ._report import PhaseRecord, ShutdownReport
from ._state import Event, logger
from ._tally import Tally
from ._work import WorkInfo

T = TypeVar("T")

# So many requests and tokens that hold up a stop are logged one by one, with their stacks.
_MOST_STRAGGLERS = 50

# Seconds before all is looked at once more, when something new has begun meanwhile.
_PAUSE = 0.01

# The report, the threads and the interpreter's own end.
_WAY_OUT = 0.25


class Coordinator:
    """Stops a process, once.

    :param members: the applications that stop together, asked for when the shutdown begins.
    :param find_server: finds a server that somebody else started, or ``None``.
    :param keep: called with the report before anybody else has it, to put it where it outlives the process.
    :param leave: called with the report at the very end, in the coordinator's thread; it makes the process leave.
    """

    def __init__(
        self,
        members: Callable[[], Sequence[Member]],
        find_server: Callable[[], Server | None] = lambda: None,
        keep: Callable[[ShutdownReport], None] = lambda report: None,
        leave: Callable[[ShutdownReport, bool], None] = lambda report, served: None,
        clock: Clock | None = None,
    ) -> None:
        self.members = members
        self.clock = clock or Clock()
        self.server: Server | None = None
        self.owned = False  # whether run() is in charge of the process
        self.carried = False  # owned, but as one worker of a master, who speaks for all of them
        self.reason = ""
        self.signal: int | None = None
        self.crash: HookRecord | None = None  # the thread whose end began it
        # Waits until the others of its group have gone, and says whether this process is the one that acts for all.
        self.last_of_group: Callable[[Deadline], bool] = lambda deadline: True
        self.late = 0.0  # for how many seconds others, of whom this process is one, have been stopping
        self.delayed = True  # whether anybody has to notice: not where others go on with the listener
        self.succeeded = False  # another process serves at the same address, so that it is as ready as ever
        # Called before the listener is closed, with the seconds that it may block: others may have it as well.
        self.await_sole_owner: Callable[[float], object] = lambda timeout: None
        self.deadline: Deadline | None = None
        self.last_moment = Deadline(self.clock, 0.0)  # when whatever has not ended is left behind
        self.report: ShutdownReport | None = None
        self.phase = ""  # the one that is on, since ``phase_began``
        self.phase_began = 0.0
        self.phases: list[PhaseRecord] = []  # those that are over
        self.thread: threading.Thread | None = None
        self.done = threading.Event()
        self._find_server = find_server
        self._keep = keep
        self._leave = leave
        self._abandoned: tuple[RequestInfo, ...] = ()
        self._abandoned_work: tuple[WorkInfo, ...] = ()
        self._began_at = 0.0  # seconds since the epoch
        # Guards begun/attach; held for a few assignments. A signal handler or a finalizer may shut down in a thread
        # that is in the middle of them: it finds the lock its own, and that somebody is the first already.
        self._lock = threading.RLock()
        self._first = threading.Lock()  # taken once, by who begins
        self._drain_hooks_ended = threading.Event()
        self._let_go = threading.Event()  # no on_drain function holds the listener open any more
        self._cut = threading.Event()  # nobody is let in any more, so there is nothing to delay
        self._told = threading.Event()  # whoever finds out when the delay may end is to be asked again

    # -- asked by everybody ---------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether a shutdown is under way or over."""
        return self.deadline is not None

    def remaining(self) -> float | None:
        """Seconds left of the grace period, ``None`` when no shutdown has begun."""
        return None if self.deadline is None else self.deadline.remaining()

    @property
    def in_flight(self) -> int:
        """How many requests the applications have not finished."""
        return sum(len(member.ledger) for member in self.members())

    @property
    def abandoned(self) -> tuple[tuple[RequestInfo, ...], tuple[WorkInfo, ...]]:
        """The requests and the work that were left behind, as far as that is known; at last what the report says."""
        report = self.report
        return (self._abandoned, self._abandoned_work) if report is None else (report.abandoned, report.work)

    def attach(self, server: Server) -> bool:
        """Give the server to the coordinator; ``False`` if a shutdown has begun already."""
        with self._lock:
            if self.begun:
                return False
            self.server = server
            return True

    def begin(self, reason: str, signum: int | None = None, crash: HookRecord | None = None) -> bool:
        """Begin the shutdown in a thread of its own; ``False`` if it has begun already.

        :param crash: why it is not clean from the beginning.
        """
        with self._lock:
            if not self._first.acquire(blocking=False):
                return False
            grace = min((member.settings.grace_period for member in self.members()), default=0.0)
            grace = max(0.0, grace - self.late)
            self.reason, self.signal, self.crash = reason, signum, crash
            self._began_at = time.time()
            self.deadline = Deadline.after(self.clock, grace)
        # The phases keep a little of the grace period for the way out, and the watchdog half of that, so that the
        # process is gone within it.
        way_out = min(_WAY_OUT, grace / 20)
        phases, self.last_moment = self.deadline.earlier(way_out), self.deadline.earlier(way_out / 2)
        self.thread = threading.Thread(target=self._run, args=(phases,), name="lifecycle-shutdown", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # the interpreter is finalizing: see the head of this module
            self._run(phases)
        return True

    def end_delay(self) -> None:
        """End the delay, or leave it out: whoever has the listener has stopped to accept."""
        self._cut.set()
        self._let_go.set()
        self._told.set()

    def wait(self) -> ShutdownReport:
        """Block until the shutdown is over and return its report."""
        while self.report is None:
            # Timed, because a main thread that waits without a timeout may never run the handler of a second signal.
            self.done.wait(1.0)
        return self.report

    def would_wait_for_itself(self) -> bool:
        """Whether the calling thread is one that the shutdown waits for."""
        this = threading.current_thread()
        for member in self.members():
            member.ledger.forget_dropped()
        serving = any(body.thread == this.ident for member in self.members() for body in member.ledger.active.copy())
        working = any(ledger.done_by(this) for member in self.members() for ledger in (member.work, member.tasks))
        return serving or working or this is self.thread or inside_a_hook()

    def unfinished(self, stacks: bool = False) -> tuple[RequestInfo, ...]:
        """Everything in flight, of the applications and of the server."""
        running = [info for member in self.members() for info in member.ledger.requests(stacks)]
        return (*running, *(self.server.unfinished() if self.server is not None else ()))

    def live_work(self, stacks: bool = False) -> tuple[WorkInfo, ...]:
        """Every token that is live, of work and of startup tasks."""
        ledgers = _each_once(ledger for member in self.members() for ledger in (member.work, member.tasks))
        return tuple(info for ledger in ledgers for info in ledger.tokens(stacks))

    def report_so_far(self, forced: int) -> ShutdownReport:
        """The report of a shutdown that is cut short now, with this exit code."""
        phases = [*self.phases, PhaseRecord(self.phase, self.clock.monotonic() - self.phase_began)]
        return self._make_report(phases, self.unfinished(stacks=True), self.live_work(stacks=True), forced)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self, deadline: Deadline) -> None:
        members = self.members()
        if self.server is None and not self.owned:
            self.server = self._find_server()
        served = self.owned or self.server is not None or any(member.started for member in members)
        served = served or self.crash is not None
        for name, phase in PHASES:
            self.phase, self.phase_began = name, self.clock.monotonic()
            failed: Exception | None = None
            try:
                phase(self, members, deadline)
            except Exception as error:
                failed = error
            record = PhaseRecord(name, self.clock.monotonic() - self.phase_began)
            self.phases.append(record)
            _tell_phase(record, failed)
        self._finish(members, served)

    def _finish(self, members: Sequence[Member], served: bool) -> None:
        self.phase, self.phase_began = "exit", self.clock.monotonic()
        _each(members, "marked as stopped", lambda member: member.machine.apply(Event.STOPPED, self.reason))
        report = self._make_report(self.phases, self._abandoned, (*self._abandoned_work, *self._late_work()))
        logger.info(
            "shutdown complete in %.1f s: %s (%s; %s)", report.duration, report, self.reason, report.course,
            extra={"lifecycle_exit_code": report.exit_code, "lifecycle_report": report.as_dict()},
        )  # fmt: skip
        try:
            self._keep(report)
        except Exception:
            logger.exception("the report could not be kept", extra={"lifecycle_exit_code": report.exit_code})
        _each(members, "told how the shutdown went", lambda member: member.told(report))
        self.report = report
        self.done.set()
        self._leave(report, served)

    def _late_work(self) -> list[WorkInfo]:
        """Work that began when the drain was over, by somebody who does not look at it: it is lost as well."""
        known = {(info.name, info.thread) for info in self._abandoned_work}
        late = [info for info in self.live_work() if (info.name, info.thread) not in known]
        for info in late:
            logger.error("abandoned %s", info, extra={"lifecycle_work": info.name, "lifecycle_age": info.age})
        return late

    def _make_report(
        self,
        phases: Sequence[PhaseRecord],
        abandoned: tuple[RequestInfo, ...],
        work: tuple[WorkInfo, ...],
        forced: int | None = None,
    ) -> ShutdownReport:
        members = self.members()
        crash = () if self.crash is None else (self.crash,)
        hooks = (*crash, *(record for group in _hook_groups(members) for record in group.records))
        served, refused = (sum(getattr(member, name) for member in members) for name in ("served", "refused"))
        duration = sum(phase.duration for phase in phases)
        return ShutdownReport(
            self.reason, self.signal, tuple(phases), abandoned, hooks, duration,
            work, served, refused, self._began_at, forced,
        )  # fmt: skip

    def _announce(self, members: Sequence[Member], deadline: Deadline) -> None:
        logger.info(
            "shutdown begins: %s (grace period %.1f s, delay %s)",
            self.reason, self.remaining(), self._delay_in_words(members, deadline),
            extra={"lifecycle_reason": self.reason},
        )  # fmt: skip
        _each(members, "told of the drain", lambda member: member.begin_drain(self.reason))
        if self.server is not None:
            self.server.announce()
        hooks = [(group, hook) for group in _hook_groups(members) for hook in group.of("drain")]
        if not any(hook.hold for _group, hook in hooks):
            self._let_go.set()
        if not hooks:
            self._drain_hooks_ended.set()
            return
        runner = threading.Thread(
            target=self._run_hooks, args=(members, "drain", self._drain_deadline(members, deadline)),
            name="lifecycle-on-drain", daemon=True,
        )  # fmt: skip
        try:
            runner.start()
        except RuntimeError:  # the interpreter is finalizing
            runner.run()

    def _missed(self, members: Sequence[Member]) -> list[Member]:
        # Nobody sends work to what never was ready, or is not served at all: nobody has to notice that it leaves.
        served = self.server is not None or self.owned or any(len(member.ledger) for member in members)
        served = served and self.delayed
        return [member for member in members if member.machine.reached_ready and served]

    def _delay_seconds(self, members: Sequence[Member], deadline: Deadline) -> float:
        delays = [member.settings.longest_delay for member in self._missed(members)]
        left = max(0.0, max(delays, default=0.0) - self.late)
        return min(left, self._drain_deadline(members, deadline).remaining())

    def _delay_in_words(self, members: Sequence[Member], deadline: Deadline) -> str:
        auto = any(member.notice is not None for member in self._missed(members))
        return f"{'auto, at most ' if auto else ''}{self._delay_seconds(members, deadline):.1f} s"

    def _delay(self, members: Sequence[Member], deadline: Deadline) -> None:
        began = self.clock.monotonic()
        latest = Deadline.after(self.clock, self._delay_seconds(members, deadline))
        missed = self._missed(members)
        fixed = [member.settings.longest_delay for member in missed if member.notice is None]
        notices = [member.notice for member in missed if member.notice is not None]
        self._await_notice(notices, latest)
        self.clock.wait(self._cut, min(began + max(fixed, default=0.0), latest.at) - self.clock.monotonic())
        if notices and not self._cut.is_set():
            logger.info(
                "delay ended %s", "; ".join(map(str, notices)),
                extra={"lifecycle_delay": self.clock.monotonic() - began},
            )  # fmt: skip
        if not self._let_go.is_set():
            logger.info(
                "delay goes on while an on_drain function holds the listener open",
                extra={"lifecycle_delay": self.clock.monotonic() - began},
            )
            self.clock.wait(self._let_go, self._drain_deadline(members, deadline).remaining())

    def _await_notice(self, notices: Sequence[Notice], latest: Deadline) -> None:
        told = self._told
        for notice in notices:
            notice.begin(self.clock.monotonic(), latest.at, told)
        while True:
            told.clear()  # before they are asked: what comes meanwhile wakes the wait
            # All of them, each time: who may end now may not when new work has come.
            pauses = [notice.pause(self.clock.monotonic(), self._queued) for notice in notices]
            if not any(pauses) or self._cut.is_set():
                return
            self.clock.wait(told, min(pause for pause in pauses if pause))

    def _queued(self) -> int:
        return 0 if self.server is None else sum(info.stage == "queued" for info in self.server.unfinished())

    def _stop_accepting(self, members: Sequence[Member], deadline: Deadline) -> None:
        ours = self.server is not None and self.server.ours
        for member in members:
            policy = member.settings.drain_policy
            if policy == "reject" or (policy == "auto" and not ours):
                member.refuse()
        if self.server is not None:
            self.await_sole_owner(self._drain_deadline(members, deadline).remaining())
            self.server.stop_accepting(self._drain_deadline(members, deadline).remaining())
        _each(members, "told that nobody is let in any more", lambda member: member.withdraw())

    def _drain(self, members: Sequence[Member], deadline: Deadline) -> None:
        until = self._drain_deadline(members, deadline)
        if not self._settle(members, until.earlier(until.remaining() / 2)):
            self._tell_stragglers(logging.WARNING, "halfway through the drain, waiting for")
            self._settle(members, until)
        # Their own deadline is the same; a moment more, so that one that hangs is on record.
        self.clock.wait(self._drain_hooks_ended, until.remaining() + 0.1)
        for group in _hook_groups(members):
            if group.startup_begun.is_set():
                self.clock.wait(group.startup_over, until.remaining())
        self._abandoned, self._abandoned_work = self._tell_stragglers(logging.ERROR, "abandoned")

    def _settle(self, members: Sequence[Member], until: Deadline) -> bool:
        """Wait until nothing is under way, or until then; say whether that is so."""
        linger = max((member.settings.keepalive_linger for member in members), default=0.0)
        tallies = _each_once(t for member in members for t in _tallies(member))
        # Again and again, because they are waited for one after the other, and what ends in one may begin something in
        # another: work that begins other work, an answer that a server that is not ours will have to send afterwards.
        while True:
            in_time = self.server is None or self.server.wait_idle(until.remaining(), linger)
            for tally in tallies:
                in_time = tally.wait_idle(until.remaining()) and in_time
            if not self.unfinished() and not any(tallies):
                return True
            if not in_time or not until.remaining():
                return False
            threading.Event().wait(_PAUSE)

    def _tell_stragglers(self, level: int, words: str) -> tuple[tuple[RequestInfo, ...], tuple[WorkInfo, ...]]:
        """Log what is under way, each with the stack of its thread, and return it."""
        requests, work = self.unfinished(stacks=True), self.live_work(stacks=True)
        told: list[RequestInfo | WorkInfo] = [*requests, *work]
        for info in told[:_MOST_STRAGGLERS]:
            stack = f"; its thread '{info.thread}' is at\n{info.stack.rstrip()}" if info.stack else ""
            name = {"lifecycle_path": info.path} if isinstance(info, RequestInfo) else {"lifecycle_work": info.name}
            logger.log(level, "%s %s%s", words, info, stack, extra={**name, "lifecycle_age": info.age})
        if len(told) > _MOST_STRAGGLERS:
            more = len(told) - _MOST_STRAGGLERS
            logger.log(level, "%s %d more", words, more, extra={"lifecycle_more": more})
        return requests, work

    def _hooks(self, members: Sequence[Member], deadline: Deadline) -> None:
        _each(members, "made to refuse work", lambda member: member.refuse())
        _each(members, "told that it stops", lambda member: member.machine.apply(Event.STOP, self.reason))
        self._run_hooks(members, "shutdown", deadline)
        if any(member.hooks.for_group for member in members) and self.last_of_group(deadline):
            self._run_hooks(members, "shutdown", deadline, group=True)

    def act_for_group(self, seconds: float) -> bool:
        """Run what one process is to run for all, where no other has; say whether there was any, and all went well."""
        members = self.members()
        self._run_hooks(members, "shutdown", Deadline.after(self.clock, seconds), group=True)
        records = [record for hooks in _hook_groups(members) for record in hooks.records if record.kind == "shutdown"]
        return bool(records) and all(record.outcome == "ok" for record in records)

    def _run_hooks(self, members: Sequence[Member], kind: str, deadline: Deadline, group: bool = False) -> None:
        """Run the hooks of a kind, each within its own timeout and its share of what is left.

        :param group: those that are for all processes of the group, in place of those that are for each.
        """
        context = ShutdownContext(self.reason, self.signal, self)
        todo = [
            (hook, hooks, next(member for member in members if member.hooks is hooks))
            for hooks in reversed(_hook_groups(members))
            for hook in hooks.of(kind)
            if hook.group is group
        ]
        for number, (hook, hooks, member) in enumerate(todo, 1):
            if kind == "drain" and not any(waiting.hold for waiting, *_ in todo[number - 1 :]):
                self._let_go.set()
            if hooks.unopened(hook):
                extra = {"lifecycle_hook": hook.name, "lifecycle_kind": kind, "lifecycle_outcome": "skipped"}
                logger.info("%s skipped: its start did not succeed", hook.label, extra=extra)
                hooks.records.append(HookRecord(hook.name, kind, "skipped", 0.0))
                continue
            share = deadline.remaining() if number == len(todo) else deadline.remaining() / 2
            hooks.records.append(run_hook(hook, context, min(hook.timeout or share, share), member.context, self.clock))
        if kind == "drain":
            self._let_go.set()
            self._drain_hooks_ended.set()

    def _drain_deadline(self, members: Sequence[Member], deadline: Deadline) -> Deadline:
        return deadline.earlier(max((member.settings.hook_reserve for member in members), default=0.0))


Phase = Callable[[Coordinator, Sequence[Member], Deadline], Any]

PHASES: tuple[tuple[str, Phase], ...] = (
    ("announce", Coordinator._announce),
    ("delay", Coordinator._delay),
    ("stop accepting", Coordinator._stop_accepting),
    ("drain", Coordinator._drain),
    ("hooks", Coordinator._hooks),
)


def _tell_phase(record: PhaseRecord, failed: Exception | None) -> None:
    """Log the end of a phase."""
    extra = {"lifecycle_phase": record.name, "lifecycle_seconds": record.duration}
    if failed is None:
        logger.info("phase '%s' ended after %.1f s", record.name, record.duration, extra=extra)
    else:
        logger.error("phase '%s' failed; the shutdown goes on", record.name, exc_info=failed, extra=extra)


def _each(members: Iterable[Member], what: str, tell: Callable[[Member], object]) -> None:
    """Tell every application something, whatever becomes of the others."""
    for member in members:
        try:
            tell(member)
        except Exception:
            logger.exception("an application could not be %s", what, extra={"lifecycle_step": what})


def _hook_groups(members: Iterable[Member]) -> list[Hooks]:
    """The hooks of all members, each group once: several applications may share one ``Lifecycle``."""
    return _each_once(member.hooks for member in members)


def _tallies(member: Member) -> tuple[Tally, ...]:
    """All that a drain waits for in an application."""
    return member.ledger, member.work, member.tasks


def _each_once(things: Iterable[T]) -> list[T]:
    return list({id(thing): thing for thing in things}.values())
