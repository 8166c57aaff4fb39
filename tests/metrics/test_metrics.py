"""The table of metrics, Prometheus and OpenTelemetry."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client.values
import pytest
from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client import multiprocess as multiprocess_mode
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from werkzeug.test import Client, TestResponse

from flask_lifecycle import Lifecycle, State
from flask_lifecycle._core.inflight import Load
from flask_lifecycle._core.shutdown import StopRequest
from flask_lifecycle._servers.discovery import instances
from flask_lifecycle.metrics import METRICS, MOST_SCRAPES, LifecycleCollector, Metrics, instrument
from tests._fakes import (
    BOUND,
    ROOT,
    FakeServer,
    LastReport,
    ManualClock,
    StuckLedger,
    enter,
    finish,
    get,
    in_child,
    listener_of,
    make_app,
    running,
    serve,
    state_of,
    until,
    use_clock,
    whole,
)

# These have no types.
MultiProcessValue: Any = prometheus_client.values.MultiProcessValue
MOST_NAMES = 50  # of work items
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def with_metrics(**config: Any) -> tuple[Flask, Lifecycle]:
    """An application that serves metrics."""
    app, lifecycle = serve(LIFECYCLE_METRICS=True, LIFECYCLE_PROBE_PORT=0, **config)
    state_of(app).open = lambda: None  # type: ignore[method-assign]  # the tests call what the listener serves
    return app, lifecycle


def scrape(app: Flask, **arguments: Any) -> TestResponse:
    """Ask the probe listener for the metrics."""
    return Client(listener_of(app)).open("/metrics", **arguments)


def flat(families: Any) -> dict[str, float]:
    """Samples by name and labels."""
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("flask_lifecycle_") + (f"{{{labels}}}" if labels else "")
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


def metrics_of(*subjects: Any) -> dict[str, float]:
    """The metrics that a collector gives for them."""
    return flat(LifecycleCollector(*subjects).collect())


def some(found: dict[str, float], start: str) -> dict[str, float]:
    """Those that begin with this, without it."""
    return {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Any) -> None:
    """Names are in snake case and base units, counters end in _total and nothing else does, labels are not reserved."""
    name = metric.full_name
    assert re.fullmatch(r"flask_lifecycle(_[a-z]+)+", name)
    assert metric.kind in ("gauge", "counter")
    assert name.endswith("_total") == (metric.kind == "counter")
    assert name.removesuffix("_total").endswith("_seconds") == (metric.unit == "s")
    assert not re.search(r"_(ms|milli\w*|minutes|percent|count|sum|bucket|info|created|gauge|counter)(_|$)", name)
    assert not {"le", "quantile", "job", "instance", "app", "pid"} & set(metric.labels)
    assert re.fullmatch(r"[A-Z].*\.", metric.help)
    assert metric.workers in ("sum", "min", "max")
    assert metric.kind == "gauge" or metric.workers == "sum"


def test_the_page_lists_the_table() -> None:
    """The page on metrics lists every metric with its type, labels and meaning, in the order of the table."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(flask_lifecycle_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert len({metric.full_name for metric in METRICS}) == len(METRICS)
    assert listed == [(metric.full_name, metric.kind, metric.labels, metric.help) for metric in METRICS]


def test_state_readiness_and_checks() -> None:
    """The current state is 1, the others are 0; ready depends on it and on the last results of the checks."""
    # A check that has run has a status, a duration and the time of its last change; another has none.
    app, lifecycle = serve()
    broken: list[bool] = []
    lifecycle.check("db", ttl=0)(lambda: not broken)
    lifecycle.check("cache", critical=False)(lambda: False)
    lifecycle.check("idle", groups=("live",))(lambda: None)
    for state in State:
        state_of(app).machine.state = state
        found = metrics_of(lifecycle)
        assert some(found, "state") == {f"{{state={each.value}}}": float(each is state) for each in State}
        assert found["ready"] == (state is State.READY)
    state_of(app).machine.state = State.READY
    broken.append(True)
    get(app, "/readyz")
    found = metrics_of(lifecycle)
    assert found["ready"] == 0
    statuses = some(found, "check_status")
    shown = {"{check=db,status=fail}", "{check=cache,status=warn}"}
    assert ({name for name, value in statuses.items() if value}, len(statuses)) == (shown, 6)
    assert set(some(found, "check_duration_seconds")) == {"{check=db}", "{check=cache}"}
    histories = state_of(app).health.engine.histories()
    changed = {f"{{check={name}}}": histories[name].changed for name in ("db", "cache")}
    assert some(found, "check_last_change_timestamp_seconds") == changed


