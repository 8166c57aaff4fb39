"""The benchmark of whole servers works: a run of a second each. What it measures is no matter of a test."""

from __future__ import annotations

import os
import subprocess
import sys

from tests._fakes import ROOT
from tests._needs import program

SCRIPT = str(ROOT / "benchmarks" / "throughput.py")


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark to its end."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_short_run() -> None:
    """Each server and load has its line, with figures, and no request fails."""
    program("wrk")
    few = ("--rounds", "1", "--pairs", "1", "--seconds", "1")
    done = run("--servers", "waitress", "waitress-serve", "--loads", "16", "16+300", "16-close", *few)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        [server, load] for server in ("waitress", "waitress-serve") for load in ("16", "16+300", "16-close")
    ]
    for _server, _load, cpu, ratio, *rest in lines:
        assert float(cpu) > 0
        assert float(ratio) > 0
        assert rest[-1] == "0"  # failed


def test_without_wrk() -> None:
    """Where wrk is missing, one sentence says so and how to get it."""
    done = run(PATH="")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "This benchmark needs 'wrk', which makes the load; on Debian: apt install wrk\n"
