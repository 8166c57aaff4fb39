"""Whether the workers of the pool get on: what makes liveness fail although the process answers.

Theory of operation
-------------------

A probe is answered beside the work: by a lane of its own, or by the probe listener. So that it does not say "fine"
while nothing else is answered, each look of a liveness probe (nothing runs between two) tells two things apart that are
alike from outside, a pool that has much to do and a pool that is stuck:

*The same requests.* Each worker runs a request that is older than the limit, so none of them has ended since, and no
other has been begun. The ages are the ledger's, which costs a request nothing. Of each thread only the newest entry
counts: a file that waitress still sends has left its thread, which may run the next one, or none.

*The canary.* A task that does nothing goes the way of a request: ahead of all that waits in the pool's queue, then
through the server's loop (:meth:`flask_lifecycle._shutdown.Server.canary`). As it is ahead of all, the next worker that
is free takes it, however long the queue is: if it has not come back after the limit, no worker has ended anything for
so long. That covers what the ledger cannot see: threads that have died, a lock that is never given back, a loop that
does not turn, requests of an application without a Lifecycle in the same pool. One is under way at most, and the next
is sent by the first look that finds the last one half the limit ago: what is dead gets no second one.

Neither is believed before a canary was given a moment to come back: a file that is still sent and a thread that is just
between two requests look like a worker that is busy with it, and a process that was stopped for a minute finds its
canary a minute old. In a pool that gets on it comes back at once.

Where each connection has a thread (Werkzeug) there is no pool, and the canary goes through the accepting loop alone.
A server that somebody else started is found by a search, which may find one that nobody runs: there the canary's
silence counts once one has come back.

Nothing is judged before the start-up is over, because requests wait for it, and ages count from then. Nothing is judged
once a shutdown has begun either: its own deadline ends what hangs, and in better order than a restart would.

Races
-----

Looks come from many threads. The canary and the verdict are kept under one lock, which is held for assignments and for
the sending (bounded by the server, see there), and never while anybody waits. Two looks that end in another order than
they began: the later one to begin knows more, so the other's verdict is returned to its own caller and not kept.

A request ends, and a look finds the canary overdue before its worker has come to take it: the moment that the canary is
given covers it. If a worker takes longer to get from one to the other, one probe more fails.

What has changed is told (the log with the stacks, the signals) by a thread of its own, one at a time: what the workers
are stuck in may be the log itself, and a probe must not get stuck there too.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ._inflight import Ledger, RequestInfo
from ._parties import Server
from ._state import StateMachine, logger
from .checks import Check, CheckReport, CheckResult

# As long as no prober minds, and longer than a worker that is free needs on a busy machine.
_MOMENT = 0.05


class Served(Protocol):
    """One application, as the watch sees it."""

    ledger: Ledger
    machine: StateMachine
    served_since: float | None  # when requests stopped to wait for the start-up; on the ledger's clock


class Listener(Protocol):
    """Who is told when the pool gets stuck, and when it gets on again."""

    def pool_changed(self, check: Check, old: str, new: str, reason: str) -> None:
        """Called in a thread that may be blocked."""


class _Canary:
    """One that is under way, or has come back."""

    def __init__(self, server: Server, now: float) -> None:
        self.server = server
        self.since = now
        self.sent = False  # it may be that a lock is not to be had
        self.back = threading.Event()


class PoolWatch:
    """The watch of the pool that carries a process's applications. Any thread may use it.

    :param after: for so many seconds all workers may be busy with the same requests.
    :param members: gives the applications.
    :param server: gives the server, if it is known; with ``True`` also after a search.
    """

    def __init__(
        self,
        after: float,
        members: Callable[[], Sequence[Served]],
        server: Callable[[bool], Server | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.after = after
        self.check = Check("stuck-workers", lambda: None, groups=("live",))
        self.listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._members = members
        self._server = server
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a child neither the pool nor whoever held the lock exists."""
        self._lock = threading.Lock()  # guards all of these
        self._canary: _Canary | None = None
        self._last_sent = self._next_search = self._as_of = float("-inf")
        self._pause = self.after / 2  # until the next search for a server
        self._heard = False  # whether a canary has come back
        self._why = ""
        self._untold: deque[str] = deque(maxlen=16)
        self._telling = False

    @property
    def status(self) -> str:
        """What the last look said."""
        return "fail" if self._why else "pass"

    def report(self) -> CheckReport:
        """Look, and say it as a check would."""
        began = time.monotonic()
        why = self.look()
        return self._as_report(why, time.monotonic() - began)

    def known(self) -> CheckReport:
        """What the last look said, as a check would say it; does not look."""
        return self._as_report(self._why, 0.0)

    def _as_report(self, why: str, duration: float) -> CheckReport:
        status = "fail" if why else "pass"
        return CheckReport(self.check, status, duration, time.time(), CheckResult(status, why))

    def look(self) -> str:
        """What is wrong now; empty if nothing is, or nothing can be seen. Blocks for a moment if it looks bad."""
        now = self._clock()
        why = self._judge(now)
        with self._lock:
            if now >= self._as_of:
                self._as_of = now
                if bool(why) != bool(self._why):
                    self._untold.append(why)
                self._why = why
            tell = bool(self._untold) and not self._telling
            self._telling = self._telling or tell
        if tell:
            self._begin_telling()
        return why

    # -- judging --------------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> str:
        serving = self._serving()
        server = self._find_server(now) if serving else None
        if server is None:
            return ""
        why = self._same_requests(serving, server, now)
        with self._lock:
            canary = self._canary_under_way(server, now, wanted=bool(why))
            trusted = server.ours or self._heard
        if not why and canary is not None and trusted:
            since = max([canary.since, *(start for _ledger, start in serving)])
            if now - since > self.after:
                why = f"{server.name} has not come to a task that it was given {now - since:.0f} s ago"
        return "" if why and canary is not None and canary.back.wait(_MOMENT) else why

    def _serving(self) -> list[tuple[Ledger, float]]:
        """The ledgers of the applications that serve, and since when; none if nothing is to be judged now."""
        serving = []
        for member in self._members():
            if member.machine.ending:
                return []
            if member.served_since is not None:
                serving.append((member.ledger, member.served_since))
            elif len(member.ledger):
                return []  # they wait for a start-up, and hold workers
        return serving

    def _find_server(self, now: float) -> Server | None:
        with self._lock:
            search = now >= self._next_search
            if search:
                # A search takes as long as a request; where there is nothing to be found they become seldom.
                self._next_search, self._pause = now + self._pause, 2 * self._pause
        return self._server(search)

    def _same_requests(self, serving: Sequence[tuple[Ledger, float]], server: Server, now: float) -> str:
        newest: dict[int, float] = {}
        for ledger, start in serving:
            for body in ledger.active.copy():
                since = max(body.started, start)
                newest[body.thread] = max(newest.get(body.thread, since), since)
        old = sorted(since for since in newest.values() if now - since > self.after)
        load = server.load() if old else None  # a look at every connection, which few probes have to pay for
        threads = load.threads if load is not None and load.idle == 0 else None
        if not threads or len(old) < threads:
            return ""
        who = f"all {threads} workers have" if threads > 1 else "the only worker has"
        what = "the same requests" if threads > 1 else "the same request"
        return f"{who} been busy with {what} for {now - old[threads - 1]:.0f} s"

    def _canary_under_way(self, server: Server, now: float, *, wanted: bool) -> _Canary | None:
        """The canary that has not come back, or one that is sent now because it is time or because it is wanted."""
        canary = self._canary
        if canary is not None and canary.back.is_set():
            canary, self._heard = None, True
        elif canary is not None and canary.server is not server:
            canary, self._heard = None, False
        if canary is None and (wanted or now - self._last_sent >= self.after / 2):
            canary, self._last_sent = _Canary(server, now), now
        if canary is not None and not canary.sent:
            sent = server.canary(canary.back.set)
            canary.sent = bool(sent)
            canary = canary if sent is not None else None
        self._canary = canary
        return canary

    # -- telling --------------------------------------------------------------------------------------------------

    def _begin_telling(self) -> None:
        try:
            threading.Thread(target=self._tell, name="lifecycle-stuck-workers", daemon=True).start()
        except RuntimeError:  # no thread to be had: a later look tells it
            self._telling = False

    def _tell(self) -> None:
        while True:
            with self._lock:
                if not self._untold:
                    self._telling = False
                    return
                why = self._untold.popleft()
            try:
                self._log(why)
                change = ("pass", "fail", why) if why else ("fail", "pass", "the workers get on again")
                for listener in list(self.listeners):
                    listener.pool_changed(self.check, *change)
            except Exception:
                extra = {"lifecycle_check": self.check.name}
                logger.exception("a change of the check '%s' could not be told", self.check.name, extra=extra)

    def _log(self, why: str) -> None:
        if not why:
            logger.warning("liveness passes again: the workers get on", extra={"lifecycle_check": self.check.name})
            return
        held = [info for member in self._members() for info in member.ledger.requests(stacks=True) if info.stack]
        extra = {"lifecycle_check": self.check.name, "lifecycle_stuck": len(held)}
        logger.error("liveness fails: %s", why, extra=extra)
        for info in held:
            _log_request(info)


def _log_request(info: RequestInfo) -> None:
    logger.error(
        "a worker is busy with %s in thread %s\n%s", info, info.thread, info.stack.rstrip("\n"),
        extra={
            "lifecycle_path": info.path,
            "lifecycle_route": info.route,
            "lifecycle_age": info.age,
            "lifecycle_thread": info.thread,
            "lifecycle_stack": info.stack,
        },
    )  # fmt: skip