def test_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request counts until its body is closed, and the oldest has its age; in a drain it is served or refused."""
    app, lifecycle = serve()
    clock = ManualClock()
    ledger = state_of(app).ledger
    ledger.clock = clock.monotonic
    get(app, "/work")
    assert metrics_of(lifecycle)["oldest_request_seconds"] == 0
    first = enter(ledger)
    clock.advance(3)
    second = enter(ledger)
    found = metrics_of(lifecycle)
    assert (found["requests_in_flight"], found["oldest_request_seconds"]) == (2, 3)
    first.close()
    state_of(app).begin_drain(StopRequest("test"))
    second.close()
    state_of(app).refuse()
    assert get(app, "/work").status_code == 503
    found = metrics_of(lifecycle)
    names = ("requests_in_flight", "requests_served_in_drain_total", "requests_refused_total")
    assert [found[name] for name in names] == [0, 1, 1]
    # Between a refusal and its end the difference of the two counts is one less; the counter keeps its value.
    for served, shown in ((5, 5), (4, 5), (6, 6)):
        monkeypatch.setattr(type(state_of(app)), "served", served)
        assert metrics_of(lifecycle)["requests_served_in_drain_total"] == shown


def test_a_scrape_runs_no_check_and_waits_for_none() -> None:
    """A scrape beside a check that hangs is answered at once, starts nothing, and is not counted as a probe."""
    app, lifecycle = with_metrics(LIFECYCLE_PROBE_TIMEOUT=0.01)
    go_on, ran = threading.Event(), list[str]()
    scrape(app)
    assert lifecycle.state is State.STARTING
    assert some(metrics_of(lifecycle), "probes_total") == {}

    @lifecycle.check("db", timeout=BOUND)
    def db() -> None:
        ran.append("db")
        go_on.wait(BOUND)

    get(app, "/work")
    metrics_of(lifecycle)
    assert ran == []
    get(app, "/readyz")
    assert some(metrics_of(lifecycle), "check_status") == {}
    assert some(metrics_of(lifecycle), "probes_total") == {"{code=503,probe=ready}": 1}
    assert ran == ["db"]
    go_on.set()
    until(lambda: bool(state_of(app).health.engine.known()))
    assert metrics_of(lifecycle)["check_status{check=db,status=pass}"] == 1


def test_work_and_startup_tasks() -> None:
    """Work items are counted by name, with the age of the oldest, and startup tasks that run or have failed."""
    _app, lifecycle = serve()
    item = lifecycle.work("import")
    with lifecycle.work("export"), lifecycle.work("export"):
        assert some(metrics_of(lifecycle), "work_items") == {"{name=import}": 1, "{name=export}": 2}
    assert some(metrics_of(lifecycle), "work_items") == {"{name=import}": 1, "{name=export}": 0}
    assert metrics_of(lifecycle)["oldest_work_seconds"] > 0
    item.done()
    assert metrics_of(lifecycle)["oldest_work_seconds"] == 0
    first, second = lifecycle.startup_task("cache"), lifecycle.startup_task("schema")
    assert metrics_of(lifecycle)["startup_tasks_pending"] == 2
    second.done()
    with pytest.raises(ValueError, match=r"^boom$"), first:
        raise ValueError("boom")
    found = metrics_of(lifecycle)
    assert (found["startup_tasks_pending"], found["hooks_total{kind=task,outcome=failed}"]) == (0, 1)


def test_names_of_work_are_bounded() -> None:
    """Only the first names of work items are distinguished, in the life of a process; the others are counted."""
    _app, lifecycle = serve()
    for number in range(MOST_NAMES - 1):
        with lifecycle.work(f"job {number}"):
            metrics_of(lifecycle)
    long = "x" * 1000
    with contextlib.ExitStack() as stack:
        for name in (long, "one", "two", "job 0"):
            stack.enter_context(lifecycle.work(name))
        found = some(metrics_of(lifecycle), "work_items")
    assert len(found) == MOST_NAMES + 1
    assert (found["{name=other}"], found["{name=job 0}"], found[f"{{name={long[:100]}}}"]) == (2, 1, 1)


def test_the_server_s_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's pool is shown if it is known; a scrape of a serving application searches for the server once."""
    app, lifecycle = serve()
    searches: list[str] = []
    monkeypatch.setattr(state_of(app).serving, "find", lambda: searches.append("searched"))
    assert some(metrics_of(lifecycle), "server_") == {}
    assert searches == []
    get(app, "/work")
    for _ in range(3):
        metrics_of(lifecycle)
    assert searches == ["searched"]
    server = state_of(app).process.shutdown.server = FakeServer()
    server.pool = Load(3, 8, 5, 1.0)
    assert some(metrics_of(lifecycle), "server_") == {"requests_queued": 3, "threads": 8, "threads_busy": 5}
    server.pool = Load(0)
    assert some(metrics_of(lifecycle), "server_") == {"requests_queued": 0}


