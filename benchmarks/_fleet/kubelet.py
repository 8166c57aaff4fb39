"""What Kubernetes does to a process, in small: probes, restarts, the end of a pod, and nodes that hear of it late.

- A pod is started, asked by its start-up probe, then by readiness and liveness, each by period and threshold. A
  container whose liveness fails, or that has left, is started again.
- A pod that is deleted leaves the endpoints because of that, whatever its readiness says. At the same time, and not
  after, ``preStop`` runs, then SIGTERM is sent, and SIGKILL when the grace period, which began with the deletion,
  is over (two seconds more than nothing, if ``preStop`` has taken all of it).
- Each node has a table of the endpoints of its own, as kube-proxy keeps it, and hears of a change after a time of its
  own within the lag. It decides where a *new* connection goes; a kept one stays where it is.
- A deployment replaces its pods with as many more, and as many fewer, as it may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .load import Route
from .processes import FleetError, Instance, ask, wait_until

_LEAST_GRACE = 2.0  # seconds after preStop; the kubelet's minimumGracePeriodInSeconds
NODES = 8


class Probe(NamedTuple):
    """A probe of a container; ``period`` and ``timeout`` are in seconds."""

    path: str
    period: float = 0.5
    timeout: float = 1.0
    failures: int = 3
    successes: int = 1


class Spec(NamedTuple):
    """What a pod is made from.

    :param pre_stop: seconds to sleep, a command to run, or nothing.
    :param grace: ``terminationGracePeriodSeconds``.
    """

    server: str
    delay: str = "1"
    pre_stop: float | Sequence[str] | None = None
    grace: float = 30.0
    startup: Probe = Probe("/startupz", period=0.1, failures=300)
    readiness: Probe = Probe("/readyz")
    liveness: Probe = Probe("/livez")


class Pod:
    """One pod, and the kubelet that cares for it.

    :param changed: called when it becomes ready or no longer is.
    """

    def __init__(self, name: str, home: Path, spec: Spec, changed: Callable[[], None]) -> None:
        self.container = Instance(name, home, spec.server, delay=spec.delay)
        self.ready = False
        self.restarts = 0
        self.ends: list[int] = []
        self._spec = spec
        self._changed = changed
        self._life = asyncio.create_task(self._live())

    async def delete(self) -> None:
        """End the pod; the caller removes it from the endpoints."""
        # The kubelet still asks for readiness, of which nothing follows any more, and no longer for liveness.
        readiness = asyncio.create_task(self._keep_asking(self._spec.readiness, lambda passes: None))
        self._life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._life
        await self._stop()
        readiness.cancel()

    async def _live(self) -> None:
        while True:
            await self.container.launch()
            await self._until_it_fails()
            self._set_ready(False)
            await self._stop()
            self.restarts += 1

    async def _until_it_fails(self) -> None:
        gone = asyncio.create_task(self.container.gone(None))
        probes = asyncio.create_task(self._probe())
        try:
            await asyncio.wait((gone, probes), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            probes.cancel()

    async def _probe(self) -> None:
        """Return when the container is to be started again."""
        startup = self._spec.startup
        for _ in range(startup.failures):
            if await self._passes(startup):
                break
            await asyncio.sleep(startup.period)
        else:
            return
        failed = asyncio.Event()

        def report(passes: bool) -> None:
            if not passes:
                failed.set()

        asking = (
            asyncio.create_task(self._keep_asking(self._spec.readiness, self._set_ready)),
            asyncio.create_task(self._keep_asking(self._spec.liveness, report)),
        )
        try:
            await failed.wait()
        finally:
            for task in asking:
                task.cancel()

    async def _keep_asking(self, probe: Probe, report: Callable[[bool], None]) -> None:
        """Report each time when enough answers in a row agree."""
        row, last = 0, False
        while True:
            passes = await self._passes(probe)
            row, last = (row + 1 if passes == last else 1), passes
            if row == (probe.successes if passes else probe.failures):
                report(passes)
            await asyncio.sleep(probe.period)

    async def _passes(self, probe: Probe) -> bool:
        status, _ = await ask(self.container.port, probe.path, probe.timeout)
        return 200 <= status < 400

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._changed()

    async def _stop(self) -> None:
        end = time.monotonic() + self._spec.grace
        if self.container.running:
            await self._pre_stop(self._spec.pre_stop)
        if self.container.running:
            self.container.send(signal.SIGTERM)
        try:
            code = await self.container.gone(max(end - time.monotonic(), _LEAST_GRACE))
        except FleetError:
            self.container.send(signal.SIGKILL)
            code = await self.container.gone()
        self.ends.append(code)

    async def _pre_stop(self, hook: float | Sequence[str] | None) -> None:
        """Bounded by the grace period; its result is ignored."""
        if hook is None:
            return
        if isinstance(hook, float):
            await asyncio.sleep(min(hook, self._spec.grace))
            return
        process = await asyncio.create_subprocess_exec(*hook, env={**os.environ, "PORT": str(self.container.port)})
        try:
            await asyncio.wait_for(process.wait(), self._spec.grace)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


class Node:
    """A node: where its clients' new connections go."""

    def __init__(self, seed: int) -> None:
        self.addresses: tuple[tuple[str, int], ...] = ()
        self._version = 0
        self._random = random.Random(seed)

    def learn(self, version: int, addresses: tuple[tuple[str, int], ...]) -> None:
        """Take over the endpoints, unless it has heard of newer ones before."""
        if version > self._version:
            self._version, self.addresses = version, addresses

    def route(self) -> tuple[str, int]:
        if not self.addresses:
            raise ConnectionRefusedError("a service without endpoints")
        return self._random.choice(self.addresses)


