"""Pods that are replaced as Kubernetes does it, under load and each for itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from _fleet.kubelet import Node, Pod, Probe, Spec
from _fleet.processes import wait_until

from .conftest import Measure

pytestmark = pytest.mark.fleet

OPTIONS = "--balancer kubernetes --restarts 3 --rate 100 --lag 0.8"
RUNS = {
    "three pods on waitress": f"{OPTIONS} --server waitress --delay 1 --shape 3 1 0",
    "three pods on gunicorn": f"{OPTIONS} --server gunicorn --delay 1 --shape 3 2 1",
    "one pod, preStop and no delay": f"{OPTIONS} --server waitress --delay 0 --shape 1 1 0 --pre-stop 1",
}


@pytest.fixture(scope="module")
def rolled(measure: Measure) -> dict[str, dict[str, Any]]:
    """Replace all pods once or more, of each deployment."""
    rows = measure(*RUNS.values())
    return {name: row for name, figures in zip(RUNS, rows, strict=True) for row in figures.values()}


@pytest.mark.parametrize("run", list(RUNS))
def test_rolling_updates_lose_nothing(rolled: dict[str, dict[str, Any]], run: str) -> None:
    """Nodes that hear of it up to 0.8 s late send no request to a pod that does not answer it."""
    row = rolled[run]
    assert (row["lost"], row["again"], row["unclean"]) == ([], 0, [])
    assert row["restarts"] >= 3


def test_nodes_that_hear_too_late_are_seen(measure: Measure) -> None:
    """Without any delay requests are lost where a node still sends to a pod that is gone."""
    [rows] = measure(f"{OPTIONS} --server waitress --delay 0 --lag 3")
    [row] = rows.values()
    assert row["lost"] != []


def alone(home: Path, spec: Spec, then: Callable[[Pod], Awaitable[None]]) -> Pod:
    """Start a pod, and do something with it when it is ready."""

    async def run() -> Pod:
        pod = Pod("pod", home, spec, lambda: None)
        try:
            await wait_until(lambda: pod.ready, "the pod is ready")
            await then(pod)
        finally:
            await pod.delete()
        return pod

    return asyncio.run(run())


def test_a_container_that_hangs_is_restarted(tmp_path: Path) -> None:
    """Its liveness fails, SIGTERM changes nothing, SIGKILL does at the end of grace, and it is started again."""

    async def hang(pod: Pod) -> None:
        pod.container.send(signal.SIGSTOP)
        await wait_until(lambda: not pod.ready, "it is not ready any more")
        await wait_until(lambda: pod.ready, "it is ready again")

    quick = Probe("/livez", period=0.1, timeout=0.2)
    spec = Spec("waitress", "0", grace=0.0, readiness=quick._replace(path="/readyz"), liveness=quick)
    pod = alone(tmp_path, spec, hang)
    assert (pod.restarts, pod.ends) == (1, [-signal.SIGKILL, 0])


async def nothing(pod: Pod) -> None:
    """Leave a pod alone."""


def test_a_container_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """A delay that is longer than the grace period of the pod does not hold it up."""
    assert alone(tmp_path, Spec("waitress", "15", grace=1.0), nothing).ends == [-signal.SIGKILL]


def test_pre_stop_comes_before_the_signal(tmp_path: Path) -> None:
    """A command runs to its end, still served, before the container gets SIGTERM."""
    seen = tmp_path / "seen"
    log = tmp_path / "pod.log"
    command = ("sh", "-c", f"sleep 0.3; cat {log} > {seen}")
    assert alone(tmp_path, Spec("waitress", "0", pre_stop=command), nothing).ends == [0]
    assert "-> READY" in seen.read_text()
    assert "shutdown begins" not in seen.read_text()
    assert "shutdown begins" in log.read_text()


def test_a_node_does_not_unlearn() -> None:
    """What comes late and is older than what is known changes nothing; without endpoints nobody is reached."""
    node = Node(1)
    with pytest.raises(ConnectionRefusedError, match="without endpoints"):
        node.route()
    node.learn(2, (("127.0.0.1", 2),))
    node.learn(1, (("127.0.0.1", 1),))
    assert node.route() == ("127.0.0.1", 2)
