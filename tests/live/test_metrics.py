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
from ._traffic import in_flight

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


def test_scrapes_of_a_whole_stop(live: Starter, server: str) -> None:
    """Before a stop, in its drain and in its hooks a scrape tells where it is, and what it has served."""
    settings = {"LIFECYCLE_METRICS": True, "LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PROBE_HOST": "127.0.0.1"}
    plan = {"hooks": {"shutdown": [["last", "gate", None]]}}
    running = live.serve(server, app="metrics_app.py", settings=settings, plan=plan)
    probes = ("127.0.0.1", int(running.wait_log(r"probe listener on http://127\.0\.0\.1:(\d+)")[1]))
    assert get(running.address, "/readyz").status == 200
    assert get(running.address, "/metrics").status == 404
    with in_flight(running, gate="work"):
        found = scrape(probes)
        assert (found["state{state=READY}"], found["ready"], found["requests_in_flight"]) == (1, 1, 1)
        assert found["check_status{check=disk,status=pass}"] == 1
        assert found["probes_total{code=200,probe=ready}"] >= 1
        assert any(name.startswith("python_info") for name in found)
        running.begin_stop()
        wait_until(lambda: "shutdown_phase_seconds{phase=drain}" in scrape(probes), "the drain")
        found = scrape(probes)
        assert (found["state{state=DRAINING}"], found["ready"], found["requests_in_flight"]) == (1, 0, 1)
        assert 0 < found["shutdown_remaining_seconds"] <= 25
    wait_until(lambda: scrape(probes)["state{state=STOPPING}"] == 1, "the hooks")
    found = scrape(probes)
    assert (found["requests_served_in_drain_total"], found["requests_abandoned_total"]) == (1, 0)
    phases = re.findall(r"shutdown_phase_seconds{phase=([\w ]+)}", " ".join(found))
    assert phases == ["announce", "delay", "stop accepting", "drain", "hooks"]
    running.open_gate("last")
    assert running.wait_gone() == 0


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
