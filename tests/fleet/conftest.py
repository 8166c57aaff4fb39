"""Short runs of ``benchmarks/fleet.py`` for the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "fleet.py"
BOUND = 110.0  # seconds

Measure = Callable[..., list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Run the benchmark with each of some options, at the same time; return the figures by balancer."""

    def run(*runs: str) -> list[dict[str, dict[str, Any]]]:
        files = [tmp_path_factory.mktemp("fleet") / "figures.json" for _ in runs]
        started = [
            subprocess.Popen(
                (sys.executable, str(BENCHMARK), "--requests", "500", "--json", str(file), *options.split()),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for options, file in zip(runs, files, strict=True)
        ]
        told = []
        try:
            told = [process.communicate(timeout=BOUND)[0] for process in started]
        finally:
            for process in started:
                process.terminate()  # it ends what it has started
                process.communicate()
        assert [process.returncode for process in started] == [0] * len(runs), "\n".join(told)
        return [{row["balancer"]: row for row in json.loads(file.read_text())} for file in files]

    return run
