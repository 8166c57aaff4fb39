"""Who asks the probes: the ledger of probers.

A prober is known by what it asks (the group), its user agent, its address and the port that it asks: a port more is a
check more on the prober's side, with a count of its own. Its connections tell nothing, each probe may come by a new
one. What came through a proxy (a forwarding header says so) is a prober apart, so that no client of a balancer passes
for the balancer's own check. Our own questions (the self-test, the command line) are none.

Each probe is noted when its answer is known. That costs two microseconds under a lock, and some fifty for a newcomer
that needs room, in a flood; nothing is logged, and nobody else's code is called.

The ledger has room for 64, and for 8 of one address: whoever changes its user agent with each request takes its own
places. Where room is needed, those go first that are silent (see :meth:`Prober.silent`), then those that came most
seldom, then those that came longest ago; so a flood of newcomers pushes out newcomers and no regular prober.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ._fork import renew_in_children
from ._inflight import _quoted
from ._record import NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_ROOM = 64
_ROOM_OF_AN_ADDRESS = 8
# Enough for the rhythm of two probers that look like one (see _rhythm.py).
_ARRIVALS = 16
_GAPS = 7  # how many of the last ones make the interval
_AGENT = 100  # characters; a header may have thousands
# The user agent of `flask lifecycle status`; see _remote.py.
_OURS = "flask-lifecycle"
# Every browser, and no balancer, calls itself so; some monitoring services do.
_BROWSER = "Mozilla/"
_KUBELET = "kube-probe/"
# Any of these is written by a proxy on the way.
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")


class ProberInfo(NamedTuple):
    """One prober, as of now. Times are seconds.

    :param group: the group that it asks, ``ready`` for ``/readyz``; with the check after a slash if it asks for one.
    :param agent: its user agent, 100 characters at most; it may be empty.
    :param address: its address; ``relayed by`` and the proxy's, where a proxy passed it on.
    :param port: that it asks.
    :param last: how long ago it came.
    :param interval: between its visits; 0 where it has come only once.
    :param status: what it was told: ``pass``, ``warn`` or ``fail``.
    :param count: how often it came.
    :param refused: how many answers in a row, to the last one, told it to send no traffic.
    """

    group: str
    agent: str
    address: str
    port: str
    last: float
    interval: float
    status: str
    count: int  # type: ignore[assignment]  # hides the method of tuples, which nobody misses here
    refused: int


class Prober:
    """One entry of the ledger; written under its lock, read by anybody."""

    __slots__ = ("address", "agent", "arrivals", "count", "group", "last", "left", "port", "refused", "status")

    def __init__(self, group: str, agent: str, address: str, port: str) -> None:
        self.group = group
        self.agent = agent
        self.address = address
        self.port = port
        self.count = self.refused = 0
        self.left = 0  # how often without its answer, as far as was looked
        self.status = ""
        self.last = 0.0
        self.arrivals: deque[float] = deque(maxlen=_ARRIVALS)

    def came(self, now: float, status: str, refused: bool) -> None:
        """Note a visit. ``last`` is written at the end: who reads that it came now, reads the rest as well."""
        self.arrivals.append(now)
        self.status = status
        self.refused = self.refused + 1 if refused else 0
        self.count += 1
        self.last = now

    @property
    def interval(self) -> float:
        """Seconds between its visits; 0 where it has come only once.

        Three of four gaps are no longer: one that is out of line does not count, and where two probers look like one
        and take turns, it is the longer of their gaps.
        """
        if self.count < 2:  # as of a flood, in which this is asked of all to find who makes room
            return 0.0
        times = list(self.arrivals.copy())[-_GAPS - 1 :]
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        return gaps[len(gaps) * 3 // 4]

    def silent(self, now: float) -> bool:
        """Whether it missed its turn three times, and a second: it is gone, or it never came regularly."""
        return now > self.silent_at()

    def silent_at(self) -> float:
        """When it is silent unless it comes before."""
        return self.last + 3 * self.interval + 1.0

    @property
    def is_browser(self) -> bool:
        """Whether it is one, as far as it says."""
        return self.agent.startswith(_BROWSER)

    @property
    def decides(self) -> bool:
        """Whether traffic may depend on what it is told: not in liveness or start-up, and not where people read it."""
        return self.group.partition("/")[0] not in ("live", "startup") and not self.is_browser

    @property
    def is_kubelet(self) -> bool:
        """Whether it says that it is one."""
        return self.agent.startswith(_KUBELET)

    def __str__(self) -> str:
        return f"'{_quoted(self.agent)}' at {_quoted(self.address)}" if self.agent else f"at {_quoted(self.address)}"


class Probers:
    """The ledger of one application. Any thread may use it.

    :param clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.reset()
        _ledgers.add(self)

    def reset(self) -> None:
        """Forget everything: a forked child is asked by probers of its own, and the lock may have been held."""
        self._lock = threading.Lock()  # guards _probers and what is in it
        self._probers: dict[tuple[str, str, str, str], Prober] = {}
        self.told: threading.Event | None = None  # set by each answer that tells a prober to send no traffic

    def note(self, group: str, environ: WSGIEnvironment, status: str, refused: bool) -> Prober | None:
        """Note one visit whose answer is known; whose it was, ``None`` for our own.

        :param refused: whether the answer tells the prober to send no traffic.
        """
        agent = environ.get("HTTP_USER_AGENT", "")[:_AGENT]
        if agent.startswith(_OURS):
            return None
        key = (group, agent, address_of(environ), str(environ.get("SERVER_PORT", "")))
        with self._lock:
            now = self.clock()  # within the lock, so that arrivals are in order
            prober = self._probers.get(key)
            if prober is None:
                self._make_room(key[2], now)
                prober = self._probers[key] = Prober(*key)
            prober.came(now, status, refused)
        told = self.told
        if refused and told is not None:
            told.set()
        return prober

    def _make_room(self, address: str, now: float) -> None:
        neighbours = [each for each in self._probers.items() if each[1].address == address]
        if len(neighbours) >= _ROOM_OF_AN_ADDRESS:
            del self._probers[_least(neighbours, now)]
        elif len(self._probers) >= _ROOM:
            del self._probers[_least(self._probers.items(), now)]

    def all(self) -> list[Prober]:
        """The entries, oldest first."""
        with self._lock:
            return list(self._probers.values())

    def snapshot(self) -> tuple[ProberInfo, ...]:
        """What there is to tell of each."""
        now = self.clock()
        return tuple(
            ProberInfo(
                each.group, each.agent, each.address, each.port, max(0.0, now - each.last), each.interval,
                each.status, each.count, each.refused,
            )
            for each in self.all()
        )  # fmt: skip


def _least(entries: Iterable[tuple[tuple[str, str, str, str], Prober]], now: float) -> tuple[str, str, str, str]:
    return min(entries, key=lambda each: (not each[1].silent(now), each[1].count, each[1].last))[0]


def address_of(environ: WSGIEnvironment) -> str:
    """Where a probe comes from."""
    # A listener of both families gives addresses of IPv4 in this form, one of IPv4 alone does not.
    address = str(environ.get("REMOTE_ADDR") or "unknown").removeprefix("::ffff:")
    return f"relayed by {address}" if any(header in environ for header in _FORWARDED) else address


_ledgers: weakref.WeakSet[Probers] = weakref.WeakSet()


def _after_fork() -> None:
    for ledger in list(_ledgers):
        ledger.reset()


renew_in_children(_after_fork)
