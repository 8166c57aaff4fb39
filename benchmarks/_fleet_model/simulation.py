"""The model: deploys of a fleet, request for request as far as one may be lost.

A fleet of replicas gets requests from *routers* (balancers, or the proxies of nodes), each of which sends to all
replicas alike. Requests arrive as a Poisson process at each router. A deploy replaces every replica once, by the rule
of ``maxSurge`` and ``maxUnavailable``, or in place, where the successor begins when its predecessor has gone.

A replica that gets the stop signal serves during the delay, then closes its listener and drains. Each router learns
of the stop at a moment of its own:

- by *checks*, at the ``threshold``-th that fails, of which the first one comes after a part of the period that is
  uniformly random;
- by *deletion*, as in Kubernetes, at once;

and in both cases after a lag more, the propagation.

What a router sends to a replica between the close and the moment when it learns is refused. A refused request goes on
to another replica as long as there are retries, and that one may be closed as well; else it is lost. A connection that
was kept and not used during the delay (each answer in it tells its connection to close) is served for the linger; what
is sent in the moment when it is closed is lost, unless there are retries. A request that is not answered at the
deadline is cut off and lost.

Why there is no event for each request: between two changes at a router its refused requests are a Poisson process of
known rate, so that their number, and by thinning the number of those that are lost, is drawn at once. What runs when a
router stops sending is a draw of the stationary M/G/infinity queue: a Poisson number, whose mean is the rate times the
mean length, with residual lengths of the equilibrium distribution. So the events are a few for each router that learns
too late, and a deploy of 10,000 replicas takes seconds.

What is left out: that replicas get slow under load, routers that learn from what is refused (nginx, outlier detection),
and connections that are reset in the accept queue, of which there are none with the socket filter. More than 20
routers are taken for 20 that send as much: the mean is the same, and nearly so for a delay that ends when it may.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

AUTO = math.inf  # in the place of the delay: it ends when it may, docs/delay.md
# The package's own defaults, in seconds.
GRACE = 25.0
LINGER = 0.25
QUIET = 1.0
AUTO_MAX = 15.0

_P99 = 2.3263  # standard deviations
_ROUTERS = 20
_SMALL = 30.0  # up to which a Poisson draw is made by counting


class Spread(NamedTuple):
    """A lognormal time, by its median and its 99th percentile, in seconds; a constant where they are the same."""

    median: float = 0.0
    p99: float = 0.0

    @property
    def _sigma(self) -> float:
        return math.log(self.p99 / self.median) / _P99 if self.p99 > self.median > 0 else 0.0

    @property
    def mean(self) -> float:
        return self.median * math.exp(self._sigma**2 / 2)

    def draw(self, rng: random.Random) -> float:
        sigma = self._sigma
        return self.median * math.exp(sigma * rng.gauss(0, 1)) if sigma else self.median

    def residual(self, rng: random.Random) -> float:
        """What is left of one that is met at any time: a uniform part of a length-biased draw."""
        sigma = self._sigma
        biased = math.exp(sigma**2 + sigma * rng.gauss(0, 1)) if sigma else 1.0
        return self.median * biased * rng.random()


class Fleet(NamedTuple):
    """What is deployed, and how; times in seconds.

    :param rate: requests a second, for each replica.
    :param delay: ``AUTO`` for the one that ends when it may.
    :param least: ``LIFECYCLE_DELAY_MIN``, for ``AUTO``.
    :param rise: checks that have to succeed until a new replica counts.
    :param checks: whether routers learn by checks, else by deletion.
    :param kept: connections that each router keeps to each replica.
    :param flight: how long a request is on its way.
    :param retries: how often a refused request is sent to another replica.
    :param in_place: the successor begins when its predecessor has gone.
    """

    replicas: int = 10
    routers: int = 3
    rate: float = 20.0
    delay: float = 5.0
    least: float = 0.0
    period: float = 2.0
    threshold: int = 3
    rise: int = 2
    checks: bool = True
    lag: Spread = Spread()
    length: Spread = Spread(0.05, 1.0)
    start: Spread = Spread(3.0, 10.0)
    kept: int = 0
    flight: float = 0.0005
    retries: int = 0
    surge: int = 0
    unavailable: int = 1
    in_place: bool = True
    grace: float = GRACE

    @property
    def deadline(self) -> float:
        """Until then requests are waited for; the rest is the hooks'."""
        return self.grace - min(5.0, self.grace / 5)