def test_the_metrics_of_a_shutdown() -> None:
    """A shutdown has metrics of its phases, its hooks and what it left behind; a current phase its duration so far."""
    app, lifecycle = serve(LIFECYCLE_SHUTDOWN_DELAY=4.0)
    lifecycle.on_shutdown(lambda: None, name="good")  # type: ignore[call-overload]
    lifecycle.on_shutdown(lambda: 1 / 0, name="bad")  # type: ignore[call-overload]
    get(app, "/work")
    before = metrics_of(lifecycle)
    assert some(before, "shutdown_") == {}
    assert before["requests_abandoned_total"] == before["work_abandoned_total"] == 0
    clock = ManualClock()
    use_clock(app, clock)
    state_of(app).process.shutdown.server = FakeServer()
    state_of(app).ledger = StuckLedger(clock)
    held = enter(state_of(app).ledger)
    lifecycle.work("import")
    lifecycle.shutdown(wait=False)  # for a request of this thread
    assert clock.waits.get(timeout=BOUND) == 4.0
    clock.advance(1.5)
    found = metrics_of(lifecycle)
    assert (found["shutdown_phase_seconds{phase=delay}"], found["shutdown_remaining_seconds"]) == (1.5, 8.5)
    clock.advance(2.5)
    report = finish(state_of(app).process.shutdown)
    found = metrics_of(lifecycle)
    phases = {f"{{phase={phase.name}}}": phase.duration for phase in report.phases}
    assert some(found, "shutdown_phase_seconds") == phases
    assert found["shutdown_remaining_seconds"] == lifecycle.remaining()
    assert (found["requests_abandoned_total"], found["work_abandoned_total"]) == (1, 1)
    held.close()
    assert some(found, "hooks_total") == {"{kind=shutdown,outcome=ok}": 1, "{kind=shutdown,outcome=failed}": 1}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            {"exit_code": 1, "duration": 2.5, "abandoned": [{"path": "/"}], "more_abandoned": 7},
            {"exit_code": 1, "duration_seconds": 2.5, "requests_abandoned": 8},
        ),
        ({"exit_code": "1", "duration": None, "abandoned": [1], "more_abandoned": []}, {"requests_abandoned": 1}),
        ({}, {}),
        (None, {}),
    ],
)
def test_the_previous_shutdown(report: Any, expected: dict[str, float]) -> None:
    """The numbers of the previous process's shutdown report are shown."""
    app, lifecycle = serve()
    LastReport(app, report)
    assert some(metrics_of(lifecycle), "previous_shutdown_") == expected


HOSTILE = 'db\n"} 1\n# TYPE x\\ \udcff \N{SNOWMAN}'


@pytest.mark.parametrize(
    ("accept", "parse"),
    [("", read_text), (OPENMETRICS, read_openmetrics), (f"{OPENMETRICS},{'a/b,' * 256}", read_text)],
    ids=["text", "open", "too long"],
)
def test_both_formats(accept: str, parse: Any) -> None:
    """Both formats can be parsed, also with names that contain line ends or quotes; a long header is not."""
    app, lifecycle = with_metrics()
    lifecycle.check(HOSTILE)(lambda: False)
    with lifecycle.work(HOSTILE):
        metrics_of(lifecycle)
    get(app, "/work")
    get(app, "/readyz")
    lifecycle.shutdown()
    response = scrape(app, headers={"Accept": accept})
    wanted = "text/plain" if parse is read_text else "application/openmetrics-text"
    assert response.content_type.partition(";")[0] == wanted
    ours = [family for family in parse(response.get_data(as_text=True)) if family.name.startswith("flask_lifecycle")]
    found = flat(ours)
    name = 'db\n"} 1\n# TYPE x\\ \\udcff \N{SNOWMAN}'
    assert found[f"check_status{{check={name},status=fail}}"] == 1
    assert found[f"work_items{{name={name}}}"] == 0
    exact = {metric.full_name.removesuffix("_total") for metric in METRICS}
    assert {family.name.removesuffix("_total") for family in ours} == exact


