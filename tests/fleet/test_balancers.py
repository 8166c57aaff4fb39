"""Rolling restarts behind real balancers, as ``benchmarks/fleet.py`` does them, in short."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Measure

BALANCERS = ("haproxy", "nginx", "envoy", "traefik")
SERVERS = ("waitress", "gunicorn")
RESTARTS = 3

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def rolled(measure: Measure) -> dict[str, dict[str, dict[str, Any]]]:
    """Restart three instances of each server in turn, behind all balancers at once."""
    options = f"--restarts {RESTARTS} --delay 1 --together --rate 100" + "".join(f" --balancer {b}" for b in BALANCERS)
    return dict(zip(SERVERS, measure(*(f"--server {server} {options}" for server in SERVERS)), strict=True))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("balancer", BALANCERS)
def test_rolling_restarts_lose_nothing(
    rolled: dict[str, dict[str, dict[str, Any]]], server: str, balancer: str
) -> None:
    """Each request gets its whole right answer at the first try, and each instance leaves with 0."""
    row = rolled[server][balancer]
    assert (row["lost"], row["again"], row["unclean"]) == ([], 0, [])
    assert (row["restarts"], row["requests"] >= 500, row["rolling"] > 0) == (RESTARTS, True, True)


def test_no_delay_behind_haproxy(measure: Measure) -> None:
    """Without any delay HAProxy's retries are enough on waitress, if they may be at another server."""
    # At the same one, which is the default, they are over after three seconds: too few for a start on a busy machine.
    [rows] = measure("--balancer haproxy --server waitress --restarts 4 --delay 0 --redispatch")
    row = rows["haproxy"]
    assert (row["lost"], row["unclean"], row["restarts"]) == ([], [], 4)


def test_a_loss_is_seen(measure: Measure) -> None:
    """Instances that are killed lose what they had begun, and the clients tell."""
    [rows] = measure("--balancer haproxy --server waitress --restarts 3 --signal SIGKILL --rate 1000 --requests 1500")
    row = rows["haproxy"]
    assert row["lost"] != []
    assert [line.partition(":")[0] for line in row["unclean"]] == [f"i{n} left with -9" for n in range(3)]
