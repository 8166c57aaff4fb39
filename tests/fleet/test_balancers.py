"""Rolling restarts behind real balancers, as ``benchmarks/fleet.py`` does them, in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "fleet.py"
BALANCERS = ("haproxy", "nginx", "envoy", "traefik")
RESTARTS = 3

pytestmark = pytest.mark.fleet


def measure(home: Path, options: str) -> dict[str, dict[str, Any]]:
    """Run the benchmark; return the figures of each balancer."""
    told = home / "figures.json"
    command = (sys.executable, str(BENCHMARK), "--requests", "500", "--json", str(told), *options.split())
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return {row["balancer"]: row for row in json.loads(told.read_text())}


@pytest.fixture(scope="module", params=["waitress", "gunicorn"])
def rolled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Restart three instances in turn, behind all balancers at once."""
    options = f"--server {request.param} --restarts {RESTARTS} --delay 1 --together --rate 100"
    return measure(tmp_path_factory.mktemp("fleet"), options)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_rolling_restarts_lose_nothing(rolled: dict[str, dict[str, Any]], balancer: str) -> None:
    """Each request gets its whole right answer at the first try, and each instance leaves with 0."""
    row = rolled[balancer]
    assert (row["lost"], row["again"], row["unclean"]) == ([], 0, [])
    assert (row["restarts"], row["requests"] >= 500, row["rolling"] > 0) == (RESTARTS, True, True)


def test_no_delay_behind_haproxy(tmp_path: Path) -> None:
    """Without any delay HAProxy's own retries are enough on waitress."""
    row = measure(tmp_path, "--balancer haproxy --server waitress --restarts 6 --delay 0")["haproxy"]
    assert (row["lost"], row["unclean"], row["restarts"]) == ([], [], 6)


def test_a_loss_is_seen(tmp_path: Path) -> None:
    """Instances that are killed lose what they had begun, and the clients tell."""
    options = "--balancer haproxy --server waitress --restarts 3 --signal SIGKILL --rate 1000"
    row = measure(tmp_path, options)["haproxy"]
    assert row["lost"] != []
    assert row["unclean"] == ["i0 left with -9", "i1 left with -9", "i2 left with -9"]