class Shape(NamedTuple):
    """How many pods there are, and how many more and fewer there may be while they are replaced."""

    replicas: int = 3
    surge: int = 1
    unavailable: int = 0

    def __str__(self) -> str:
        return f"{self.replicas}+{self.surge}-{self.unavailable}"


class Deployment:
    """Pods that are replaced by others, and the nodes that send to them.

    :param lag: seconds within which a node hears of a change.
    """

    kind = "kubernetes"

    def __init__(self, home: Path, spec: Spec, shape: Shape, *, lag: float, seed: int = 1) -> None:
        self.pods: list[Pod] = []
        self.unclean: list[str] = []
        self.stops: list[float] = []
        self.nodes = [Node(seed + number) for number in range(NODES)]
        self._home = home
        self._spec = spec
        self._shape = shape
        self._lag = lag
        self._random = random.Random(seed)
        self._version = self._count = 0
        self._leaving: set[asyncio.Task[None]] = set()

    def routes(self) -> dict[str, list[Route]]:
        return {self.kind: [node.route for node in self.nodes]}

    async def start(self) -> None:
        for _ in range(self._shape.replicas):
            self._create()
        await self._settle()

    async def restart(self) -> int:
        """Replace all pods, as ``kubectl rollout restart`` does; return how many."""
        replicas, surge, unavailable = self._shape
        old = list(self.pods)
        missing = replicas
        while old or missing:
            while missing and len(self.pods) < replicas + surge:
                self._create()
                missing -= 1
            while old and sum(pod.ready for pod in self.pods) - old[0].ready >= replicas - unavailable:
                self._delete(old.pop(0))
            await asyncio.sleep(0.02)
        await self._settle()
        return replicas

    async def _settle(self) -> None:
        """Wait until every pod is ready, every old one gone and every node knows."""
        await wait_until(lambda: all(pod.ready for pod in self.pods), "all pods are ready")
        await asyncio.gather(*self._leaving)
        await asyncio.sleep(self._lag)

    async def end(self) -> None:
        for pod in self.pods.copy():
            self._delete(pod)
        await asyncio.gather(*self._leaving)

    def _create(self) -> None:
        self._count += 1
        self.pods.append(Pod(f"pod{self._count}", self._home, self._spec, self._publish))

    def _delete(self, pod: Pod) -> None:
        self.pods.remove(pod)
        self._publish()
        task = asyncio.create_task(self._delete_pod(pod))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _delete_pod(self, pod: Pod) -> None:
        begun = time.monotonic()
        await pod.delete()
        self.stops.append(time.monotonic() - begun)
        if pod.ends[-1] or pod.restarts:
            what = f"{pod.container.name} left with {pod.ends[-1]} after {pod.restarts} restarts"
            self.unclean.append(f"{what}:\n{pod.container.log[-3000:]}")

    def _publish(self) -> None:
        self._version += 1
        ready = tuple(("127.0.0.1", pod.container.port) for pod in self.pods if pod.ready)
        for node in self.nodes:
            asyncio.get_running_loop().call_later(self._random.uniform(0, self._lag), node.learn, self._version, ready)
