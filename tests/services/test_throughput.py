"""The benchmark of whole servers works: a run of a second each. What it measures is no matter of a test."""

from __future__ import annotations

import subprocess
import sys

from tests._fakes import ROOT
from tests._needs import program


def test_a_short_run() -> None:
    """Each server and load has its line, with figures, and no request fails."""
    program("wrk")
    servers, loads = ("waitress", "waitress-serve"), ("16", "16+300", "16-close")
    few = ("--rounds", "1", "--pairs", "1", "--seconds", "1")
    command = (sys.executable, ROOT / "benchmarks" / "throughput.py", "--servers", *servers, "--loads", *loads, *few)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [tuple(line[:2]) for line in lines] == [(server, load) for server in servers for load in loads]
    for _server, _load, cpu, ratio, *rest in lines:
        assert (float(cpu) > 0, float(ratio) > 0, rest[-1]) == (True, True, "0")  # the last one is what failed
