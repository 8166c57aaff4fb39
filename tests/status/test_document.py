"""The status document: all that an application tells to whoever may see details."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_lifecycle import CheckResult, Lifecycle, RequestInfo
from flask_lifecycle._core.inflight import Load
from tests._fakes import BOUND, FakeServer, LastReport, enter, make_app, state_of

# How many requests and work items are listed, and how many durations of a check are kept.
MOST_LISTED, KEPT_DURATIONS = 50, 30
JSON = {"Accept": "application/json"}


def serve(**config: Any) -> tuple[Flask, Lifecycle]:
    """A testing application that shows its details to everybody."""
    app = make_app(**{"LIFECYCLE_DETAILS": "always", **config})
    return app, Lifecycle(app)


def get(app: Flask, path: str = "/healthcheck?verbose", **headers: str) -> TestResponse:
    return app.test_client().get(path, headers=JSON | headers, buffered=True)


def document_of(app: Flask) -> dict[str, Any]:
    """The document, by the way that everybody takes."""
    found: dict[str, Any] = json.loads(get(app).data)
    return found


def test_the_document_of_an_idle_application() -> None:
    """The document says what the application is, how it is, and that nothing is under way."""
    app, _lifecycle = serve()
    document = document_of(app)
    assert document.pop("application") == {"name": "testing", "host": socket.gethostname(), "pid": os.getpid()}
    assert document.pop("time").endswith("+00:00")
    assert 0 <= document.pop("uptime") < 60
    assert [change["new"] for change in document.pop("transitions")] == ["READY", "pass"]
    assert document.pop("server") == {
        "name": "unknown",
        "means": "no known server detected",
        "guarantee": "started requests",
        "advice": "",
    }
    assert document == {
        "status": "pass",
        "state": "READY",
        "reason": "started",
        "grace_period": 10.0,
        "phase": "",
        "checks": {},
        **dict.fromkeys(("cordon", "remaining", "report", "load", "last_report")),
        **dict.fromkeys(("in_flight", "requests_omitted", "work_omitted"), 0),
        **{key: [] for key in ("phases", "requests", "work", "startup_tasks", "probers")},
    }


@pytest.mark.parametrize("path", ["/healthcheck", "/readyz?verbose", "/healthcheck/db?verbose"])
def test_where_it_is_told(path: str) -> None:
    """It is told by the health check alone, with ?verbose; elsewhere the answers are what they were."""
    app, lifecycle = serve()
    lifecycle.check("db")(lambda: None)
    document = json.loads(get(app, path).data)
    assert set(document) - {"transitions"} == {"status", "state", "reason", "checks"}
    assert set(document["checks"]["db"][0]) == {"componentId", "status", "time", "observedValue", "observedUnit"}


# -- checks -------------------------------------------------------------------------------------------------------


def test_the_past_of_a_check() -> None:
    """A check tells how long its last runs took, oldest first and no more than thirty, and when it changed."""
    app, lifecycle = serve()
    lifecycle.check("db", ttl=0)(lambda: CheckResult("warn", "slow", value=float("nan"), unit="ms"))
    for _ in range(KEPT_DURATIONS + 2):
        get(app)
    engine = state_of(app).health.engine
    [check] = document_of(app)["checks"]["db"]
    kept = engine.histories()["db"]
    assert check["durations"] == [round(duration, 6) for duration in kept.durations]
    assert len(check["durations"]) == KEPT_DURATIONS
    assert check["duration"] == check["durations"][-1]
    assert (check["status"], check["output"], check["observedValue"]) == ("warn", "slow", "nan")
    assert check["changed"]["age"] >= check["age"] >= 0
    assert time.time() - kept.changed < 60


def test_checks_that_the_state_keeps_from_being_asked() -> None:
    """Where the state alone decides, the checks are shown as they were last, and none is run."""
    app, lifecycle = serve()
    answers = [CheckResult("fail", "down")]
    lifecycle.check("db", ttl=0, scope="shared")(answers.pop)
    lifecycle.check("never asked", ttl=0)(lambda: None)
    get(app, "/work")
    get(app, "/healthcheck/db")
    lifecycle.set_not_ready("maintenance")
    document = document_of(app)
    assert (document["status"], document["reason"]) == ("fail", "maintenance")
    assert {name: (check["status"], check["output"]) for name, [check] in document["checks"].items()} == {
        "db": ("warn", "down")
    }


@pytest.fixture
def free() -> Iterator[threading.Event]:
    """What a hanging check waits for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