def test_collectors_and_their_subjects() -> None:
    """A registry takes one collector, before there is an application, and no second; a subject needs a lifecycle."""
    lifecycle = Lifecycle()
    registry = CollectorRegistry(auto_describe=True)
    registry.register(LifecycleCollector(lifecycle))
    assert flat(registry.collect()) == {}
    lifecycle.init_app(app := make_app())
    assert metrics_of(app).keys() == metrics_of(lifecycle).keys() == flat(registry.collect()).keys()
    with pytest.raises(ValueError, match=r"^Duplicated timeseries"):
        registry.register(LifecycleCollector(lifecycle))
    subjects: list[Any] = [Flask("bare"), None, 7]
    for subject in subjects:
        message = f"Metrics need a lifecycle, which {subject!r} does not have; "
        message += "give a Lifecycle, or an application after init_app."
        for make in (LifecycleCollector, instrument):
            with pytest.raises(TypeError, match=whole(message)):
                make(subject)


def test_several_applications() -> None:
    """Each application has its own metrics under its name; those of the shutdown appear once, without a name."""
    lifecycle = Lifecycle()
    apps = [Flask("api"), Flask("api-2"), Flask("api"), Flask("admin")]
    for app in apps:
        app.testing = True
        lifecycle.init_app(app)
    enter(state_of(apps[2]).ledger)
    found = metrics_of(lifecycle)
    in_flight = some(found, "requests_in_flight")
    assert in_flight == {"{app=api}": 0, "{app=api-2}": 0, "{app=api-3}": 1, "{app=admin}": 0}
    assert found["requests_abandoned_total"] == 0
    assert found["state{app=admin,state=STARTING}"] == 1


def test_the_path_of_metrics() -> None:
    """The probe listener answers GET and HEAD of /metrics, with and without a slash; the main port has no such path."""
    app, _ = with_metrics()
    response = scrape(app)
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    assert int(response.headers["Content-Length"]) == len(response.data)
    assert Client(listener_of(app)).get("/metrics/").status_code == 200
    assert get(app, "/metrics").status_code == 404
    head = scrape(app, method="HEAD")
    assert (head.status_code, head.data, int(head.headers["Content-Length"]) > 1000) == (200, b"", True)
    refused = scrape(app, method="POST")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert refused.data == b"metrics answer GET and HEAD\n"
    without, _ = serve(LIFECYCLE_PROBE_PORT=0)
    assert (scrape(without).status_code, "metrics" in state_of(without).features) == (404, False)


@pytest.fixture
def registered() -> Iterator[Any]:
    """Register collectors in the default registry until the test is over."""
    given: list[Any] = []

    def register(collector: Any) -> None:
        if inspect.isfunction(collector):
            collector = type("Custom", (), {"describe": list, "collect": staticmethod(collector)})()
        REGISTRY.register(collector)
        given.append(collector)

    yield register
    for collector in given:
        REGISTRY.unregister(collector)


def test_the_default_registry(registered: Any) -> None:
    """The application's metrics in the default registry are scraped with ours; every metric appears once."""
    app, lifecycle = with_metrics()
    registered(own := Gauge("orders_open", "Orders.", registry=None))
    own.set(7)
    found = flat(read_text(scrape(app).get_data(as_text=True)))
    assert (found["orders_open"], found["state{state=STARTING}"]) == (7, 1)
    registered(LifecycleCollector(lifecycle))
    text = scrape(app).get_data(as_text=True)
    assert text.count("# TYPE flask_lifecycle_state gauge") == 1
    assert flat(read_text(text)).keys() == found.keys()


