"""The bodies of answers: JSON, text and HTML, and values that are hard to write."""

from __future__ import annotations

import enum
import functools
import json
import math
import sys
from typing import Any

import pytest
from flask import Flask

from flask_lifecycle import CheckResult, HealthCheckError, State
from tests import _fakes
from tests._fakes import raiser, state_of

HEALTH_JSON, TEXT, HTML = "application/health+json", "text/plain", "text/html"


serve = functools.partial(_fakes.serve, LIFECYCLE_DETAILS="always")


def body(app: Flask, path: str = "/readyz", accept: str = HEALTH_JSON) -> str:
    return _fakes.get(app, path, headers={"Accept": accept}).text


class Mute:
    """An object without a text."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class Broken(dict[str, int]):
    """A mapping whose items cannot be read."""

    def items(self) -> Any:
        raise LookupError("no items")

    def __str__(self) -> str:
        return "broken"


def test_json() -> None:
    """A check has the shape of the IETF draft: its own figure, also zero, or its duration; text, causes and effects."""
    # With ?verbose, callers allowed to see details get the last transitions.
    app, lifecycle = serve()
    lifecycle.check("plain")(lambda: None)
    lifecycle.check("zero")(lambda: CheckResult("pass", "", {}, 0, "%"))
    lifecycle.check("disk")(lambda: CheckResult("warn", "nearly full", {"free": 3}, 97.5, "%"))
    causes = {"primary": "gone", "replica": ValueError("db-7.internal")}
    lifecycle.check("db", affects=("/orders", "/cart"))(raiser(HealthCheckError("no database", causes)))
    document = json.loads(body(app))
    assert "transitions" not in document
    checks = document["checks"]
    for name, [check] in checks.items():
        assert check.pop("componentId") == name
        assert check.pop("time").endswith("+00:00")
        assert check["observedUnit"] in ("ms", "%")
    assert (checks["plain"][0]["status"], checks["plain"][0]["observedUnit"]) == ("pass", "ms")
    assert checks["zero"] == [{"status": "pass", "observedValue": 0, "observedUnit": "%"}]
    assert checks["disk"] == [
        {"status": "warn", "observedValue": 97.5, "observedUnit": "%", "observed": {"free": 3}, "output": "nearly full"}
    ]
    [db] = checks["db"]
    assert (db["status"], db["output"]) == ("fail", "no database")
    assert db["causes"] == {"primary": "gone", "replica": "ValueError"}
    assert db["affectedEndpoints"] == ["/orders", "/cart"]
    [first, *_more] = json.loads(body(app, "/readyz?verbose"))["transitions"]
    assert (first.pop("time")[-6:], first.pop("age") >= 0) == ("+00:00", True)
    assert first == {"subject": "state", "old": "STARTING", "new": "READY", "reason": "started"}


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    GOOD = "good"


def rendered(value: Any) -> Any:
    """A value in a list, as a probe sends it and a strict parser reads it."""
    app, lifecycle = serve()
    lifecycle.renderer(lambda report: [value])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    [found] = json.loads(body(app, "/livez"), parse_constant=refuse)
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
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
        (Broken(), "broken"),
        # Half of a surrogate pair, as in the name of a file that is no UTF-8; strict parsers of JSON refuse it.
        ("/data/\udcff", "/data/\\udcff"),
        ({"\ud800": 1}, {"\\ud800": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(value: Any, expected: Any) -> None:
    """What JSON can express is written as it is, and all else as text."""
    assert rendered(value) == expected


def test_values_that_are_hard_to_write() -> None:
    """A huge number is its type or its digits, and a value that contains itself is followed once."""
    # What is nested deeper than eight is text from there on, and nesting without end breaks nothing. A mapping that
    # grows while it is written is written as it was.
    limit = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    seen = rendered(10 ** (limit + 2000))
    assert seen == "int" if limit else set(seen[1:]) == {"0"}
    one: dict[str, Any] = {"name": "one"}
    one["two"] = [one, one]
    assert rendered(one) == {"name": "one", "two": [str(one)] * 2}
    nested: Any = "core"
    for _ in range(9):
        nested = [nested]
    seen = rendered(nested)
    for _ in range(7):
        [seen] = seen
    assert seen == "[['core']]"
    for _ in range(100_000):
        nested = [nested]
    assert "list" in str(rendered(nested))
    while isinstance(nested, list):  # its own end would be as deep
        [nested] = nested
    live: dict[Any, Any] = {}

    class Grows:
        def __str__(self) -> str:
            live[len(live)] = 1
            return "grown"

    live.update(a=Grows(), b=Grows())
    assert rendered(live) == {"a": "grown", "b": "grown"}


@pytest.mark.parametrize("kind", [HEALTH_JSON, TEXT, HTML])
def test_texts_that_cannot_be_encoded(kind: str) -> None:
    """Names, texts and causes that cannot be printed or encoded break no body."""
    app, lifecycle = serve()
    mute: Any = (Mute(), {Mute(): Mute(), "file": "\udcff"})
    lifecycle.check("\udcff")(raiser(HealthCheckError(*mute)))
    lifecycle.check("b")(raiser(HealthCheckError("\udcff")))
    lifecycle.check("c", critical=False)(lambda: None)
    text = body(app, "/readyz?verbose", kind)
    assert "HealthCheckError" in text
    assert "\\udcff" in text


def test_text() -> None:
    """Verbose text is as the Kubernetes API server's: a mark, a name and a word for each check."""
    app, lifecycle = serve()
    lifecycle.check("cache")(lambda: None)
    lifecycle.check("disk")(lambda: CheckResult("warn", "nearly full"))
    lifecycle.check("db")(raiser(HealthCheckError("no\ndatabase", ["primary", "replica"])))
    assert body(app, "/readyz?verbose", TEXT) == (
        "[+]state READY: started\n"
        "[+]cache ok\n"
        "[!]disk warning: nearly full\n"
        "[-]db failed: no database\n"
        "   1: primary\n"
        "   2: replica\n"
        "ready check failed\n"
    )
    assert body(app, "/readyz", TEXT) == "fail\n"


