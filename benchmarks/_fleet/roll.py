"""Rolling restarts of a fleet under load, and what the clients had of them."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from .balancers import BALANCERS, Balancer
from .kubelet import Deployment, Shape, Spec
from .load import Load, Route, Sample
from .processes import FleetError, Instance

INSTANCES = 3
WARM_UP = 1.0  # seconds, of which no figure is taken
STEADY = 0.05  # of all requests, before the first restart and after the last


class Pods(NamedTuple):
    """What takes the balancer's place where Kubernetes is played.

    :param lag: seconds within which each node hears of a change.
    """

    shape: Shape = Shape()
    lag: float = 0.8
    pre_stop: float | Sequence[str] | None = None
    grace: float = 30.0

    @property
    def label(self) -> str:
        return f"kubernetes {self.shape}"


class Plan(NamedTuple):
    """What is measured.

    :param requests: at least so many, of each balancer.
    :param restarts: of one instance after the other.
    :param capable: whether instances may have CAP_NET_ADMIN.
    :param number: the signal that stops an instance.
    :param redispatch: let HAProxy try another server.
    :param deployment: pods on nodes, instead of instances behind balancers.
    """

    balancers: Sequence[str]
    server: str
    delay: str = "1"
    requests: int = 2000
    restarts: int = 3
    rate: float = 700.0
    kept: int = 24
    new: int = 8
    seed: int = 1
    capable: bool = True
    number: int = signal.SIGTERM
    redispatch: bool = False
    deployment: Pods | None = None


class Outcome(NamedTuple):
    """What the clients of one balancer had.

    :param stops: seconds that each instance took from its signal to its exit.
    :param again: requests that a client has sent twice, as a kept connection had ended.
    :param steady: seconds that each request took, of those that no restart overlaps.
    :param rolling: the same, of the others.
    """

    balancer: str
    server: str
    delay: str
    requests: int
    restarts: int
    lost: list[str]
    again: int
    unclean: list[str]
    stops: list[float]
    steady: list[float]
    rolling: list[float]
    lasted: float


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


class Target(Protocol):
    """What is restarted under load."""

    unclean: list[str]
    stops: list[float]

    async def start(self) -> None: ...
    async def end(self) -> None: ...
    async def restart(self) -> int:
        """Restart something, wait until it is back and return how much it was."""

    def routes(self) -> dict[str, list[Route]]:
        """For each balancer where its clients connect."""


class Fleet:
    """Instances and the balancers in front of them, up and known to each other."""

    def __init__(self, plan: Plan, home: Path) -> None:
        self.unclean: list[str] = []
        self.stops: list[float] = []
        self.instances = [
            Instance(f"i{n}", home, plan.server, delay=plan.delay, capable=plan.capable) for n in range(INSTANCES)
        ]
        self.balancers: list[Balancer] = [
            BALANCERS[kind](home, self.instances, plan.redispatch) for kind in plan.balancers
        ]
        self._number = plan.number

    def routes(self) -> dict[str, list[Route]]:
        return {balancer.kind: [balancer.route] for balancer in self.balancers}

    async def start(self) -> None:
        await asyncio.gather(*(instance.start() for instance in self.instances))
        await asyncio.gather(*(balancer.start() for balancer in self.balancers))

    async def end(self) -> None:
        await asyncio.gather(*(process.end() for process in (*self.balancers, *self.instances)))

    async def restart(self) -> int:
        instance = self.instances[len(self.stops) % INSTANCES]
        begun = time.monotonic()
        code = await instance.stop(self._number)
        self.stops.append(time.monotonic() - begun)
        if code:
            self.unclean.append(f"{instance.name} left with {code}:\n{instance.log[-3000:]}")
        await instance.start()
        await asyncio.gather(*(balancer.wait_back(instance) for balancer in self.balancers))
        return 1


def make_target(plan: Plan, home: Path) -> Target:
    if plan.deployment is None:
        return Fleet(plan, home)
    spec = Spec(plan.server, plan.delay, plan.deployment.pre_stop, plan.deployment.grace)
    return Deployment(home, spec, plan.deployment.shape, lag=plan.deployment.lag, seed=plan.seed)


class Roll:
    """One run of a plan."""

    def __init__(self, plan: Plan, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.log = log
        self.restarts = 0
        self.windows: list[tuple[float, float]] = []

    async def run(self) -> list[Outcome]:
        plan = self.plan
        with tempfile.TemporaryDirectory(prefix="fleet.") as home:
            target = make_target(plan, Path(home))
            try:
                await target.start()
                loads = {
                    kind: Load(routes, kept=plan.kept, new=plan.new, rate=plan.rate, seed=plan.seed)
                    for kind, routes in target.routes().items()
                }
                begun = time.monotonic()
                await self._put_under_load(target, list(loads.values()))
                lasted = time.monotonic() - begun
            finally:
                await target.end()
            return [self._outcome(kind, load, target, begun, lasted) for kind, load in loads.items()]

    async def _put_under_load(self, target: Target, loads: Sequence[Load]) -> None:
        plan = self.plan
        for load in loads:
            load.begin()
        await asyncio.sleep(WARM_UP)
        await self._restart_all(target, loads)
        for load in loads:
            await load.reach(max(plan.requests, load.sent + int(plan.requests * STEADY)))
        await asyncio.gather(*(load.end() for load in loads))

    async def _restart_all(self, target: Target, loads: Sequence[Load]) -> None:
        steady = int(self.plan.requests * STEADY)
        logged = 0
        while self.restarts < self.plan.restarts:
            # Spread over the whole run, if that is longer than what they take.
            share = (self.plan.requests - 2 * steady) * self.restarts // self.plan.restarts
            for load in loads:
                await load.reach(steady + share)
            begun = time.monotonic()
            self.restarts += await target.restart()
            self.windows.append((begun, time.monotonic()))
            if self.restarts // 10 > logged:
                logged = self.restarts // 10
                lost = sum(len(load.lost) for load in loads)
                self.log(f"{self.restarts} restarts, {sum(load.sent for load in loads)} requests, {lost} lost")

    def _outcome(self, kind: str, load: Load, target: Target, begun: float, lasted: float) -> Outcome:
        plan = self.plan
        steady: list[float] = []
        rolling: list[float] = []
        windows = iter(self.windows)
        window = next(windows, None)
        for sample in sorted(load.samples):
            while window is not None and window[1] < sample.begun:
                window = next(windows, None)
            if sample.begun >= begun + WARM_UP:
                (rolling if self._overlaps(sample, window) else steady).append(sample.took)
        return Outcome(
            kind if plan.deployment is None else plan.deployment.label,
            plan.server, plan.delay, load.sent, self.restarts, load.lost, load.again,
            target.unclean, target.stops, steady, rolling, lasted,
        )  # fmt: skip

    @staticmethod
    def _overlaps(sample: Sample, window: tuple[float, float] | None) -> bool:
        return window is not None and sample.begun + sample.took >= window[0]


__all__ = ["FleetError", "Outcome", "Plan", "Pods", "Roll", "Shape", "quantile"]
