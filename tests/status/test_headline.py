"""The first sentence of the status names what is wrong, or what the process waits for."""

from __future__ import annotations

from typing import Any

import pytest

from flask_lifecycle._status import formatting

CHECKS = {
    "disk": [{"status": "pass"}],
    "cache": [{"status": "warn", "output": "slow"}],
    "database": [{"status": "fail", "output": "The database did not answer."}],
}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"status": "pass"}, ""),
        ({"state": "READY", "checks": {}}, ""),
        ({"state": "READY", "checks": {"disk": [{"status": "pass"}]}}, "The only check passes."),
        ({"state": "READY", "checks": {name: [{"status": "pass"}] for name in "abc"}}, "All 3 checks pass."),
        (
            {"state": "READY", "checks": CHECKS},
            "Check 'database' fails: The database did not answer. 1 more does not pass.",
        ),
        ({"state": "READY", "checks": {"cache": [{"status": "warn"}]}}, "Check 'cache' warns."),
        (
            {"state": "READY", "checks": {name: [{"status": "fail", "output": "gone"}] for name in "abc"}},
            "Check 'a' fails: gone. 2 more do not pass.",
        ),
        ({"state": "STARTING"}, "Starting: on_startup functions run."),
        (
            {"state": "STARTING", "startup_tasks": [{"name": "load the model"}, {"name": "other"}]},
            "Starting: waiting for 'load the model' (and 1 more).",
        ),
        (
            {"state": "NOT_READY", "reason": "imports data"},
            "Out of rotation: imports data. Requests that arrive are served.",
        ),
        (
            {"state": "NOT_READY", "reason": "cordon", "cordon": {"by": "alice"}},
            "Out of rotation: cordoned by alice. Requests that arrive are served.",
        ),
        ({"state": "DRAINING", "phase": "delay", "checks": CHECKS}, "Shutting down: waiting for load balancers."),
        ({"state": "DRAINING", "phase": "of another version"}, "Shutting down: of another version."),
        ({"state": "STOPPED", "phase": "exit", "report": {"summary": "clean, exit 0"}}, "Stopped: clean, exit 0."),
    ],
)
def test_what_it_says(document: dict[str, Any], sentence: str) -> None:
    """A shutdown comes first, then the state, then the check that fails."""
    assert formatting.headline(document) == sentence


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"status": "pass", "state": "READY"}, "pass"),
        ({"status": "fail", "state": "READY"}, "fail"),
        ({"status": "fail", "state": "STARTING"}, "warn"),
        ({"status": "fail", "state": "NOT_READY"}, "warn"),
        ({"status": "fail", "state": "DRAINING", "report": None}, "warn"),
        ({"status": "fail", "state": "STOPPED", "report": {"clean": True}}, "warn"),
        ({"status": "fail", "state": "STOPPED", "report": {"clean": False}}, "fail"),
        ({}, ""),
    ],
)
def test_what_is_an_alarm(document: dict[str, Any], expected: str) -> None:
    """Readiness that fails is an alarm only in the state READY, and a shutdown only if something was lost."""
    assert formatting.tone(document) == expected


def test_the_order_of_checks() -> None:
    """Failing checks come first, then warnings, and those of an unknown status last."""
    checks = CHECKS | {"odd": [{"status": "of another version"}]}
    assert [name for name, _ in formatting.worst_first(checks)] == ["database", "cache", "disk", "odd"]