class Outcome(NamedTuple):
    """What a deploy has cost; requests are counted from its begin to its end.

    :param again: refused, and answered by another replica.
    :param refused: lost, because nothing listened any more.
    :param raced: lost in a kept connection that was being closed.
    :param cut: lost at the deadline.
    :param seconds: until the last new replica counts.
    :param lasted: until nothing of it is under way.
    :param stop: from the signal to the exit, on average.
    """

    answered: int
    again: int
    refused: int
    raced: int
    cut: int
    seconds: float
    lasted: float
    stop: float

    @property
    def lost(self) -> int:
        return self.refused + self.raced + self.cut

    @property
    def requests(self) -> int:
        return self.answered + self.again + self.lost


def poisson(rng: random.Random, mean: float) -> int:
    """A Poisson draw; a rounded normal one where that makes no difference."""
    if mean > _SMALL:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    count, product, floor = 0, rng.random(), math.exp(-mean)
    while product > floor:
        count += 1
        product *= rng.random()
    return count


class Deploy:
    """One deploy, event by event."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        if fleet.surge + fleet.unavailable < 1 or (fleet.in_place and not fleet.unavailable):
            raise ValueError("'unavailable' or, unless it is in place, 'surge' has to be 1 at least.")
        self.fleet = fleet
        self.events = 0
        self._rng = random.Random(seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[int], None], int]] = []
        self._numbers = itertools.count()
        self._old, self._made, self._ready = fleet.replicas, 0, 0
        self._routers = min(fleet.routers, _ROUTERS)
        self._traffic = fleet.rate * fleet.replicas / self._routers  # of each
        self._known = [fleet.replicas] * self._routers  # replicas to which each sends
        self._closed = [0] * self._routers  # and at which nothing listens
        self._since = [0.0] * self._routers
        self._tried = 0.0  # refused requests that were to be expected
        self._again = self._refused = self._raced = self._cut = 0
        self._stops: list[float] = []

    def run(self) -> Outcome:
        self._roll()
        seconds = 0.0
        while self._events:
            self._now, _, happen, argument = heapq.heappop(self._events)
            self.events += 1
            happen(argument)
            if happen == self._has_started:
                seconds = self._now
        fleet = self.fleet
        rest = fleet.rate * fleet.replicas * self._now - self._tried - self._raced - self._cut
        return Outcome(
            poisson(self._rng, rest), self._again, self._refused, self._raced, self._cut,
            seconds, self._now, sum(self._stops) / len(self._stops),
        )  # fmt: skip

    def _after(self, seconds: float, happen: Callable[[int], None], argument: int = 0) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), happen, argument))

    # -- the deploy -----------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Begin whatever ``surge`` and ``unavailable`` permit; who terminates is not counted, as in Kubernetes."""
        fleet, more = self.fleet, True
        while more:
            more = False
            if not fleet.in_place and self._made < fleet.replicas:
                more = self._old + self._made < fleet.replicas + fleet.surge
                if more:
                    self._begin(0.0, fleet.start.draw(self._rng))
            if self._old and self._old + self._ready > fleet.replicas - fleet.unavailable:
                more = True
                self._old -= 1
                self._stop()

    def _begin(self, when: float, start: float) -> None:
        self._made += 1
        self._after(when + start + self._comes_up(), self._has_started)

    def _comes_up(self) -> float:
        """From the start of a replica until the last router has it."""
        fleet, rng = self.fleet, self._rng
        askers = self._routers if fleet.checks else 1
        last = max(rng.random() for _ in range(askers)) * fleet.period + (fleet.rise - 1) * fleet.period
        return last if fleet.checks else last + fleet.lag.draw(rng)

    def _has_started(self, _: int) -> None:
        self._ready += 1
        for router in range(self._routers):
            self._count(router)
            self._known[router] += 1
        self._roll()

    # -- a stop ---------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        fleet, rng = self.fleet, self._rng
        learned = [self._learns() for _ in range(self._routers)]
        # Requests a second from a router to this replica; one that knows none sends none.
        each = self._traffic / max(1, min(self._known))
        close = self._auto(learned, each) if fleet.delay == AUTO else fleet.delay
        kept = [self._kept(close, each) for _ in learned]
        drained = self._drain([min(moment, close) for moment in learned], close, each)
        gone = max(drained, close + LINGER) if any(kept) else drained
        self._stops.append(gone)
        again = math.inf
        if fleet.in_place:
            start = fleet.start.draw(rng)
            again = gone + start
            self._begin(gone, start)
        for router, (moment, idle) in enumerate(zip(learned, kept, strict=True)):
            # What is on its way to a kept connection while that is being closed.
            open_until = close + min(LINGER, rng.gammavariate(idle, 1 / each)) if idle else close
            if idle and moment > close + LINGER == open_until and not fleet.retries:
                self._raced += poisson(rng, each * fleet.flight)
            late = min(moment, again) > open_until
            if late:
                self._after(open_until, self._refuses, router)
            self._after(min(moment, again), self._knows_late if late else self._knows, router)

    def _learns(self) -> float:
        fleet, rng = self.fleet, self._rng
        checked = (rng.random() + fleet.threshold - 1) * fleet.period if fleet.checks else 0.0
        return checked + fleet.lag.draw(rng)

    def _auto(self, learned: list[float], each: float) -> float:
        """When no new request has come for a while, and all checkers have noticed."""
        fleet, rng = self.fleet, self._rng
        noticed = max(learned) if fleet.checks and not fleet.lag.median else 0.0
        floor = max(fleet.least, noticed)
        last = 0.0
        while last < AUTO_MAX:
            rate = each * sum(moment > last for moment in learned)
            following = last + rng.expovariate(rate) if rate else math.inf
            if following > max(last + QUIET, floor):
                return min(AUTO_MAX, max(last + QUIET, floor))
            last = following
        return AUTO_MAX

    def _kept(self, close: float, each: float) -> int:
        """How many kept connections of a router are idle when the listener closes: those not used in the delay."""
        kept = self.fleet.kept
        unused = math.exp(-each * close / kept) if kept else 0.0
        return sum(self._rng.random() < unused for _ in range(kept))

    def _drain(self, ends: list[float], close: float, each: float) -> float:
        """When the last request that runs is answered or cut off; each router's last ones begin before its end."""
        fleet, rng, last = self.fleet, self._rng, close
        for end in ends:
            for _ in range(poisson(rng, each * fleet.length.mean)):
                answered = end + fleet.length.residual(rng)
                self._cut += answered > fleet.deadline
                last = max(last, min(answered, fleet.deadline))
        return last

    # -- a router -------------------------------------------------------------------------------------------------

    def _refuses(self, router: int) -> None:
        self._count(router)
        self._closed[router] += 1

    def _knows(self, router: int) -> None:
        self._count(router)
        self._known[router] -= 1

    def _knows_late(self, router: int) -> None:
        self._knows(router)
        self._closed[router] -= 1

    def _count(self, router: int) -> None:
        """Draw what a router was refused since its last change; one that knows no replica refuses by itself."""
        closed, known, rng = self._closed[router], self._known[router], self._rng
        if closed or not known:
            mean = self._traffic * (closed / known if known else 1.0) * (self._now - self._since[router])
            lost = 1.0  # the chance that each further try meets a closed one as well, and never the same
            for tries in range(1, self.fleet.retries + 1):
                lost *= max(0, closed - tries) / (known - tries) if known > tries else 1.0
            self._tried += mean
            self._refused += poisson(rng, mean * lost)
            self._again += poisson(rng, mean * (1 - lost)) if lost < 1 else 0
        self._since[router] = self._now


def deploy(fleet: Fleet, seed: int = 1) -> Outcome:
    """What one deploy of a fleet costs; the same seed gives the same."""
    return Deploy(fleet, seed).run()
