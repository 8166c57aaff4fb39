"""The figures of the status page in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle._core import shutdown
from flask_lifecycle._status import formatting

NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    ("function", "values"),
    [
        # An age is told in two units at most, and what is no number as it is.
        (
            formatting.long,
            {
                0: "0.0 s",
                -0.4: "0.0 s",
                9.94: "9.9 s",
                10: "10 s",
                59.9: "59 s",
                60: "1 min 00 s",
                3599: "59 min 59 s",
                3600: "1 h 00 min",
                86399: "23 h 59 min",
                86400: "1 d 0 h",
                1e300: "11574074 d 1 h",
                NAN: "nan",
                INFINITY: "inf",
                None: "",
                "soon": "soon",
            },
        ),
        # What is over is told to the tenth of a second, as long as that matters.
        (
            formatting.tenths,
            {0: "0.0 s", 15.74: "15.7 s", 59.9: "59.9 s", 60: "1 min 00 s", -1: "0.0 s", "x": "x", True: "True"},
        ),
        # What a run took is told to three digits at most.
        (
            formatting.brief,
            {
                0: "0.00 ms",
                -1: "0.00 ms",
                0.00012: "0.12 ms",
                0.0012: "1.2 ms",
                0.0123: "12 ms",
                0.999: "999 ms",
                1: "1.00 s",
                123.4: "123 s",
                NAN: "nan",
            },
        ),
        # A text is cut where it is too long; what cannot be seen, or turns the text around it, is shown as a sign.
        (
            formatting.short,
            {
                "": "",
                "one": "one",
                7: "7",
                "a" * 300: "a" * 300,
                "a" * 301: "a" * 300 + "\u2026",
                "one\ttwo\r\nthree": "one two  three",
                "\x00\x1b[31m\x7f\x9b": "\ufffd\ufffd[31m\ufffd\ufffd",
                "moc.\u202eevil\u2066\u200f": "moc.\ufffdevil\ufffd\ufffd",
                "größe 🌍": "größe 🌍",
            },
        ),
        # A moment is told to the second.
        (formatting.clock, {"2026-01-02T03:04:05.678+00:00": "2026-01-02 03:04:05 UTC", None: " UTC"}),
    ],
)
def test_texts(function: Callable[[Any], str], values: dict[Any, str]) -> None:
    """Each kind of value has its text."""
    assert {value: function(value) for value in values} == values


def test_statuses() -> None:
    """A status has a sign, a class and an icon of its own; what is none has something as well."""
    statuses = ("pass", "warn", "fail", "<odd>")
    assert [formatting.mark(status) for status in statuses] == ["✓", "!", "✕", "?"]
    assert [formatting.css_class(status) for status in statuses] == ["pass", "warn", "fail", ""]
    icons = {formatting.icon(status) for status in statuses}
    assert len(icons) == 4
    assert all(icon.startswith("data:image/svg+xml,%3Csvg") and " " not in icon for icon in icons)


def test_tally() -> None:
    """The checks are counted by what they say."""
    checks = {
        name: [{"status": status}] for name, status in (("a", "pass"), ("b", "fail"), ("c", "pass"), ("d", "warn"))
    }
    assert formatting.status_counts(checks) == "2 pass, 1 warn, 1 fail"
    assert formatting.status_counts({}) == "0"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        # The draft has the duration where there is no figure.
        ({"observedValue": 12.3, "observedUnit": "ms", "duration": 0.012345}, ""),
        ({"observedValue": 12.4, "observedUnit": "ms", "duration": 0.012345}, "12.4 ms"),
        ({"observedValue": 97, "observedUnit": "%", "duration": 1}, "97 %"),
        ({"observedValue": "nan", "observedUnit": ""}, "nan"),
        ({"observedValue": 0, "observedUnit": None}, "0"),
        ({}, ""),
    ],
)
def test_figure(check: dict[str, Any], text: str) -> None:
    """A check's own figure is told with its unit; how long it took is no figure of its own."""
    assert formatting.figure(check) == text


def test_keyed() -> None:
    """Rows that are alike have keys of their own all the same, and the first keeps its own when another comes."""
    rows: list[dict[str, Any]] = [{"path": "/a", "age": 2}, {"path": "/b"}, {"path": "/a", "age": 1}]
    assert [key for key, _row in formatting.keyed(rows, "path", "thread")] == ["/a||1", "/b||1", "/a||2"]
    assert formatting.keyed(rows, "path")[2][1] is rows[2]


@pytest.mark.parametrize("value", [None, "text", 3, {"a": 1}, [3, "x", None]])
def test_records_of_what_has_none(value: Any) -> None:
    """Of what is no list of mappings nothing is shown."""
    assert formatting.records(value) == []


def test_phases() -> None:
    """Phases are over, now or ahead; between two of them the one that is over is still shown."""
    assert (*(name for name, _ in shutdown.PHASES), "exit") == tuple(formatting.PHASES)
    over = [{"name": "announce", "seconds": 0.1}, {"name": "delay", "seconds": 5.0}]
    found = formatting.phases({"phase": "stop accepting", "phases": over})
    assert [phase.when for phase in found] == ["over", "over", "now", "ahead", "ahead", "ahead"]
    assert [phase.seconds for phase in found] == [0.1, 5.0, None, None, None, None]
    assert len({phase.mark for phase in found}) == 3
    found = formatting.phases({"phase": "announce", "phases": over[:1]})
    assert [phase.when for phase in found][:2] == ["now", "ahead"]


def test_spark() -> None:
    """The durations are bars, the newest on the right and the highest of full height, and told in words as well."""
    found = formatting.spark([0.001, 0.004])
    assert found is not None
    assert found.path == "M84 16v-4h2v4zM87 16v-16h2v16z"
    assert (found.width, found.height) == (89, 16)
    assert found.label == "The last 2 runs took 1.0 ms to 4.0 ms, the latest 4.0 ms"
    assert found.range == "1.0 ms \u2013 4.0 ms"


def test_spark_of_extremes() -> None:
    """Runs that take no time have bars too; of many the newest are shown, and of fewer than two figures none."""
    found = formatting.spark([0.0] * 3)
    assert found is not None
    assert (found.path.count("v-1h"), found.range) == (3, "0.00 ms")
    found = formatting.spark([float(number) for number in range(100)])
    assert found is not None
    assert (found.path.count("M"), found.path.startswith("M0 ")) == (30, True)
    assert found.range == "70.00 s \u2013 99.00 s"
    for durations in (None, [], [1.0], ["nan", 1.0, -1, NAN, None]):
        assert formatting.spark(durations) is None


# -- the first sentence of the status -------------------------------------------------------------------------------

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
