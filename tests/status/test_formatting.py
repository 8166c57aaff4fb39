"""The figures of the status page in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle._status import formatting


@pytest.mark.parametrize(
    ("function", "values"),
    [
        # An age has two units at most; what is no number stays as it is.
        (formatting.long, {-0.4: "0.0 s", 9.94: "9.9 s", 10: "10 s", 59.9: "59 s", 60: "1 min 00 s"}),
        (formatting.long, {3599: "59 min 59 s", 3600: "1 h 00 min", 86399: "23 h 59 min", 86400: "1 d 0 h"}),
        (formatting.long, {1e300: "11574074 d 1 h", math.nan: "nan", math.inf: "inf", None: "", "soon": "soon"}),
        # Tenths of a second matter below a minute.
        (formatting.tenths, {0: "0.0 s", 15.74: "15.7 s", 59.9: "59.9 s", 60: "1 min 00 s", -1: "0.0 s", True: "True"}),
        # A run takes three digits at most.
        (formatting.brief, {-1: "0.00 ms", 0.00012: "0.12 ms", 0.0012: "1.2 ms", 0.0123: "12 ms", 0.999: "999 ms"}),
        (formatting.brief, {1: "1.00 s", 123.4: "123 s", math.nan: "nan"}),
        # A long text is cut; what is invisible, or turns the text around it, is replaced by a sign.
        (formatting.short, {7: "7", "a" * 300: "a" * 300, "a" * 301: "a" * 300 + "\u2026", "größe 🌍": "größe 🌍"}),
        (formatting.short, {"one\ttwo\r\n3": "one two  3", "\x00\x1b[31m\x7f\x9b": "\ufffd\ufffd[31m\ufffd\ufffd"}),
        (formatting.short, {"moc.\u202eevil\u2066\u200f": "moc.\ufffdevil\ufffd\ufffd"}),
        (formatting.clock, {"2026-01-02T03:04:05.678+00:00": "2026-01-02 03:04:05 UTC", None: " UTC"}),
        # Each status has a sign and a class, and so has an unknown one.
        (formatting.mark, {"pass": "✓", "warn": "!", "fail": "✕", "<odd>": "?"}),
        (formatting.css_class, {"pass": "pass", "warn": "warn", "fail": "fail", "<odd>": ""}),
    ],
)
def test_texts(function: Callable[[Any], str], values: dict[Any, str]) -> None:
    """Each kind of value has its text."""
    assert {value: function(value) for value in values} == values


def test_icons_and_counts() -> None:
    """Each status, and an unknown one, has an icon; checks are counted by status."""
    icons = {formatting.icon(status) for status in ("pass", "warn", "fail", "<odd>")}
    assert len(icons) == 4
    assert all(icon.startswith("data:image/svg+xml,%3Csvg") and " " not in icon for icon in icons)
    checks = {str(number): [{"status": status}] for number, status in enumerate(("pass", "fail", "pass", "warn"))}
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
    """A check's own figure has its unit; its duration is no figure of its own."""
    assert formatting.figure(check) == text


def test_rows() -> None:
    """Equal rows have different keys, and the first keeps its key when another comes; what is no list has no rows."""
    rows: list[dict[str, Any]] = [{"path": "/a", "age": 2}, {"path": "/b"}, {"path": "/a", "age": 1}]
    assert [key for key, _row in formatting.keyed(rows, "path", "thread")] == ["/a||1", "/b||1", "/a||2"]
    assert formatting.keyed(rows, "path")[2][1] is rows[2]
    assert [formatting.records(value) for value in (None, "text", 3, {"a": 1}, [3, "x", None])] == [[]] * 5


def test_phases() -> None:
    """Phases are over, now or ahead; between two of them the one that is over is still the current one."""
    over = [{"name": "announce", "seconds": 0.1}, {"name": "delay", "seconds": 5.0}]
    found = formatting.phases({"phase": "stop accepting", "phases": over})
    assert [phase.when for phase in found] == ["over", "over", "now", "ahead", "ahead", "ahead"]
    assert [phase.seconds for phase in found] == [0.1, 5.0, None, None, None, None]
    assert len({phase.mark for phase in found}) == 3
    found = formatting.phases({"phase": "announce", "phases": over[:1]})
    assert [phase.when for phase in found][:2] == ["now", "ahead"]


@pytest.mark.parametrize(
    ("durations", "starts", "bars", "text"),
    [
        ([0.001, 0.004], "M84 16v-4h2v4zM87 16v-16h2v16z", 2, "1.0 ms \u2013 4.0 ms"),
        ([0.0] * 3, "M81 16v-1h2v1z", 3, "0.00 ms"),
        ([float(number) for number in range(100)], "M0 ", 30, "70.00 s \u2013 99.00 s"),
    ],
)
def test_spark(durations: list[float], starts: str, bars: int, text: str) -> None:
    """Durations are bars, the newest on the right and the highest of full height; of many the newest are shown."""
    found = formatting.spark(durations)
    assert found is not None
    assert (found.path.startswith(starts), found.path.count("M"), found.range) == (True, bars, text)
    assert (found.width, found.height) == (89, 16)
    latest = formatting.brief(durations[-1])
    assert found.label.startswith(f"The last {bars} runs took ")
    assert found.label.endswith(f", the latest {latest}")


@pytest.mark.parametrize("durations", [None, [], [1.0], ["nan", 1.0, -1, math.nan, None]])
def test_no_spark(durations: Any) -> None:
    """Fewer than two numbers have no bars."""
    assert formatting.spark(durations) is None


CHECKS = {
    "disk": [{"status": "pass"}],
    "cache": [{"status": "warn", "output": "slow"}],
    "database": [{"status": "fail", "output": "The database did not answer."}],
}


PASSES, GONE = (
    {name: [check] for name in "abc"} for check in ({"status": "pass"}, {"status": "fail", "output": "gone"})
)


@pytest.mark.parametrize(
    ("state", "more", "sentence"),
    [
        (None, {}, ""),
        ("READY", {"checks": {}}, ""),
        ("READY", {"checks": {"disk": [{"status": "pass"}]}}, "The only check passes."),
        ("READY", {"checks": PASSES}, "All 3 checks pass."),
        ("READY", {"checks": CHECKS}, "Check 'database' fails: The database did not answer. 1 more does not pass."),
        ("READY", {"checks": {"cache": [{"status": "warn"}]}}, "Check 'cache' warns."),
        ("READY", {"checks": GONE}, "Check 'a' fails: gone. 2 more do not pass."),
        ("STARTING", {}, "Starting: on_startup functions run."),
        ("STARTING", {"startup_tasks": [{"name": "a"}, {"name": "b"}]}, "Starting: waiting for 'a' (and 1 more)."),
        ("NOT_READY", {"reason": "imports data"}, "Out of rotation: imports data. Requests that arrive are served."),
        ("NOT_READY", {"cordon": {"by": "me"}}, "Out of rotation: cordoned by me. Requests that arrive are served."),
        ("DRAINING", {"phase": "delay", "checks": CHECKS}, "Shutting down: waiting for load balancers."),
        ("DRAINING", {"phase": "of another version"}, "Shutting down: of another version."),
        ("STOPPED", {"phase": "exit", "report": {"summary": "clean, exit 0"}}, "Stopped: clean, exit 0."),
    ],
)
def test_what_it_says(state: str | None, more: dict[str, Any], sentence: str) -> None:
    """A shutdown comes first, then the state, then the check that fails."""
    document = {"status": "pass"} if state is None else {"state": state}
    assert formatting.headline(document | more) == sentence


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
