"""The status document, and the JSON Schema of the documentation, which all answers of probes follow."""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle, RequestInfo
from flask_lifecycle._core.inflight import Load
from tests import _fakes
from tests._fakes import BOUND, ROOT, FakeServer, LastReport, enter, get, raiser, state_of

SCHEMA = json.loads((ROOT / "docs" / "probes.schema.json").read_text(encoding="utf-8"))
# How many requests and work items are listed, and how many durations of a check are kept.
MOST_LISTED, KEPT_DURATIONS = 50, 30
JSON = {"Accept": "application/json"}


def closed(schema: Any) -> Any:
    """The schema without its permission of unknown keys, so that a key it does not describe is an error."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    known = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {key: closed(value) for key, value in schema.items()} | known


VALIDATOR = Draft202012Validator(closed(SCHEMA))


serve = functools.partial(_fakes.serve, LIFECYCLE_DETAILS="always")


def document_of(app: Flask, path: str = "/healthcheck?verbose") -> dict[str, Any]:
    """The answer to a probe, which follows the schema."""
    answer = get(app, path, headers=JSON)
    document: dict[str, Any] = json.loads(answer.data)
    VALIDATOR.validate(document)
    return document


def test_the_document_of_an_idle_application() -> None:
    """The document has the application and its state, and nothing is under way."""
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


def test_the_past_of_a_check() -> None:
    """A check has the durations of its last thirty runs, oldest first, and the time of its last change."""
    app, lifecycle = serve()
    lifecycle.check("db", ttl=0)(lambda: CheckResult("warn", "slow", value=float("nan"), unit="ms"))
    for _ in range(KEPT_DURATIONS + 2):
        found = document_of(app, "/healthcheck/db?verbose")
        assert set(found) == {"status", "state", "reason", "checks", "transitions"}
    [check] = document_of(app)["checks"]["db"]
    kept = state_of(app).health.engine.histories()["db"]
    assert check["durations"] == [round(duration, 6) for duration in kept.durations]
    assert len(check["durations"]) == KEPT_DURATIONS
    assert check["duration"] == check["durations"][-1]
    assert (check["status"], check["output"], check["observedValue"]) == ("warn", "slow", "nan")
    assert check["changed"]["age"] >= check["age"] >= 0
    assert time.time() - kept.changed < 60


def test_checks_that_the_state_keeps_from_being_asked() -> None:
    """Where the state alone decides, the last results of the checks are shown, and none is run."""
    app, lifecycle = serve()
    lifecycle.check("db", ttl=0, scope="shared")([CheckResult("fail", "down")].pop)
    lifecycle.check("never asked", ttl=0)(lambda: None)
    get(app, "/work")
    document_of(app, "/healthcheck/db")
    lifecycle.set_not_ready("maintenance")
    document = document_of(app)
    assert (document["status"], document["reason"]) == ("fail", "maintenance")
    [(name, [check])] = document["checks"].items()
    assert (name, check["status"], check["output"]) == ("db", "warn", "down")


def test_a_check_that_hangs(free: threading.Event) -> None:
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
    assert (check["durations"], "changed" in check) == ([], True)


def test_what_is_under_way() -> None:
    """Of many requests and work items the oldest fifty are listed, the others counted; startup tasks are listed."""
    app, lifecycle = serve()
    for number in range(10_000):
        enter(state_of(app).ledger, f"/{number}")
    for number in range(MOST_LISTED + 2):
        lifecycle.work(f"import {number}", file=number)
    with lifecycle.startup_task("warm the cache"):
        document = document_of(app)
    assert [request["path"] for request in document["requests"]] == [f"/{n}" for n in range(MOST_LISTED)]
    assert (document["in_flight"], document["requests_omitted"]) == (10_000, 10_000 - MOST_LISTED)
    request, item = document["requests"][0], document["work"][0]
    assert min(request.pop("age"), item.pop("age")) >= 0
    assert request == {"method": "GET", "path": "/0", "thread": "MainThread", "stage": "running"}
    assert item == {"name": "import 0", "thread": "MainThread", "info": {"file": 0}}
    assert (len(document["work"]), document["work_omitted"]) == (MOST_LISTED, 2)
    assert [task["name"] for task in document["startup_tasks"]] == ["warm the cache"]


def test_what_the_server_holds() -> None:
    """Requests that wait in the server are listed with those that run, oldest first, and the load of its pool."""
    # If several applications share a process, each lists its own requests alone: other callers may see those.
    app, _lifecycle = serve()
    enter(state_of(app).ledger, "/running")
    process = state_of(app).process
    process.shutdown.attach(server := FakeServer())
    server.pool = Load(3, 4, 4, 1.23)
    server.left = [RequestInfo("POST", "/queued", 12.34, "", "queued")]
    document = document_of(app)
    assert document["load"] == {"queued": 3, "threads": 4, "busy": 4, "oldest": 1.2}
    assert document["requests"][0] == {"method": "POST", "path": "/queued", "age": 12.3, "stage": "queued"}
    assert [request["path"] for request in document["requests"]] == ["/queued", "/running"]
    assert document["in_flight"] == 1
    other, _lifecycle = serve()
    process.join(state_of(other), ())
    assert [request["path"] for request in document_of(app)["requests"]] == ["/running"]


def test_the_report_of_the_last_shutdown() -> None:
    """The report of the last shutdown has no stacks, and its lists are short."""
    app, _lifecycle = serve()
    lost: list[Any] = [{"path": "/a", "stack": "File 1"}] + [{"path": "/b"}, "odd"] * MOST_LISTED
    LastReport(app, {"reason": "SIGTERM", "abandoned": lost, "served": 3})
    report = json.loads(get(app, "/healthcheck?verbose", headers=JSON).data)["last_report"]
    assert (report["reason"], report["served"], report["abandoned"][0]) == ("SIGTERM", 3, {"path": "/a"})
    assert len(report["abandoned"]) == MOST_LISTED


def test_a_cordon(tmp_path: Path) -> None:
    """An operator's cordon is shown with the operator's name and the time that is left."""
    app, _lifecycle = serve(LIFECYCLE_CONTROL_DIR=str(tmp_path))
    control = state_of(app).control
    assert control is not None
    control.cordon(600, "alice", "test")
    cordon = document_of(app)["cordon"]
    assert 500 < cordon.pop("remaining") <= 600
    assert cordon == {"by": "alice", "seconds": 600}
    assert control.uncordon("bob", "test")


def with_all_checks(**config: Any) -> tuple[Flask, Lifecycle]:
    """An application with a check for each kind of result."""
    app, lifecycle = serve(LIFECYCLE_LOG_REMOTE_ADDR=True, **config)
    lifecycle.check("number", critical=False)(lambda: CheckResult("warn", "9 s behind", {"hosts": ["a", 1]}, 9, "s"))
    lifecycle.check("text")(lambda: CheckResult(value="primary"))
    lifecycle.check("unsettled", fail_after=3)(lambda: False)
    error = HealthCheckError("no answer", causes={"replica": "down"})
    lifecycle.check("fails", affects=("/orders",))(raiser(error))
    return app, lifecycle


@pytest.mark.parametrize("query", ["", "?verbose"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/healthcheck"])
@pytest.mark.parametrize("details", ["never", "always"])
def test_answers_follow_the_schema(path: str, query: str, details: str) -> None:
    """Every probe follows the schema, and only the health check as a whole returns the status document."""
    app, _lifecycle = with_all_checks(LIFECYCLE_DETAILS=details)
    document = document_of(app, path + query)
    assert (set(document) == {"status"}) == (details == "never")
    assert ("application" in document) == ((path, query, details) == ("/healthcheck", "?verbose", "always"))


def test_a_shutdown_follows_the_schema() -> None:
    """The status document follows the schema during and after a shutdown that abandons a request and a work item."""
    app, lifecycle = with_all_checks(LIFECYCLE_GRACE_PERIOD=0.5)
    during: list[dict[str, Any]] = []

    @lifecycle.on_shutdown
    def broken() -> None:
        during.append(document_of(app))
        raise RuntimeError("broken")

    lifecycle.work("import", file="a.csv")
    enter(state_of(app).ledger)
    with ThreadPoolExecutor(1) as pool:  # this thread owns the request and the work item, for which a shutdown waits
        pool.submit(lifecycle.shutdown, "for the test").result(BOUND)
    assert during[0]["phase"] == "hooks"
    report = document_of(app)["report"]
    assert all(report[key] for key in ("abandoned", "work", "phases", "hooks"))


def test_an_unknown_key_is_noticed() -> None:
    """The tests above would fail if an answer had a key that the schema does not describe; the schema is valid."""
    Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(ValidationError, match="'new' was unexpected"):
        VALIDATOR.validate({"status": "pass", "new": 1})
    Draft202012Validator(SCHEMA).validate({"status": "pass", "new": 1})