# -- what is under way --------------------------------------------------------------------------------------------


def test_a_flood_of_requests() -> None:
    """Of ten thousand requests in flight the oldest fifty are listed with what is known, the others are counted."""
    app, _lifecycle = serve()
    for number in range(10_000):
        enter(state_of(app).ledger, f"/{number}")
    document = document_of(app)
    assert [request["path"] for request in document["requests"]] == [f"/{n}" for n in range(MOST_LISTED)]
    assert (document["in_flight"], document["requests_omitted"]) == (10_000, 10_000 - MOST_LISTED)
    request = document["requests"][0]
    assert request.pop("age") >= 0
    assert request == {"method": "GET", "path": "/0", "thread": "MainThread", "stage": "running"}


def test_what_the_server_holds() -> None:
    """What waits in the server is listed with what runs, oldest first, and the load of its pool beside it.

    Where several applications share a process, each tells of its own requests alone: who may see them may differ.
    """
    app, _lifecycle = serve()
    enter(state_of(app).ledger, "/running")
    server = FakeServer()
    server.pool = Load(3, 4, 4, 1.23)
    server.left = [RequestInfo("POST", "/queued", 12.34, "", "queued")]
    process = state_of(app).process
    process.shutdown.attach(server)
    document = document_of(app)
    assert document["load"] == {"queued": 3, "threads": 4, "busy": 4, "oldest": 1.2}
    assert document["requests"][0] == {"method": "POST", "path": "/queued", "age": 12.3, "stage": "queued"}
    assert [request["path"] for request in document["requests"]] == ["/queued", "/running"]
    assert document["in_flight"] == 1
    other, _lifecycle = serve()
    process.join(state_of(other), ())
    assert [request["path"] for request in document_of(app)["requests"]] == ["/running"]


# -- the stop -----------------------------------------------------------------------------------------------------


def test_work_that_is_no_request() -> None:
    """The document lists work items, oldest first, and the startup tasks that have not ended."""
    app, lifecycle = serve()
    for number in range(MOST_LISTED + 2):
        lifecycle.work(f"import {number}", file=number)
    with lifecycle.startup_task("warm the cache"):
        document = document_of(app)
    item = document["work"][0]
    assert item.pop("age") >= 0
    assert item == {"name": "import 0", "thread": "MainThread", "info": {"file": 0}}
    assert (len(document["work"]), document["work_omitted"]) == (MOST_LISTED, 2)
    assert [task["name"] for task in document["startup_tasks"]] == ["warm the cache"]


def test_the_report_of_the_last_shutdown() -> None:
    """The report of the last shutdown has no stacks, and its lists are short."""
    app, _lifecycle = serve()
    lost = [{"path": "/a", "stack": "File 1"}] + [{"path": "/b"}, "odd"] * MOST_LISTED
    LastReport(app, {"reason": "SIGTERM", "abandoned": lost, "served": 3})
    report = document_of(app)["last_report"]
    assert (report["reason"], report["served"], report["abandoned"][0]) == ("SIGTERM", 3, {"path": "/a"})
    assert len(report["abandoned"]) == MOST_LISTED


def test_the_cordon_is_told(tmp_path: Path) -> None:
    """An operator's cordon is told with who asked for it and what is left of it."""
    app, _lifecycle = serve(LIFECYCLE_CONTROL_DIR=str(tmp_path))
    assert document_of(app)["cordon"] is None
    control = state_of(app).control
    assert control is not None
    control.cordon(600, "alice", "test")
    cordon = document_of(app)["cordon"]
    assert 500 < cordon.pop("remaining") <= 600
    assert cordon == {"by": "alice", "seconds": 600}
    assert control.uncordon("bob", "test")


def test_a_check_that_hangs_while_nobody_asks_it(free: threading.Event) -> None:
    """A check that was hanging when it was asked last is shown as hanging, and since when; before, it has no past."""
    app, lifecycle = serve(LIFECYCLE_PROBE_TIMEOUT=0.001)
    lifecycle.check("slow", timeout=BOUND)(lambda: free.wait(BOUND))
    lifecycle.check("db", timeout=0.001)(lambda: free.wait(BOUND))
    assert state_of(app).health.known() == ()
    [check] = document_of(app)["checks"]["slow"]
    assert (check["durations"], "changed" in check) == ([], False)
    lifecycle.set_not_ready()
    [check] = document_of(app)["checks"]["db"]
    assert check["output"].startswith("hanging since 0.")
    assert check["durations"] == []
    assert "changed" in check
