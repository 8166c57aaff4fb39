"""Rolling restarts of a fleet under load, and what the clients had of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .balancers import BALANCERS, Balancer
from .load import Load, Sample
from .processes import FleetError, Instance

INSTANCES = 3
WARM_UP = 1.0  # seconds, of which no figure is taken
STEADY = 0.05  # of all requests, before the first restart and after the last


class Plan(NamedTuple):
    """What is measured.

    :param requests: at least so many, of each balancer.
    :param restarts: of one instance after the other.
    :param number: the signal that stops an instance.
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


class Outcome(NamedTuple):
    """What the clients of one balancer had.

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
    steady: list[float]
    rolling: list[float]
    lasted: float


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


@contextlib.asynccontextmanager
async def fleet(plan: Plan) -> AsyncIterator[tuple[list[Instance], list[Balancer]]]:
    """Instances and the balancers in front of them, up and known to each other."""
    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet.")))
        instances = [
            Instance(f"i{n}", home, plan.server, delay=plan.delay, capable=plan.capable) for n in range(INSTANCES)
        ]
        for instance in instances:
            stack.push_async_callback(instance.end)
        await asyncio.gather(*(instance.start() for instance in instances))
        balancers = [BALANCERS[kind](home, instances) for kind in plan.balancers]
        for balancer in balancers:
            stack.push_async_callback(balancer.end)
        await asyncio.gather(*(balancer.start() for balancer in balancers))
        yield instances, balancers


class Roll:
    """One run of a plan."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.tell = tell
        self.windows: list[tuple[float, float]] = []
        self.unclean: list[str] = []

    async def run(self) -> list[Outcome]:
        plan = self.plan
        async with fleet(plan) as (instances, balancers):
            loads = [
                Load([each.route], kept=plan.kept, new=plan.new, rate=plan.rate, seed=plan.seed) for each in balancers
            ]
            for load in loads:
                load.begin()
            begun = time.monotonic()
            await asyncio.sleep(WARM_UP)
            await self._restart_all(instances, balancers, loads)
            for load in loads:
                await load.reach(max(plan.requests, load.sent + int(plan.requests * STEADY)))
            await asyncio.gather(*(load.end() for load in loads))
            lasted = time.monotonic() - begun
        return [self._outcome(each.kind, load, begun, lasted) for each, load in zip(balancers, loads, strict=True)]

    async def _restart_all(
        self, instances: Sequence[Instance], balancers: Sequence[Balancer], loads: Sequence[Load]
    ) -> None:
        steady = int(self.plan.requests * STEADY)
        for number in range(self.plan.restarts):
            # Spread over the whole run, if that is longer than what they take.
            share = (self.plan.requests - 2 * steady) * number // self.plan.restarts
            for load in loads:
                await load.reach(steady + share)
            await self._restart(instances[number % len(instances)], balancers)
            if (number + 1) % 10 == 0:
                lost = sum(len(load.lost) for load in loads)
                self.tell(f"{number + 1} restarts, {sum(load.sent for load in loads)} requests, {lost} lost")

    async def _restart(self, instance: Instance, balancers: Sequence[Balancer]) -> None:
        begun = time.monotonic()
        code = await instance.stop(self.plan.number)
        if code:
            self.unclean.append(f"{instance.name} left with {code}:\n{instance.log[-3000:]}")
        await instance.start()
        await asyncio.gather(*(balancer.wait_back(instance) for balancer in balancers))
        self.windows.append((begun, time.monotonic()))

    def _outcome(self, kind: str, load: Load, begun: float, lasted: float) -> Outcome:
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
            kind, plan.server, plan.delay, load.sent, len(self.windows), load.lost, load.again, self.unclean,
            steady, rolling, lasted,
        )  # fmt: skip

    @staticmethod
    def _overlaps(sample: Sample, window: tuple[float, float] | None) -> bool:
        return window is not None and sample.begun + sample.took >= window[0]


__all__ = ["FleetError", "Outcome", "Plan", "Roll", "quantile"]
