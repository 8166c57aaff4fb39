"""The delay that ends when it may: how it shows that everybody has noticed that an application leaves.

A delay is there for balancers: until each of them knows that this instance leaves, it goes on sending to it. How long
that takes is a guess where the delay is a number. But who decides about traffic asks the readiness probe, and so it
is seen here when it has been told. The delay ends when

- each prober has been told: it has fetched so many answers in a row that a balancer believes them
  (``LIFECYCLE_DELAY_PROBES``; the default is what Kubernetes and HAProxy need by default), and after that
- nothing new has come for a quiet period (``LIFECYCLE_DELAY_QUIET``). A balancer that has been told need not have acted
  yet, and one that we do not see, because it does not ask or learns from elsewhere, shows itself by what it sends.

It takes ``LIFECYCLE_DELAY_MIN`` at least and ``LIFECYCLE_DELAY_MAX`` at most.

Who is waited for
-----------------

Who decides about traffic (see :attr:`Prober.decides`), was here before the delay began, has come twice or oftener, and
is not silent (has not missed its turn three times). Silence counts in the delay as well, so that a prober that
dies, with the balancer that it belongs to, holds up nobody. Answers before the delay count if they told the same: a
balancer that took the instance out when a check failed need not be told again. Where two checks look like one prober
(see ``_rhythm.py``), so many answers more are needed that the slower of them has fetched its share.

Who asks less often than once in ``LIFECYCLE_DELAY_MAX`` is not waited for. Even that would not do, and what asks once
in a minute is most often a service that watches, and sends nothing. Who asks so seldom that it cannot come often
enough makes the delay take its maximum, which is the most that can be done for it; the log says so.

In Kubernetes the kubelet is not waited for. A pod that is deleted leaves the endpoints by being deleted: what its
readiness probe says from then on changes nothing, and with the default period of ten seconds it would take half a
minute to say it. Who has to notice there are the proxies of all nodes, and they ask nobody. So the minimum is five
seconds in Kubernetes, as the delay is without all this, and beyond it the quiet period tells. Balancers that ask pods
themselves are waited for.

Work that arrives
-----------------

What has come is what has left since the drain began, what the application runs, and what waits in the server. A request
that goes from the server's queue to the application changes nothing in the sum; it is read application first, so that
one that goes over while it is read is missed once and not counted twice. Leaving takes two steps (see ``_tally.py``)
between which the sum is one too low; it is then one higher the next time, which makes the delay a little longer.

Probers wake the wait by the event that the ledger sets. New work does not, because each request would pay for it: in
the quiet period it is looked for each 50 ms. That is twenty looks a second for a few seconds of a process's life.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from ._config import Settings
from ._inflight import Ledger
from ._probers import Prober, Probers
from ._rhythm import periods

_TICK = 0.05


class Probed:
    """Finds out when the delay of one application may end. For the coordinator's thread alone.

    :param kubernetes: whether the process runs there.
    """

    def __init__(self, settings: Settings, probers: Probers, ledger: Ledger, kubernetes: bool) -> None:
        self._settings = settings
        self._probers = probers
        self._ledger = ledger
        self._kubernetes = kubernetes
        self._seldom: list[Prober] = []  # who asks, but less often than would do
        self._needed: dict[Prober, int] = {}  # how many answers each prober has to fetch
        self._began = self._latest = self._quiet_since = self._now = 0.0
        self._came = 0
        self._told: threading.Event | None = None
        self._untold = False  # whether somebody had still to be told when it was asked last
        self._kubelet = False  # whether one has asked that is not waited for
        self._cut = False  # whether the maximum ended the delay

    def begin(self, now: float, latest: float, told: threading.Event) -> None:
        self._began = self._now = self._quiet_since = now
        self._latest = min(latest, now + self._settings.delay_max)
        self._told = told
        here = [prober for prober in self._probers.all() if self._counts(prober, now)]
        self._kubelet = self._kubernetes and any(prober.is_kubelet for prober in self._probers.all())
        self._seldom = [prober for prober in here if prober.interval > self._settings.delay_max]
        times = self._settings.delay_probes
        self._needed = {prober: _needed(prober, times) for prober in here if prober not in self._seldom}

    def _counts(self, prober: Prober, now: float) -> bool:
        if not prober.decides or (self._kubernetes and prober.is_kubelet):
            return False
        # Who came once, and lately, may be one that has just begun to ask: it is one as soon as it comes again.
        return now - prober.last <= self._settings.delay_max if prober.count == 1 else not prober.silent(now)

    def pause(self, now: float, queued: Callable[[], int]) -> float:
        self._now = now
        self._probers.told = self._told  # before the look: who comes in between must not be missed
        waiting = self._waiting()
        if not waiting:
            # Anybody's probe would set it, in a flood thousands of times, and each look at the server costs.
            self._probers.told = None
            self._look_for_work(now, queued)
        self._untold = bool(waiting)
        if waiting:
            # Whoever comes sets the event; who does not is silent one day. A tick more, to be past that moment.
            pause = min(prober.silent_at() for prober in waiting) + _TICK - now
        else:
            settings = self._settings
            left = max(self._quiet_since + settings.delay_quiet, self._began + settings.delay_min) - now
            pause = max(0.0, min(left, _TICK))
        self._cut = pause > 0 and now >= self._latest
        return min(pause, max(0.0, self._latest - now))

    def _look_for_work(self, now: float, queued: Callable[[], int]) -> None:
        """Begin the quiet period anew if something has come; what comes before it is of no interest."""
        came = self._ledger.left + len(self._ledger) + queued()
        if came > self._came or self._untold:
            self._quiet_since = now
        self._came = came

    def _waiting(self) -> list[Prober]:
        """Who has still to be told."""
        return [
            prober
            for prober, needed in self._needed.items()
            if prober.count > 1 and prober.refused < needed and not prober.silent(self._now)
        ]

    def __str__(self) -> str:
        if self._cut:
            why = ", ".join(map(self._complaint, self._waiting())) or "new work went on to come"
            return f"at its maximum of {self._latest - self._began:.1f} s: {why}"
        told = [prober for prober, needed in self._needed.items() if prober.refused >= needed]
        silent = [prober for prober in self._needed if prober not in told and prober.count > 1]
        parts = [_of_probers(told, f"told {self._settings.delay_probes} times")] if told else []
        parts += [_of_probers(silent, "silent")] if silent else []
        parts += [_of_probers(self._seldom, "asking too seldom to be waited for")] if self._seldom else []
        nobody = f"no prober {'but the kubelet' if self._kubelet else 'to wait for'}"
        minimum = f", at least {self._settings.delay_min:.1f} s" if self._settings.delay_min else ""
        return (
            f"after {self._now - self._began:.1f} s: {', '.join(parts) or nobody},"
            f" quiet for {self._now - self._quiet_since:.1f} s{minimum}"
        )

    def _complaint(self, prober: Prober) -> str:
        needed = self._needed[prober]
        every = f"every {prober.interval:.1f} s"
        return f"the prober {prober}, which asks {every}, was told {prober.refused} of {needed} times"


def _needed(prober: Prober, times: int) -> int:
    """How many answers make so many for each of the probers that look like this one."""
    rhythm = periods(list(prober.arrivals.copy()))
    return times if len(rhythm) < 2 else math.ceil(times * (1 + rhythm[1] / rhythm[0]))


def _of_probers(probers: list[Prober], what: str) -> str:
    return f"{len(probers)} prober{'s' if len(probers) > 1 else ''} {what}"
