"""The log of a whole life: each change, phase and hook once, with its fields, and nothing for a probe or a request."""

from __future__ import annotations

import json
from typing import Any

from ._client import get
from ._process import Running, Starter
from ._traffic import in_flight
from .test_probes import probe_address

PHASES = ["announce", "delay", "stop accepting", "drain", "hooks"]
PLAN = {
    "log_handler": "record",
    "check": "raise",
    "hooks": {
        "startup": [["warm", "ok", None]],
        "drain": [["tell", "ok", None]],
        "shutdown": [["first", "ok", None], ["bad", "raise", None], ["slow", "hang", 0.1]],
    },
}
SETTINGS = {"LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_SHUTDOWN_DELAY": 0.1}


def records(running: Running) -> list[dict[str, Any]]:
    """What the package has logged so far."""
    return [json.loads(line) for line in (running.home / "records").read_text().splitlines()]


def fields(told: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """The values of these fields, of the records that have the first of them."""
    return [
        tuple(record[f"lifecycle_{name}"] for name in names) for record in told if f"lifecycle_{names[0]}" in record
    ]


def test_a_whole_life(live: Starter) -> None:
    """Each change of state, phase, hook and failing check is one record with fields; requests and probes are none."""
    running = live.serve("waitress", plan=PLAN, settings=SETTINGS, excuse="ValueError: boom")
    probes = probe_address(running)
    assert get(running.address, "/readyz").status == 503
    # The record is written after the line of the log.
    running.wait_for(lambda: fields(records(running), "check"), "the record of the check")
    before = records(running)
    for _ in range(20):
        for address in (running.address, probes):
            assert [get(address, path).status for path in ("/livez", "/readyz")] == [200, 503]
        assert get(running.address, "/fast").status == 200
    assert records(running) == before

    with in_flight(running):
        running.begin_stop()
        running.wait_log("listener closed")
    assert running.wait_gone() == 1
    told = records(running)
    assert told[: len(before)] == before
    assert fields(told, "state", "reason") == [
        ("READY", "started"), ("DRAINING", "SIGTERM"), ("STOPPING", "SIGTERM"), ("STOPPED", "SIGTERM"),
    ]  # fmt: skip
    assert fields(told, "phase") == [(phase,) for phase in PHASES]
    assert all(seconds >= 0.0 for _phase, seconds in fields(told, "phase", "seconds"))
    assert fields(told, "hook", "kind", "outcome") == [
        ("warm", "startup", "ok"), ("tell", "drain", "ok"),
        ("slow", "shutdown", "hung"), ("bad", "shutdown", "failed"), ("first", "shutdown", "ok"),
    ]  # fmt: skip
    assert fields(told, "check") == [("rude",)]
    assert fields(told, "exit_code") == [(1,)]
    assert [record["message"] for record in told if not any(key.startswith("lifecycle_") for key in record)] == []
