"""The status as a table: what is shown of which document, and that nothing of it reaches the terminal as a command."""

from __future__ import annotations

from typing import Any

import pytest

from flask_lifecycle._status_table import clip, summary, table

WHERE = "http://127.0.0.1:9000/healthcheck"
DOCUMENT = {
    "status": "fail",
    "state": "DRAINING",
    "reason": "SIGTERM",
    "cordon": {"by": "alice", "seconds": 600, "remaining": 61.5},
    "application": {"name": "shop", "host": "web-1", "pid": 42},
    "server": {"name": "waitress", "promise": "full"},
    "uptime": 5430.2,
    "phase": "drain",
    "remaining": 7.44,
    "checks": {
        "database": [{"status": "pass", "observedValue": 1.5, "observedUnit": "ms", "age": 0.44}],
        "the cache": [{"status": "fail", "observedValue": 3, "observedUnit": "ms", "age": 12.6, "output": "hanging"}],
    },
    "in_flight": 2,
    "requests": [{"method": "GET", "path": "/slow", "age": 4.2}, {}],
    "tokens": [{"name": "import", "age": 120}],
    "tokens_omitted": 9,
    "startup_tasks": [{"name": "warm-up"}],
}


def test_a_table() -> None:
    """All that is known is shown, one below the other."""
    assert table(DOCUMENT, WHERE, color=False) == [
        "DRAINING  fail  http://127.0.0.1:9000/healthcheck",
        "reason     SIGTERM",
        "cordon     by alice, 1m2s left",
        "process    shop, on web-1, pid 42, up 1h30m30s",
        "server     waitress, promise full",
        "phase      drain, 7.4s left",
        "in flight  2 (oldest: GET /slow for 4.2s)",
        "tokens     10 (oldest: import for 2m)",
        "start-up   1 (oldest: warm-up)",
        "",
        "CHECK      STATUS  VALUE   AGE   OUTPUT",
        "database   pass    1.5 ms  0.4s",
        "the cache  fail    3 ms    13s   hanging",
    ]


def test_a_document_without_details() -> None:
    """Where no details are told there is the status, and what to do."""
    assert table({"status": "pass"}, WHERE, color=False) == [
        "pass  http://127.0.0.1:9000/healthcheck",
        "no details are told; give the token, and set 'LIFECYCLE_DETAILS' there",
    ]


def test_the_document_of_another_version() -> None:
    """Other spellings and counts in place of lists are understood."""
    document = {"status": "pass", "state": "READY", "inFlight": 3, "tokens": 2, "checks": {"db": {"status": "pass"}}}
    lines = table(document, WHERE, color=False)
    assert lines[1:] == ["in flight  3", "tokens     2", "", "CHECK  STATUS  VALUE  AGE  OUTPUT", "db     pass"]


def test_colors() -> None:
    """States are bold and statuses coloured, also where a check has the name of one."""
    document = {"status": "warn", "state": "READY", "checks": {"pass": {"status": "fail"}, "none": {"status": "odd"}}}
    lines = table(document, WHERE, color=True)
    assert lines[0] == f"\x1b[1mREADY\x1b[0m  \x1b[33mwarn\x1b[0m  {WHERE}"
    assert lines[-2:] == ["pass   \x1b[31mfail\x1b[0m", "none   odd"]


NASTY: list[Any] = [
    None,
    True,
    -1,
    2**5000,
    float("nan"),
    float("inf"),
    "x" * 1000,
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [{"age": "x"}],
]


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(type(value)))
@pytest.mark.parametrize("key", [*DOCUMENT, "inFlight"])
def test_any_type_anywhere(key: str, value: Any) -> None:
    """Whatever is in the place of what is expected is left out or told as text, and never an error."""
    for document in (DOCUMENT | {key: value}, {"status": "pass", key: value}):
        lines = table(document, WHERE, color=True)
        assert all(len(line) < 800 for line in lines)
        assert summary(document) is not None
    for inner in ("name", "host", "pid", "by", "remaining", "status", "observedValue", "observedUnit", "age", "output"):
        table(DOCUMENT | {key: {inner: value}}, WHERE, color=False)
        table(DOCUMENT | {key: [{inner: value}], "checks": {"x": [{inner: value}]}}, WHERE, color=False)


def test_nothing_reaches_the_terminal_as_a_command() -> None:
    """No control character of the document is printed, wherever it is."""
    nasty = "a\x1b[2J\n\r\x9b31m\u202e\x07b"
    check = {"status": nasty, "observedValue": nasty, "observedUnit": nasty, "output": nasty}
    document = dict.fromkeys(DOCUMENT, nasty) | {
        "checks": {nasty: check},
        "application": {"name": nasty, "host": nasty, "pid": nasty},
        "requests": [{"method": nasty, "path": nasty}],
        "tokens": [{"name": nasty}],
        "startup_tasks": [{"name": nasty}],
        "cordon": {"by": nasty},
    }
    lines = table(document, nasty, color=False)
    assert all(line.isprintable() for line in lines)
    assert summary(document).isprintable()
    assert sum(r"\x1b[2J\n\r\x9b31m\u202e\x07" in line for line in lines) == 9


def test_a_summary() -> None:
    """The line of a change names the state, the status, the reason, the phase and what is not well."""
    assert summary(DOCUMENT) == "DRAINING  fail  SIGTERM  phase drain  the cache fail"
    assert summary({"status": "pass"}) == "pass"
    ages = DOCUMENT | {"uptime": 1, "in_flight": 9, "remaining": 3}
    assert summary(ages) == summary(DOCUMENT)


@pytest.mark.parametrize(
    ("line", "width", "clipped"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "abc"),
        ("世界", 3, "世"),
        ("e\u0301e\u0301e", 2, "e\u0301e\u0301"),
        ("\x1b[31mab\x1b[0mcd", 4, "\x1b[31mab\x1b[0mcd"),
        ("\x1b[31mab\x1b[0mcd", 3, "\x1b[31mab\x1b[0mc\x1b[0m"),
        ("\x1b[31mabcd\x1b[0m", 2, "\x1b[31mab\x1b[0m"),
    ],
)
def test_a_line_is_clipped(line: str, width: int, clipped: str) -> None:
    """A line is cut where the terminal ends: wide characters take two columns, marks and colours none, which end."""
    assert clip(line, width) == clipped


def test_wide_names_are_aligned() -> None:
    """Columns begin below each other whatever the width of a name."""
    lines = table(
        {"status": "pass", "state": "READY", "checks": {"世界": {"status": "pass"}, "abcd": {"status": "pass"}}},
        WHERE,
        color=False,
    )
    assert lines[-2:] == ["世界   pass", "abcd   pass"]
