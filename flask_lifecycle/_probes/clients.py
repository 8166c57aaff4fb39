"""The probers: which clients ask the probes, and how often.

A prober is identified by the group that it asks, its user agent, its address and the port that it asks: another port is
another check of the prober, with its own count. Connections do not matter, because each probe may use a new one.
A probe that a proxy forwards (it has a forwarding header) counts as another prober than the proxy, so that no client of
a load balancer can imitate the load balancer's own check. Our own requests (the self-test, the command line) are not
counted.

Each probe is recorded when its answer is known. That costs two microseconds under a lock, and some fifty for a new
prober that needs room, in a flood; nothing is logged, and no other code is called.

There is room for 64 probers, and for 8 of one address, so a client that changes its user agent with each request only
uses its own places. If room is needed, silent probers are removed first (see :meth:`Prober.silent`), then those with
the fewest probes, then those that came longest ago. So a flood of new probers removes new probers and no regular one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from .._core.fork import renew_in_children
from .._core.inflight import _quoted

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_ROOM = 64
_ROOM_OF_AN_ADDRESS = 8
_ARRIVALS = 8  # the last seven gaps make the interval
_AGENT = 100  # characters; a header may have thousands
# The maximum length of an address and of a port, which a proxy middleware may have taken from headers.
_ADDRESS, _PORT = 64, 8
# The user agent of `flask lifecycle status`; see ``_cli/client.py``.
_OURS = "flask-lifecycle"
# In the user agent of every browser, of no load balancer, and of some monitoring services.
_BROWSER = "Mozilla/"
# Each is added by a proxy.
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")


class ProberInfo(NamedTuple):
    """One prober at this moment. Times are seconds.

    :param group: the group that it asks, ``ready`` for ``/readyz``; with the check after a slash if it asks for one.
    :param agent: its user agent, 100 characters at most; it may be empty.
    :param address: its address; ``relayed by`` and the proxy's address if a proxy forwarded the probe.
    :param port: the port that it asks.
    :param last: the age of its last probe.
    :param interval: between its probes; 0 after the first.
    :param status: of its last answer: ``pass``, ``warn`` or ``fail``.
    :param count: of its probes.
    :param refused: how many answers in a row, up to the last one, refused traffic.
    """

    group: str
    agent: str
    address: str
    port: str
    last: float
    interval: float
    status: str
    count: int  # type: ignore[assignment]  # in the place of a method of tuples
    refused: int


class Prober:
    """One prober; written under the lock of :class:`Probers`, read by any thread."""

    def __init__(self, group: str, agent: str, address: str, port: str) -> None:
        self.group, self.agent, self.address, self.port = group, agent, address, port
        self.count = self.refused = 0
        self.status = ""
        self.last = 0.0
        self.arrivals: deque[float] = deque(maxlen=_ARRIVALS)

    def came(self, now: float, status: str, refused: bool) -> None:
        """Record a probe. ``last`` is written at the end: a reader that sees it, sees the rest as well."""
        self.arrivals.append(now)
        self.status = status
        self.refused = self.refused + 1 if refused else 0
        self.count += 1
        self.last = now

    @property
    def interval(self) -> float:
        """Seconds between its probes; 0 after the first.

        Three of four gaps are no longer than this: an outlier does not count, and of two checks that look the same and
        take turns it is the longer gap.
        """
        if self.count < 2:  # in a flood, this is computed for all to find room
            return 0.0
        gaps = sorted(after - before for before, after in itertools.pairwise(self.arrivals.copy()))
        return gaps[len(gaps) * 3 // 4]

    def silent(self, now: float) -> bool:
        """Whether it is three turns and a second late: it is gone, or it never came regularly."""
        return now > self.silent_at()

    def silent_at(self) -> float:
        return self.last + 3 * self.interval + 1.0

    @property
    def decides(self) -> bool:
        """Whether traffic may depend on its answers: not for liveness or start-up, and not for a browser."""
        return self.group.partition("/")[0] not in ("live", "startup") and not self.agent.startswith(_BROWSER)

    def __str__(self) -> str:
        return f"'{_quoted(self.agent)}' at {_quoted(self.address)}" if self.agent else f"at {_quoted(self.address)}"


class Probers:
    """The probers of one application. Any thread may use them."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.reset()
        renew_in_children(self.reset)

    def reset(self) -> None:
        """Remove all: a forked child has probers of its own, and the lock may have been held."""
        self._lock = threading.Lock()  # guards _probers and what is in it
        self._probers: dict[tuple[str, str, str, str], Prober] = {}
        self.on_refusal: threading.Event | None = None  # set by each answer that refuses traffic

    def note(self, group: str, environ: WSGIEnvironment, status: str, refused: bool) -> None:
        """Record a probe when its answer is known, but none of our own requests."""
        agent = environ.get("HTTP_USER_AGENT", "")[:_AGENT]
        if agent.startswith(_OURS):
            return
        key = (group, agent, _address_of(environ), str(environ.get("SERVER_PORT", ""))[:_PORT])
        with self._lock:
            now = self.clock()  # within the lock, so that arrivals are in order
            prober = self._probers.get(key)
            if prober is None:
                self._make_room(key[2], now)
                prober = self._probers[key] = Prober(*key)
            prober.came(now, status, refused)
        on_refusal = self.on_refusal
        if refused and on_refusal is not None:
            on_refusal.set()

    def _make_room(self, address: str, now: float) -> None:
        everyone = list(self._probers.items())
        neighbours = [each for each in everyone if each[1].address == address]
        for entries, room in ((neighbours, _ROOM_OF_AN_ADDRESS), (everyone, _ROOM)):
            if len(entries) >= room:
                key, _least = min(entries, key=lambda each: (not each[1].silent(now), each[1].count, each[1].last))
                del self._probers[key]
                return

    def all(self) -> list[Prober]:
        """The probers, oldest first."""
        with self._lock:
            return list(self._probers.values())

    def snapshot(self) -> tuple[ProberInfo, ...]:
        now = self.clock()
        return tuple(
            ProberInfo(
                each.group, each.agent, each.address, each.port, max(0.0, now - each.last), each.interval,
                each.status, each.count, each.refused,
            )
            for each in self.all()
        )  # fmt: skip


def _address_of(environ: WSGIEnvironment) -> str:
    # A listener of both families has IPv4 addresses in this form.
    address = str(environ.get("REMOTE_ADDR") or "unknown")[:_ADDRESS].removeprefix("::ffff:")
    return f"relayed by {address}" if any(header in environ for header in _FORWARDED) else address
