"""Metrics of real processes: through a whole stop, and of gunicorn's workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import sys
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.parser import text_string_to_metric_families

from ._client import Address, Connection, get
from ._process import Running, Starter, wait_until

LIVE_APPS = Path(__file__).parent.parent / "live_apps"


def flat(families: Any) -> dict[str, float]:
    """Our samples by what they look like."""
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        found[sample.name.removeprefix("flask_lifecycle_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def scrape(address: Address, path: str = "/metrics") -> dict[str, float]:
    answer = get(address, path)
    assert answer.status == 200
    return flat(text_string_to_metric_families(answer.body.decode()))


def test_workers_of_gunicorn(live: Starter, tmp_path: Path) -> None:
    """In multiprocess mode one scrape has the requests and probes of both workers, and what dies leaves the gauges."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    running = live.start(
        sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", "127.0.0.1:0", "--timeout", "60",
        "--config", str(LIVE_APPS / "gunicorn_conf.py"), "metrics_app:app",
        settings={"LIFECYCLE_METRICS": True},
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    address = ("127.0.0.1", int(running.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1]))
    with Connection(address) as one, Connection(address) as two:  # a sync worker has one request at a time
        one.ask("/gate/both")
        running.wait_event("begin live both")
        two.ask("/gate/both")
        running.wait_event("begin live both", 2)
        wait_until(lambda: merged(directory).get("requests_in_flight") == 2, "the requests of both")
        # A worker writes its figures one after the other.
        wait_until(lambda: merged(directory).get("state{state=READY}") == 2, "the states of both")
        running.open_gate("both")
        assert (one.answer().body, two.answer().body) == (b"passed both", b"passed both")
    for _ in range(10):
        assert get(address, "/livez").status == 200
    wait_until(lambda: scrape(address, "/sum").get("probes_total{code=200,probe=live}") == 10, "the probes of both")
    assert scrape(address, "/sum")["ready"] == 1
    worker = workers(running)[0]
    os.kill(worker, signal.SIGKILL)
    running.wait_log(rf"\(pid:{worker}\) was sent SIGKILL")
    wait_until(lambda: not list(directory.glob(f"gauge_live*_{worker}.db")), "the end of its gauges")
    found = scrape(address, "/sum")
    assert found["probes_total{code=200,probe=live}"] == 10
    running.stop()


def merged(directory: Path) -> dict[str, float]:
    """What the files of both workers have, read from outside, as both are busy; nothing while one is being created."""
    workers: Any = multiprocess.MultiProcessCollector(CollectorRegistry(), str(directory))  # type: ignore[no-untyped-call]
    with contextlib.suppress(struct.error):
        return flat(workers.collect())
    return {}


def workers(running: Running) -> list[int]:
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", running.log)]
