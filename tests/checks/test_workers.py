"""The check of the worker pool, and the load of the servers; real processes are in the live tests."""

from __future__ import annotations

from typing import Any

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._core.inflight import Load
from flask_lifecycle.checks import WorkerPoolCheck
from tests._fakes import FakeServer, make_app, state_of, until


@pytest.mark.parametrize(
    ("load", "thresholds", "status", "output"),
    [
        (Load(0, 4, 0), {}, "pass", ""),
        (Load(0, 4, 4, 9.0), {}, "pass", ""),
        (Load(3, 4, 4), {}, "pass", ""),
        (Load(4, 4, 4), {}, "warn", "4 requests wait for a worker."),
        (Load(400, 4, 4), {}, "warn", "400 requests wait for a worker."),
        (Load(4, 4, 4), {"warn_queue": 5}, "pass", ""),
        (Load(5, 4, 4), {"warn_queue": 5}, "warn", "5 requests wait for a worker."),
        (Load(9, 4, 4), {"fail_queue": 10}, "warn", "9 requests wait for a worker."),
        (Load(10, 4, 4), {"fail_queue": 10}, "fail", "10 requests wait for a worker."),
        (Load(0, 4, 3, 29.9), {"max_age": 30}, "pass", ""),
        (Load(0, 4, 3, 30.0), {"max_age": 30}, "warn", "A request is 30.0 s old."),
        (Load(0, 4, 4, 30.0), {"max_age": 30}, "fail", "All 4 workers are busy, and a request is 30.0 s old."),
        (Load(0, None, 4, 30.0), {"max_age": 30}, "warn", "A request is 30.0 s old."),
        (Load(0, None, None, 1.0), {"fail_queue": 1}, "pass", ""),
        (Load(0, 0, 0), {}, "pass", ""),  # at its end it has no threads any more
        (None, {"max_age": 1}, "pass", "The server of this process does not report its load."),
    ],
)
def test_the_load_decides(load: Load | None, thresholds: dict[str, Any], status: str, output: str) -> None:
    """The queue has its thresholds; an old request warns, and fails if no thread is idle."""
    assert WorkerPoolCheck(lambda: load, **thresholds)()[:2] == (status, output)
    result = WorkerPoolCheck(lambda: Load(2, 4, 3, 1.23456))()
    assert result.observed == {"queued": 2, "threads": 4, "busy": 3, "idle": 1, "oldest": 1.235}
    assert (result.value, result.unit) == (2, "requests")


def test_the_server_is_found_by_the_application_context() -> None:
    """The extension knows the server of the process; without one the check passes and says so."""
    app = make_app()
    lifecycle = Lifecycle(app)
    check = WorkerPoolCheck()
    lifecycle.add_check(check)
    assert (check.name, check.scope) == ("workers", "local")

    @app.get("/look")
    def look() -> str:
        until(lambda: check().observed["oldest"] > 0)  # this request, which the server does not know
        return "seen"

    with app.app_context():
        assert check()[:2] == ("pass", "The server of this process does not report its load.")
        state_of(app).process.shutdown.server = FakeServer()
        assert check().observed["oldest"] == 0
        assert app.test_client().get("/look", buffered=True).text == "seen"
        assert check().observed["oldest"] == 0


def test_a_server_that_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search looks at all objects of the process, so it runs until it succeeds, and never again."""
    app = make_app()
    Lifecycle(app)
    serving = state_of(app).serving
    found = [None, FakeServer(), None]
    monkeypatch.setattr(serving, "find", lambda: found.pop(0))
    assert serving.load() is None
    assert serving.load() == Load(0)
    assert serving.load() == Load(0)
    assert len(found) == 1
