"""What the check of the worker pool sees of real servers at work."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ._client import Connection, get
from ._process import Running, Starter, wait_until


def look(running: Running) -> list[Any]:
    """Ask the readiness probe, and return what the check said: status, output and observed."""
    assert get(running.address, "/readyz").status in (200, 503)
    told = [event.text for event in running.events if event.text.startswith("workers ")]
    said: list[Any] = json.loads(told[-1].partition(" ")[2])
    return said


def test_all_workers_busy_and_a_queue(live: Starter) -> None:
    """With every thread busy the check still answers, counts the queue, and passes again when the work is done."""
    running = live.serve("waitress", threads=2, app="workers_app.py", plan={"workers": {"fail_queue": 3}})
    observed = {"queued": 0, "threads": 2, "busy": 0, "idle": 2, "oldest": 0.0}
    wait_until(lambda: look(running) == ["pass", "", observed], "an idle pool")
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Connection(running.address)) for _ in range(5)]
        for number, connection in enumerate(busy):
            connection.ask("/gate/all")
            if number < 2:
                running.wait_event("begin live all", number + 1)
        wait_until(lambda: look(running)[2]["queued"] == 3, "three requests in the queue")
        status, output, observed = look(running)
        assert (status, output) == ("fail", "3 requests wait for a worker.")
        assert observed.pop("oldest") > 0
        assert observed == {"queued": 3, "threads": 2, "busy": 2, "idle": 0}
        running.open_gate("all")
        assert [connection.answer().body for connection in busy] == [b"passed all"] * 5
        wait_until(lambda: look(running)[2]["busy"] == 0, "an idle pool")
        assert look(running)[0] == "pass"
    assert running.stop() == 0


def test_werkzeug_at_work(live: Starter) -> None:
    """A server with a thread for each connection has no queue, but its requests have an age."""
    running = live.serve("werkzeug", app="workers_app.py", plan={"workers": {"max_age": 0.2}})
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Connection(running.address)) for _ in range(5)]
        for number, connection in enumerate(busy):
            connection.ask("/gate/all")
            running.wait_event("begin live all", number + 1)
        wait_until(lambda: look(running)[0] == "warn", "an old request")
        wait_until(lambda: look(running)[2]["busy"] == 6, "five requests and the probe, which has a thread too")
        _status, _output, observed = look(running)
        assert (observed["queued"], observed["threads"], observed["idle"]) == (0, None, None)
        running.open_gate("all")
        assert [connection.answer().body for connection in busy] == [b"passed all"] * 5
    assert running.stop() == 0
