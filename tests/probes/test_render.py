"""The bodies: JSON, text and HTML of a report, and what an application sends in their place."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from flask_lifecycle import Check, CheckReport, CheckResult, HealthCheckError, HealthReport, State, Transition
from flask_lifecycle._probes import render as bodies

HEALTH_JSON, TEXT, HTML = "application/health+json", "text/plain", "text/html"
# 2026-01-02T03:04:05.678Z
TIME = 1767323045.678


class Mute:
    """What cannot say what it is."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class Broken(Mapping[str, int]):
    """A mapping that does not tell what is in it."""

    def __getitem__(self, key: str) -> int:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "broken"


def check(name: str = "db", status: str = "pass", **options: Any) -> CheckReport:
    """What a check says after a run of 12.34 ms; ``affects`` is the check's own option."""
    affects = options.pop("affects", ())
    return CheckReport(Check(name, lambda: None, affects=affects), status, 0.01234, TIME, **options)


def report(*checks: CheckReport, status: str = "pass", **options: Any) -> HealthReport:
    """What a caller who may see everything is told."""
    options = {
        "group": "ready",
        "component": None,
        "state": State.READY,
        "reason": "started",
        "details": True,
    } | options
    return HealthReport(status=status, checks=checks, **options)


def component(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The JSON of one check."""
    one = check(*arguments, **options)
    [found] = json.loads(bodies.render(report(one), HEALTH_JSON))["checks"][one.name]
    assert isinstance(found, dict)
    return found


# -- JSON ---------------------------------------------------------------------------------------------------------


def test_json_of_a_report() -> None:
    """The JSON has the shape of the IETF draft: a status, and for each check a list of what was observed."""
    document = json.loads(bodies.render(report(check("db"), check("disk", "warn"), status="warn"), HEALTH_JSON))
    observed = {"time": "2026-01-02T03:04:05.678+00:00", "observedValue": 12.3, "observedUnit": "ms"}
    assert document == {
        "status": "warn",
        "state": "READY",
        "reason": "started",
        "checks": {
            "db": [{"componentId": "db", "status": "pass", **observed}],
            "disk": [{"componentId": "disk", "status": "warn", **observed}],
        },
    }


def test_json_of_a_check() -> None:
    """A check's own figure, also zero, replaces its duration; a failure has text, causes and what it affects."""
    assert component(result=CheckResult("pass", "", {}, 0, "%"))["observedValue"] == 0
    found = component(result=CheckResult("pass", "well", {"free": 3}, 97.5, "%"))
    assert (found["observedValue"], found["observedUnit"]) == (97.5, "%")
    assert (found["output"], found["observed"]) == ("well", {"free": 3})
    error = HealthCheckError("no database", {"primary": "gone", "replica": ValueError("db-7.internal")})
    found = component("db", "fail", error=error, affects=("/orders", "/cart"))
    assert (found["status"], found["output"]) == ("fail", "no database")
    assert found["causes"] == {"primary": "gone", "replica": "ValueError"}
    assert found["affectedEndpoints"] == ["/orders", "/cart"]


def test_json_of_the_transitions() -> None:
    """With verbose the last transitions are told to whoever may see details."""
    transitions = [Transition("check db", "pass", "fail", "down", TIME, 12.34)]
    [shown] = json.loads(bodies.render(report(), HEALTH_JSON, True, transitions))["transitions"]
    assert (shown.pop("time"), shown.pop("age")) == ("2026-01-02T03:04:05.678+00:00", 12.3)
    assert shown == {"subject": "check db", "old": "pass", "new": "fail", "reason": "down"}
    assert "transitions" not in json.loads(bodies.render(report(), HEALTH_JSON, False, transitions))
    assert json.loads(bodies.render(report(details=False), HEALTH_JSON, True, transitions)) == {"status": "pass"}


# -- what was observed --------------------------------------------------------------------------------------------


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    GOOD = "good"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (-(2**70), -(2**70)),
        (1.5, 1.5),
        ("ü", "ü"),
        ([1, (2, "x")], [1, [2, "x"]]),
        ({"a": {"b": None}}, {"a": {"b": None}}),
        (frozenset({7}), [7]),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (1 + 2j, "(1+2j)"),
        (b"\xff", "b'\\xff'"),
        (Level.HIGH, 3),
        (Word.GOOD, "good"),
        ({1: "a", (1, 2): "b", None: "c", Word.GOOD: "d"}, {"1": "a", "(1, 2)": "b", "None": "c", str(Word.GOOD): "d"}),
        (Mute(), "Mute"),
        ({Mute(): Mute()}, {"Mute": "Mute"}),
        ([Broken()], ["broken"]),
        # Half of a surrogate pair, as in the name of a file that is no UTF-8; strict parsers of JSON refuse it.
        ("/data/\udcff", "/data/\\udcff"),
        ({"\ud800": 1}, {"\\ud800": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_observed_values(value: Any, expected: Any) -> None:
    """What JSON can write is written as it is, and all else as text."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(bodies.to_json(value), parse_constant=refuse) == expected
    if isinstance(value, dict):
        assert component(result=CheckResult(observed=value))["observed"] == expected
    assert component(result=CheckResult(value=value)).get("observedValue", "none") == (
        12.3 if expected is None else expected
    )


def test_values_that_are_hard_to_write() -> None:
    """A number that Python refuses to write is its type or its digits; what contains itself is followed once."""
    limit = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    seen = json.loads(bodies.to_json(10 ** (limit + 2000)))
    assert seen == "int" if limit else set(seen[1:]) == {"0"}
    one: dict[str, Any] = {"name": "one"}
    one["two"] = [one, one]
    assert json.loads(bodies.to_json(one)) == {"name": "one", "two": [str(one)] * 2}


def test_depth() -> None:
    """What is nested deeper than eight is text from there on, and nesting without end breaks nothing."""
    nested: Any = "core"
    for _ in range(10):
        nested = [nested]
    seen = json.loads(bodies.to_json(nested))
    for _ in range(8):
        [seen] = seen
    assert seen == "[['core']]"
    for _ in range(100_000):
        nested = [nested]
    assert b"list" in bodies.to_json(nested)
    while isinstance(nested, list):  # its own end would be as deep
        [nested] = nested


def test_what_somebody_else_writes_to() -> None:
    """A mapping that grows while it is written is written as it was."""
    live: dict[Any, Any] = {}

    class Grows:
        def __str__(self) -> str:
            live[len(live)] = 1
            return "grown"

    live.update(a=Grows(), b=Grows())
    assert json.loads(bodies.to_json(live)) == {"a": "grown", "b": "grown"}


@pytest.mark.parametrize("kind", [HEALTH_JSON, TEXT, HTML])
def test_words_that_cannot_be_said(kind: str) -> None:
    """Names, words and causes that cannot be printed or encoded break no body."""
    error = HealthCheckError(Mute(), {Mute(): Mute(), "file": "\udcff"})  # type: ignore[arg-type,dict-item]
    checks = (check("\udcff", "fail", error=error), check("b", "fail", error=HealthCheckError("\udcff")))
    body = bodies.render(report(*checks, status="fail", reason="\udcff"), kind, True).decode()
    assert "HealthCheckError" in body
    assert "\\udcff" in body


# -- text ---------------------------------------------------------------------------------------------------------


def test_text_of_a_report() -> None:
    """Verbose text is in the manner of the Kubernetes API server: a mark, a name and a word for each check."""
    disk = check("disk", "warn", result=CheckResult("warn", "nearly full"))
    db = check("db", "fail", error=HealthCheckError("no\ndatabase", ["primary", "replica"]))
    assert bodies.render(report(check("cache"), disk, db, status="fail"), TEXT, True).decode() == (
        "[+]state READY: started\n"
        "[+]cache ok\n"
        "[!]disk warning: nearly full\n"
        "[-]db failed: no database\n"
        "   1: primary\n"
        "   2: replica\n"
        "ready check failed\n"
    )


DRAINING = {"state": State.DRAINING, "reason": "SIGTERM"}


@pytest.mark.parametrize(
    ("status", "options", "first", "last"),
    [
        ("pass", {}, "[+]state READY: started", "ready check passed"),
        ("warn", {"group": "own"}, "[+]state READY: started", "own check passed"),
        ("pass", {"component": "db"}, "[+]state READY: started", "db check passed"),
        ("fail", {"state": State.NOT_READY}, "[-]state NOT_READY: started", "ready check failed"),
        ("fail", {**DRAINING, "draining": True}, "[-]state DRAINING: SIGTERM", "ready check failed"),
        ("pass", {**DRAINING, "reason": "a\r\nb"}, "[+]state DRAINING: a b", "ready check passed"),
    ],
)
def test_the_state_in_the_text(status: str, options: dict[str, Any], first: str, last: str) -> None:
    """The state is marked with a minus where it is what fails the probe, and the last line says what was asked."""
    assert bodies.render(report(status=status, **options), TEXT, True).decode() == f"{first}\n{last}\n"


@pytest.mark.parametrize("status", ["pass", "warn", "fail"])
def test_short_text(status: str) -> None:
    """Without verbose the text is the status alone, also for whoever may see details."""
    assert bodies.render(report(check(), status=status), TEXT) == f"{status}\n".encode()


# -- HTML ---------------------------------------------------------------------------------------------------------


def test_html_of_a_report() -> None:
    """The page is one whole document with the status, the state, and a row for each check; it loads nothing."""
    disk = check("disk", "warn", result=CheckResult("warn", "full", value=97, unit="%"))
    text = bodies.render(report(check("db"), disk, status="warn"), HTML).decode()
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert text.rstrip().endswith("</html>")
    assert "<h1>warn</h1>" in text
    assert "<p>ready: READY (started)</p>" in text
    assert '<th scope="row">db</th><td>pass</td><td></td><td>12 ms</td><td></td>' in text
    assert '<th scope="row">disk</th><td>warn</td><td>97 %</td><td>12 ms</td><td>full</td>' in text
    assert not any(word in text for word in ("src=", "href=", "<script", "url("))
    assert "<table>" not in bodies.render(report(), HTML).decode()


def test_html_escapes_everything() -> None:
    """Nothing that an application or a check says becomes markup."""
    nasty = "<script>alert('x')</script>"
    one = check(nasty, "fail", error=HealthCheckError(nasty))
    page = bodies.render(report(one, status="fail", group=nasty, reason=nasty), HTML).decode()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 4