def test_a_collector_that_raises(registered: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A collector that raises does not hide our metrics, and is logged once."""

    def collect() -> Iterator[Any]:
        yield GaugeMetricFamily("half", "Half of it.", 1)
        raise ValueError("boom")

    app, _ = with_metrics()
    registered(collect)
    for _ in range(2):
        found = flat(read_text(scrape(app).get_data(as_text=True)))
        assert found["state{state=STARTING}"] == 1
        assert "half" not in found
    [record] = caplog.records
    assert record.getMessage() == "a collector of the application failed; /metrics shows only the lifecycle's metrics"
    assert record.exc_info is not None


def test_a_collector_that_hangs(registered: Any) -> None:
    """A limited number of scrapes hang at a time; more are refused, and probes are still answered."""
    go_on, inside = threading.Event(), threading.Semaphore(0)

    def collect() -> list[Any]:
        inside.release()
        go_on.wait(BOUND)
        return []

    app, _ = with_metrics()
    registered(collect)
    with contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        for _ in range(MOST_SCRAPES):
            stack.enter_context(running(lambda: scrape(app)))
            assert inside.acquire(timeout=BOUND)
        refused = scrape(app)
        assert (refused.status_code, refused.data) == (503, b"other scrapes have not ended\n")
        assert Client(listener_of(app)).get("/livez").status_code == 200
        state_of(app).after_fork()  # in a child, which none of those threads is in
        go_on.set()
        assert scrape(app).status_code == 200
    assert scrape(app).status_code == 200


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, init_app, the collector and instrument name the extra to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    message = "prometheus_client is not installed; install it with: pip install 'flask-lifecycle[prometheus]'"
    app = make_app(LIFECYCLE_METRICS=True, LIFECYCLE_PROBE_PORT=0)
    with pytest.raises(RuntimeError, match=whole(message)):
        Lifecycle(app)
    assert "lifecycle" not in app.extensions
    with pytest.raises(RuntimeError, match=whole(message)):
        LifecycleCollector(Lifecycle())
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    message = "OpenTelemetry is not installed; install it with: pip install 'flask-lifecycle[opentelemetry]'"
    with pytest.raises(RuntimeError, match=whole(message)):
        instrument(Lifecycle())


@pytest.fixture
def multiprocess(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """prometheus_client as it is when the variable was set before it was imported."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    files: list[Any] = []  # which not every version can close itself
    dictionary: Any = prometheus_client.values.MmapedDict  # type: ignore[attr-defined]

    def keep(*arguments: Any) -> Any:
        files.append(dictionary(*arguments))
        return files[-1]

    monkeypatch.setattr(prometheus_client.values, "MmapedDict", keep)
    monkeypatch.setattr(prometheus_client.values, "ValueClass", MultiProcessValue())
    yield tmp_path
    for metrics in instances(Metrics):
        metrics.stop()
    for file in files:
        file.close()


def merged(app: Flask) -> dict[str, float]:
    """The metrics of all workers, added up; a worker that has begun writes its own first."""
    return flat(metrics_feature(app).collect())


def metrics_feature(app: Flask) -> Metrics:
    metrics = state_of(app).features["metrics"]
    assert isinstance(metrics, Metrics)
    return metrics


def begin(**config: Any) -> tuple[Flask, Metrics]:
    """An application with its metrics as in a process that serves."""
    app, _ = serve(LIFECYCLE_METRICS=True, **config)
    metrics_feature(app).begin()
    return app, metrics_feature(app)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lifecycle-metrics"]


def test_metrics_of_all_workers_are_served(multiprocess: Path) -> None:
    """/metrics shows what all workers have written, also from a worker that has not started its own writer."""
    # A gauge that is gone is 0 in the files, and a counter keeps its value.
    app, _ = with_metrics()
    Gauge("orders_open", "Orders.", registry=None, multiprocess_mode="livesum").set(7)
    assert flat(read_text(scrape(app).get_data(as_text=True))) == {"orders_open": 7}
    for _ in range(2):
        metrics_feature(app).begin()
        assert len(threads()) == 1
    server = state_of(app).process.shutdown.server = FakeServer()
    server.pool = Load(3, 8)
    get(app, "/livez")
    request = enter(state_of(app).ledger)
    text = scrape(app).get_data(as_text=True)
    found = flat(read_text(text))
    assert (found["requests_in_flight"], found["server_threads"]) == (1, 8)
    assert "python_info" not in text
    request.close()
    server.pool = Load(0)
    get(app, "/livez")
    for _ in range(2):
        found = merged(app)
        assert (found["server_threads"], found["probes_total{code=200,probe=live}"]) == (0, 2)


def test_the_last_write_of_a_worker(multiprocess: Path) -> None:
    """A process writes once more at its end, and ends its thread; twice is harmless."""
    app, metrics = begin()
    get(app, "/work")
    shutdown = state_of(app).process.shutdown
    shutdown.begin(StopRequest("over"))
    finish(shutdown)
    metrics.stop()
    metrics.state_changed(State.STOPPED, "over")
    found = merged(app)
    assert (found["state{state=STOPPED}"], found["state{state=READY}"]) == (1, 0)
    assert "shutdown_phase_seconds{phase=hooks}" in found


def test_a_forked_child_writes_nothing_by_itself(multiprocess: Path) -> None:
    """A child that does not serve has no writer."""
    app, metrics = begin()
    until(lambda: any(multiprocess.iterdir()))

    def child() -> int:
        state_of(app).after_fork()
        metrics.state_changed(State.READY, "started")
        metrics.stop()
        return len(threads()) + len(list(multiprocess.glob(f"*_{os.getpid()}.db")))

    assert in_child(child) == 0
    metrics.stop()
    metrics.begin()  # of another run of the same process
    assert threads() == ["lifecycle-metrics"]


def test_files_that_cannot_be_written(
    multiprocess: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer that fails logs it once, and tries again."""
    failed = threading.Semaphore(0)

    def fail(*arguments: Any) -> Any:
        failed.release()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(prometheus_client.values, "MmapedDict", fail)
        app, metrics = begin()
        for _ in range(2):
            assert failed.acquire(timeout=BOUND)
            metrics.state_changed(State.READY, "started")
    until(lambda: any(multiprocess.iterdir()))
    [record] = caplog.records
    assert record.getMessage() == "writing the metrics of this worker failed; will retry"
    assert record.levelno == logging.ERROR
    assert merged(app)["state{state=STARTING}"] == 1


def test_a_file_that_is_just_being_made(multiprocess: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape between the creation of a worker's file and the first write to it reads again."""
    app, _ = serve(LIFECYCLE_METRICS=True)
    answers: list[Any] = [struct.error("0 bytes"), struct.error("0 bytes"), ["family"]]

    def collect(workers: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(multiprocess_mode.MultiProcessCollector, "collect", collect)
    assert list(metrics_feature(app).collect()) == ["family"]
    answers[:] = [struct.error("0 bytes")] * 10
    with pytest.raises(struct.error, match=r"^0 bytes$"):
        list(metrics_feature(app).collect())


def test_opentelemetry_has_the_same_metrics() -> None:
    """The instruments have the names, units and values of the table; what adds up is a sum, what grows a counter."""
    app, lifecycle = serve()
    reader = InMemoryMetricReader()
    instrument(lifecycle, MeterProvider([reader]))
    lifecycle.check("db")(lambda: False)
    get(app, "/work")
    get(app, "/readyz")
    lifecycle.work("import")
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, Any] = {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    known = {f"flask_lifecycle.{metric.name}": metric for metric in METRICS}
    assert found.keys() <= known.keys()
    assert {(name, m.unit, m.description) for name, m in found.items()} == {
        (name, known[name].unit, known[name].help) for name in found
    }
    (probes,) = found["flask_lifecycle.probes"].data.data_points
    assert (probes.attributes, probes.value) == ({"probe": "ready", "code": "503"}, 1)
    assert found["flask_lifecycle.probes"].data.is_monotonic
    assert not found["flask_lifecycle.requests_in_flight"].data.is_monotonic
    assert not hasattr(found["flask_lifecycle.ready"].data, "is_monotonic")
    points = [len(found[f"flask_lifecycle.{name}"].data.data_points) for name in ("state", "check_status")]
    assert points == [6, 3]


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path of the metrics is taken, where there are any; a missing directory of multiprocess mode is rejected."""
    _app, lifecycle = with_metrics()
    with pytest.raises(ValueError, match=r"^There is a probe at '/metrics' already; "):
        lifecycle.group("metrics", path="/metrics")
    _app, other = serve()
    other.group("metrics", path="/metrics")
    missing = tmp_path / "missing"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(missing))
    message = f"'PROMETHEUS_MULTIPROC_DIR' is '{missing}', which is not a directory; create an empty one before the "
    message += "workers start."
    with pytest.raises(ValueError, match=whole(message)):
        serve(LIFECYCLE_METRICS=True)
