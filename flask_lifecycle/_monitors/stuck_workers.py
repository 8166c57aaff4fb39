"""Detects a stuck worker pool: liveness fails although the process still answers probes.

Theory of operation
-------------------

A dedicated worker or the probe listener answers probes, so they would pass while nothing else is answered. Each look of
a liveness probe (nothing runs in between) distinguishes a busy pool from a stuck one in two ways:

*The same requests.* Each worker runs a request that is older than the limit. The ages come from the in-flight set. Of
each thread only the newest entry counts: a file that waitress is still sending has left its thread.

*The pool ping.* A task that does nothing takes the way of a request: ahead of all that waits in the pool's queue, then
through the server's loop (:meth:`flask_lifecycle._core.server.Server.ping`). If it has not returned after the limit,
no worker has finished anything for that long. This covers what the in-flight set cannot see: dead threads, a lock that
is never released, a blocked loop, requests of an application without a Lifecycle in the same pool. There is one ping at
a time, and the next is sent by the first look after half the limit.

Neither result counts before a ping had a moment to return, as it does at once in a working pool: a file that is still
being sent and a thread between two requests look like a busy worker, and a process that was suspended for a minute
finds its ping a minute old.

Where each connection has a thread (Werkzeug) there is no pool, and the ping only passes the accepting loop. A server
that was found by a search may not run at all: its silence counts only after one ping has returned.

Nothing counts before the start-up is over, because requests wait for it, and ages count from then. Nothing counts
during a shutdown either: its own deadline ends what hangs, in better order than a restart would.

Races
-----

Looks come from many threads. One lock guards the ping and the result. It is held for assignments and for the sending
(which the server bounds), and never while a thread waits. Two looks may end in another order than they began: the one
that began later knows more, so the other's result is returned to its own caller and not kept.

A request ends, and a look finds the ping overdue before its worker has taken it: the moment that the ping gets covers
this. If a worker takes longer, one more probe fails.

A change is recorded at once, so a caller who sees the new result finds it listed. It is published (the log with the
stacks, the signals) by its own thread: the workers may be stuck in the log itself, and a probe must not get stuck too.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._core.feature import Feature
from .._core.fork import renew_in_children
from .._core.inflight import Ledger
from .._core.log import logger
from .._core.server import Server
from .._core.text import Lines
from ..checks import Check, CheckReport, CheckResult
from ..checks._health import Health
from ..checks._outbox import Outbox

_MOMENT = 0.05  # short enough for every prober, and longer than a free worker needs on a busy machine


class _Ping:
    """A ping that is under way or has returned."""

    def __init__(self, server: Server, now: float) -> None:
        self.server = server
        self.since = now
        self.sent = False  # another thread may have held a lock
        self.returned = threading.Event()


class PoolWatch(Feature):
    """Watches the worker pool of a process. Any thread may use it.

    :param after: seconds that all workers may be busy with the same requests.
    :param members: gives the applications.
    :param server: gives the server, if it is known; with ``True`` also after a search.
    """

    def __init__(
        self, after: float, members: Callable[[], Sequence[Any]], server: Callable[[bool], Server | None]
    ) -> None:
        self.after = after
        self.check = Check("stuck-workers", lambda: None, groups=("live",))
        self._listeners: weakref.WeakSet[Health] = weakref.WeakSet()
        self._members = members
        self._server = server
        self.clock = time.monotonic
        self.after_fork()
        renew_in_children(self.after_fork)  # in testing mode too, where the process does not

    @classmethod
    def of(cls, application: Any) -> PoolWatch:
        after, search = application.settings.stuck_after, application.serving.current
        watch: PoolWatch = application.process.share(lambda p: cls(after, p.applications, search), (cls, after))
        application.health.pool = watch.report
        watch._listeners.add(application.health)
        return watch

    def after_fork(self) -> None:
        """Start anew in a child: the pool does not exist there, nor a thread that held the lock."""
        self._lock = threading.Lock()  # guards what follows
        self._ping: _Ping | None = None
        self._last_sent = self._next_search = self._as_of = float("-inf")
        self._pause = self.after / 2  # until the next search for a server
        self._answered = False  # whether a ping has returned
        self._problem = ""
        self._outbox = Outbox()

    def report(self, look: bool = True) -> CheckReport:
        """Report the pool as a check would, after a look at it or by the last one."""
        began = time.monotonic()
        problem = self.look() if look else self._problem
        duration = time.monotonic() - began if look else 0.0
        status = "fail" if problem else "pass"
        return CheckReport(self.check, status, duration, time.time(), CheckResult(status, problem))

    def look(self) -> str:
        """The problem; empty if there is none, or none can be seen. Blocks for a moment if there seems to be one."""
        now = self.clock()
        problem = self._find_problem(now)
        with self._lock:
            if now >= self._as_of:
                self._as_of = now
                if bool(problem) != bool(self._problem):
                    recovered = ("fail", "pass", "the workers make progress again")
                    change = ("pass", "fail", problem) if problem else recovered
                    for listener in list(self._listeners):
                        listener.record_check(self.check, *change)
                    self._outbox.put(functools.partial(self._publish, problem, change))
                self._problem = problem
        self._outbox.flush_in_thread("lifecycle-stuck-workers")  # without a thread a later look publishes it
        return problem

    # -- looking --------------------------------------------------------------------------------------------------

    def _find_problem(self, now: float) -> str:
        serving = self._serving()
        server = self._find_server(now) if serving else None
        if server is None:
            return ""
        problem = self._same_requests(serving, server, now)
        with self._lock:
            ping = self._current_ping(server, now, wanted=bool(problem))
            trusted = server.ours or self._answered
        if not problem and ping is not None and trusted:
            since = max([ping.since, *(start for _ledger, start in serving)])
            if now - since > self.after:
                problem = f"{server.name} has not started a task that was queued {now - since:.0f} s ago"
        return "" if problem and ping is not None and ping.returned.wait(_MOMENT) else problem

    def _serving(self) -> list[tuple[Ledger, float]]:
        """The in-flight sets of the serving applications, and since when they serve; none if nothing counts now."""
        serving = []
        for member in self._members():
            if member.machine.ending:
                return []
            if member.startup.served_since is not None:
                serving.append((member.ledger, member.startup.served_since))
            elif len(member.ledger):
                return []  # these requests wait for a start-up, and block workers
        return serving

    def _find_server(self, now: float) -> Server | None:
        with self._lock:
            search = now >= self._next_search
            if search:
                # A search takes as long as a request; if it finds nothing, the pauses get longer.
                self._next_search, self._pause = now + self._pause, 2 * self._pause
        return self._server(search)

    def _same_requests(self, serving: Sequence[tuple[Ledger, float]], server: Server, now: float) -> str:
        newest: dict[int, float] = {}
        for ledger, start in serving:
            for body in ledger.entries():
                since = max(body.started, start)
                newest[body.thread] = max(newest.get(body.thread, since), since)
        old = sorted(since for since in newest.values() if now - since > self.after)
        load = server.load() if old else None  # it looks at every connection, which would slow down every probe
        threads = load.threads if load is not None and load.idle == 0 else None
        if not threads or len(old) < threads:
            return ""
        who = f"all {threads} workers have" if threads > 1 else "the only worker has"
        what = "the same requests" if threads > 1 else "the same request"
        return f"{who} been busy with {what} for {now - old[threads - 1]:.0f} s"

    def _current_ping(self, server: Server, now: float, *, wanted: bool) -> _Ping | None:
        """The ping that has not returned, or one that is sent now because it is due or wanted."""
        ping = self._ping
        if ping is not None and ping.returned.is_set():
            ping, self._answered = None, True
        elif ping is not None and ping.server is not server:
            ping, self._answered = None, False
        if ping is None and (wanted or now - self._last_sent >= self.after / 2):
            ping, self._last_sent = _Ping(server, now), now
        if ping is not None and not ping.sent:
            sent = server.ping(ping.returned.set)
            ping.sent = bool(sent)
            ping = ping if sent is not None else None
        self._ping = ping
        return ping

    # -- publishing -----------------------------------------------------------------------------------------------

    def _publish(self, problem: str, change: tuple[str, str, str]) -> None:
        self._log(problem)
        for listener in list(self._listeners):
            listener.check_changed(self.check, *change)

    def _log(self, problem: str) -> None:
        if not problem:
            extra = {"lifecycle_check": self.check.name}
            logger.warning("liveness passes again: the workers make progress", extra=extra)
            return
        held = [info for member in self._members() for info in member.ledger.requests(stacks=True) if info.stack]
        logger.error(
            "liveness fails: %s", problem, extra={"lifecycle_check": self.check.name, "lifecycle_stuck": len(held)}
        )
        for info in held:
            fields = ("path", "route", "age", "thread", "stack")
            logger.error(
                "a worker is busy with %s in thread %s%s", info, info.thread, Lines.of(f"\n{info.stack}"),
                extra={f"lifecycle_{name}": getattr(info, name) for name in fields},
            )  # fmt: skip