@pytest.mark.parametrize(
    ("path", "state", "reason", "first", "last"),
    [
        ("/own", State.READY, "started", "[+]state READY: started", "own check passed"),
        ("/own/db", State.READY, "started", "[+]state READY: started", "db check passed"),
        ("/readyz", State.NOT_READY, "started", "[-]state NOT_READY: started", "ready check failed"),
        ("/readyz", State.DRAINING, "SIGTERM", "[-]state DRAINING: SIGTERM", "ready check failed"),
        ("/livez", State.DRAINING, "a\r\nb", "[+]state DRAINING: a b", "live check passed"),
    ],
)
def test_the_state_in_the_text(path: str, state: State, reason: str, first: str, last: str) -> None:
    """The state has a minus if it fails the probe, and the last line names what was asked."""
    app, lifecycle = serve()
    lifecycle.group("own", path="/own")
    lifecycle.check("db", groups=("own",))(lambda: None)
    app.test_client().get("/work")
    machine = state_of(app).machine
    machine.state, machine.reason = state, reason
    lines = body(app, f"{path}?verbose", TEXT).splitlines()
    assert (lines[0], lines[-1]) == (first, last)


def test_html() -> None:
    """The page is one whole document with the status, the state, and a row for each check; it loads nothing."""
    # Nothing that an application or a check says becomes markup.
    app, lifecycle = serve()
    assert "<table>" not in body(app, accept=HTML)
    lifecycle.check("disk")(lambda: CheckResult("warn", "full", value=97, unit="%"))
    text = body(app, accept=HTML)
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert text.rstrip().endswith("</html>")
    assert "<h1>warn</h1>" in text
    assert "<p>ready: READY (started)</p>" in text
    assert '<th scope="row">disk</th><td>warn</td><td>97 %</td>' in text
    assert "<td>full</td>" in text
    assert not any(word in text for word in ("src=", "href=", "<script", "url("))
    nasty = "<script>alert('x')</script>"
    lifecycle.check(nasty)(raiser(HealthCheckError(nasty)))
    lifecycle.set_not_ready(nasty)
    pages = body(app, f"/healthcheck/{nasty}", HTML) + body(app, accept=HTML)
    assert "<script" not in pages
    assert pages.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 4
