"""The model beside real stops, with what ``delay.py`` and ``fleet.py`` measure with.

Behind HAProxy with one try, on new connections, what is lost in each stop is counted, and the model is given the same
rate, interval of the checks and delay. Requests come at the times of a Poisson process, whatever becomes of those
before: clients that wait for their answers would send least when most is lost, as a connection that is ignored takes a
second. Behind Envoy, which keeps connections and tries once, how many of them are idle is not known, so that the model
gives two bounds: without any, and with more than needed.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import random
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import delay as real
from _fleet.balancers import FALL, INTERVAL
from _fleet.roll import Plan, Roll

from .simulation import Fleet, Spread, deploy

# Deploys of the model for each row: its own error is then a tenth of that of the stops.
DEPLOYS = 2000
RATE = 100.0  # requests a second
PERIODS = {"500ms": 0.5, "2s": 2.0}
# By the interval of HAProxy's checks, of which three have to fail.
DELAYS = {"500ms": (0.0, 0.5, 1.0, 1.25, 2.0), "2s": (0.0, 5.0)}
ENVOY_RATE = 300.0


class Row(NamedTuple):
    """Lost requests for each stop.

    :param rate: requests a second to the replica that stops.
    :param error: the standard error of what was measured, for as many stops of the model.
    """

    kind: str
    what: str
    period: float
    delay: float
    rate: float
    stops: int
    measured: float
    model: float
    error: float

    def __str__(self) -> str:
        off = "bound"
        if self.kind != "envoy":
            difference = self.measured - self.model
            off = f"{difference / self.error:+.1f}" if self.error else "differs" if difference else "-"
        return (
            f"{self.what:38}{self.stops:6}{self.rate:8.0f}{self.measured:11.2f}{self.model:9.2f}"
            f"{self.error:8.2f}{off:>9}"
        )


HEAD = f"{'':38}{'stops':>6}{'req/s':>8}{'measured':>11}{'model':>9}{'error':>8}{'off by':>9}"


class Load:
    """Requests at random times, each on a new connection in a thread of its own."""

    def __init__(self, port: int, seed: int) -> None:
        self.lost = 0
        self._url = f"http://127.0.0.1:{port}/work"
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the count
        self._pool = ThreadPoolExecutor(max_workers=300)  # of which some wait for a second
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            self._pool.submit(self._ask)
            due += self._rng.expovariate(RATE)

    def _ask(self) -> None:
        try:
            with urllib.request.urlopen(self._url, timeout=real.PATIENCE) as response:
                right = response.read() == b"done\n"
        except (OSError, http.client.HTTPException):
            right = False
        with self._lock:
            self.lost += not right

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._pool.shutdown()


def predicted(fleet: Fleet, stops: int) -> tuple[float, float]:
    """The mean of what is lost in a stop, and the standard error of that mean over so many stops."""
    lost = [deploy(fleet, seed).lost / fleet.replicas for seed in range(DEPLOYS)]
    # A deploy is as many stops as there are replicas, so that what it says of one varies less.
    return statistics.fmean(lost), statistics.stdev(lost) * math.sqrt(fleet.replicas / stops)


def behind_haproxy(interval: str, delay: float, stops: int) -> Row:
    """Stop the two instances of ``delay.py`` in turn; HAProxy tries once."""
    lost, rng, period = [], random.Random(stops), PERIODS[interval]
    with real.fleet(f"{delay:g}", interval) as (instances, balancer):
        load = Load(balancer.ports[0], seed=stops)
        try:
            for number in range(stops):
                instance = instances[number % 2]
                time.sleep(rng.uniform(0.3, 0.3 + period))  # at any moment between two checks
                before = load.lost
                instance.stop()
                real.wait_until(lambda instance=instance: balancer.down(instance), "HAProxy misses it")  # type: ignore[misc]
                time.sleep(1.2)  # a connection that was ignored is tried again after a second, and lost then
                lost.append(load.lost - before)
                instance.start()
                real.wait_until(lambda instance=instance: balancer.up(instance), "HAProxy has it again")  # type: ignore[misc]
        finally:
            load.end()
    fleet = Fleet(
        replicas=2, routers=1, rate=RATE / 2, delay=delay, period=period, threshold=3,
        length=Spread(0.005, 0.005), start=Spread(60, 60),  # it is started when HAProxy has missed it
    )  # fmt: skip
    model, error = predicted(fleet, stops)
    what = f"haproxy, {interval} x 3, delay {delay:g} s"
    return Row("haproxy", what, period, delay, RATE / 2, stops, statistics.fmean(lost), model, error)


def behind_envoy(delay: float, restarts: int) -> Iterator[Row]:
    """Restart the three instances of ``fleet.py`` in turn, and give both bounds of the model."""
    plan = Plan(["envoy"], "waitress", f"{delay:g}", requests=1500, restarts=restarts, rate=ENVOY_RATE)
    (outcome,) = asyncio.run(Roll(plan, lambda _: None).run())
    measured = len(outcome.lost) / restarts
    for name, kept in (("no connection kept", 0), ("any number kept", 200)):
        fleet = Fleet(
            replicas=3, routers=1, rate=ENVOY_RATE / 3, delay=delay, period=INTERVAL / 1000, threshold=FALL, kept=kept,
            length=Spread(0.02, 0.2), start=Spread(1, 1),
        )  # fmt: skip
        model, error = predicted(fleet, restarts)
        what = f"envoy, delay {delay:g} s, {name}"
        yield Row("envoy", what, fleet.period, delay, fleet.rate, restarts, measured, model, error)


def rows(stops: int) -> Iterator[Row]:
    for interval, delays in DELAYS.items():
        for delay in delays:
            yield behind_haproxy(interval, delay, stops if interval == "500ms" else max(2, stops // 2))
    for delay in (0.0, 0.5):
        yield from behind_envoy(delay, max(3, stops))
