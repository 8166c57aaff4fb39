"""``flask lifecycle status``: once and again, on a terminal and elsewhere, and what the table shows."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle._cli import client
from flask_lifecycle._cli import status as command

URL = client.Url("http", "127.0.0.1", 9000, "/healthcheck")
GONE = "http://127.0.0.1:9000/healthcheck does not answer: the connection is refused."


class Terminal(io.StringIO):
    """A stream that may say that it is a terminal."""

    def __init__(self, *, tty: bool = True) -> None:
        super().__init__()
        self.tty = tty
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str, /) -> int:
        self.writes.append(text)
        return super().write(text)


def document(state: str = "READY", status: str = "pass", **more: Any) -> dict[str, Any]:
    return {"status": status, "state": state, **more}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a process give these answers, ``None`` for no answer, and then press Ctrl-C."""

    def prepare(*documents: dict[str, Any] | None) -> None:
        left = list(documents)

        def fetch(url: client.Url, token: str | None, timeout: float) -> dict[str, Any]:
            assert (url, token, timeout) == (URL, "hush", 5.0)
            if not left:
                raise KeyboardInterrupt
            found = left.pop(0)
            if found is None:
                raise client.UnreachableError(GONE)
            return found

        monkeypatch.setattr(command, "fetch_health", fetch)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in (("TERM", "xterm"), ("COLUMNS", "60"), ("LINES", "8")):
            monkeypatch.setenv(name, value)

    return prepare


def run(out: Terminal, *, as_json: bool = False, interval: float | None = None) -> int:
    return command.show_status(URL, "hush", 5.0, as_json=as_json, interval=interval, stream=out)


@pytest.mark.parametrize(("health", "code"), [("pass", 0), ("warn", 0), ("fail", 1)])
@pytest.mark.parametrize("as_json", [True, False])
def test_once(answers: Any, health: str, code: int, as_json: bool) -> None:
    """The exit code is 0 for a healthy process, also with a warning, and 1 otherwise, however it is shown."""
    answers(document(status=health))
    out = Terminal(tty=False)
    assert run(out, as_json=as_json) == code
    wanted = f'{{"status": "{health}", "state": "READY"}}\n' if as_json else f"READY  {health}  {URL}\n"
    assert out.getvalue() == wanted


def test_no_answer(answers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an answer the exit code is 2, and one sentence is on stderr."""
    answers(None)
    out = Terminal(tty=False)
    assert run(out) == 2
    assert (out.getvalue(), capsys.readouterr().err) == ("", f"{GONE}\n")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_colors_of_terminals(answers: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A terminal gets colours unless it has none or the user wants none."""
    answers(document())
    monkeypatch.setenv(variable, value)
    out = Terminal()
    run(out)
    assert ("\x1b[" in out.getvalue()) is (value == "xterm")


@pytest.mark.parametrize(
    ("encoding", "as_json", "wanted"),
    [
        ("ascii", False, "\\xe9\\u4e16  pass"),
        ("latin-1", False, "\xe9\\u4e16  pass"),
        ("utf-8", True, '"\\u00e9\\u4e16"'),
    ],
)
def test_a_terminal_of_few_letters(answers: Any, encoding: str, as_json: bool, wanted: str) -> None:
    """What the encoding of the terminal does not have is escaped, and JSON is ASCII."""
    answers(document("\xe9\u4e16"))
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding)
    assert command.show_status(URL, "hush", 5.0, as_json=as_json, interval=None, stream=out) == 0
    assert wanted in raw.getvalue().decode(encoding)


def test_a_closed_stdout(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stdout closed there is still the exit code."""
    monkeypatch.setattr(sys, "stdout", None)
    answers(document())
    assert command.show_status(URL, "hush", 5.0, as_json=False, interval=None) == 0


def test_watch_elsewhere(answers: Any) -> None:
    """Elsewhere than on a terminal each change is a line, and the exit code is the last one."""
    out = Terminal(tty=False)
    answers(document(), document(uptime=7), document("DRAINING", "fail", phase="drain"), None, None, document(), None)
    assert run(out, interval=1) == 2
    lines = [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  ", "", line) for line in out.getvalue().splitlines()]
    assert lines == ["READY  pass", "DRAINING  fail  finishing requests and work", GONE, "READY  pass", GONE]


def test_watch_json(answers: Any) -> None:
    """With --json the document is printed for each change, also on a terminal."""
    out = Terminal()
    answers(document(), document(), None, document(status="fail"))
    assert run(out, as_json=True, interval=1) == 1
    lines = out.getvalue().splitlines()
    assert [lines[0], lines[2]] == [json.dumps(document()), json.dumps(document(status="fail"))]
    assert lines[1].endswith(GONE)


def test_watch_on_a_terminal(answers: Any) -> None:
    """On a terminal each picture is one write over the last, within its height."""
    out = Terminal()
    many = {f"check-{number}": [{"status": "pass", "output": "x" * 100}] for number in range(20)}
    answers(document(checks=many), None, document("DRAINING", "fail"))
    assert run(out, interval=1) == 1
    first, second, third = out.writes
    assert all(each.startswith("\x1b[H\x1b[?7l") and each.endswith("\x1b[J\x1b[?7h") for each in out.writes)
    assert len(first.split("\r\n")) == 8
    assert second.startswith(f"\x1b[H\x1b[?7l{GONE}\x1b[K\r\n\x1b[K\r\n")
    assert "Ctrl-C ends this" in third


def test_ctrl_c_before_the_first_answer(answers: Any) -> None:
    """Without an answer before Ctrl-C the exit code is 2."""
    answers()
    assert run(Terminal(tty=False), interval=1) == 2


# -- the table ----------------------------------------------------------------------------------------------------

WHERE = "http://127.0.0.1:9000/healthcheck"
DOCUMENT = {
    "status": "fail",
    "state": "DRAINING",
    "reason": "SIGTERM",
    "cordon": {"by": "alice", "seconds": 600, "remaining": 61.5},
    "application": {"name": "shop", "host": "web-1", "pid": 42},
    "server": {"name": "waitress", "guarantee": "all connections"},
    "uptime": 5430.2,
    "phase": "drain",
    "remaining": 7.44,
    "checks": {
        "database": [{"status": "pass", "observedValue": 1.5, "observedUnit": "ms", "age": 0.44}],
        "the cache": [{"status": "fail", "observedValue": 3, "observedUnit": "ms", "age": 12.6, "output": "hanging"}],
    },
    "in_flight": 2,
    "requests": [{"method": "GET", "path": "/slow", "age": 4.2}, {}],
    "work": [{"name": "import", "age": 120}],
    "work_omitted": 9,
    "startup_tasks": [{"name": "warm-up"}],
}


def test_a_table() -> None:
    """All that is known is shown, one below the other."""
    assert command.table(DOCUMENT, WHERE, color=False) == [
        "DRAINING  fail  http://127.0.0.1:9000/healthcheck",
        "Shutting down: finishing requests and work.",
        "reason     SIGTERM",
        "cordon     by alice, 1 min 01 s left",
        "process    shop, on web-1, pid 42, up 1 h 30 min",
        "server     waitress, a shutdown answers all connections",
        "shutdown   finishing requests and work, 7.4 s left",
        "in flight  2 (oldest: GET /slow for 4.2 s)",
        "work       10 (oldest: import for 2 min 00 s)",
        "start-up   1 (oldest: warm-up)",
        "",
        "CHECK      STATUS  VALUE   AGE    OUTPUT",
        "the cache  fail    3 ms    12 s   hanging",
        "database   pass    1.5 ms  0.4 s",
    ]


def test_a_document_without_details() -> None:
    """Where no details are told there is the status, and what to do."""
    assert command.table({"status": "pass"}, WHERE, color=False) == [
        "pass  http://127.0.0.1:9000/healthcheck",
        "No details are shown: set 'LIFECYCLE_DETAILS' in the application; with 'token', pass --token.",
    ]


def test_a_document_that_is_not_understood() -> None:
    """A document with other types than ours is not shown."""
    document = {"status": "pass", "state": "READY", "checks": {"db": 3}}
    sentence = f"{WHERE} has a health document that is not understood; --json shows it."
    assert command.table(document, WHERE, color=False) == [sentence]
    assert command.summary(document) == "pass"


def test_colors() -> None:
    """States are bold and statuses coloured, also where a check has the name of one."""
    document = {
        "status": "warn",
        "state": "READY",
        "checks": {"pass": [{"status": "fail"}], "none": [{"status": "odd"}]},
    }
    lines = command.table(document, WHERE, color=True)
    assert lines[0] == f"\x1b[1mREADY\x1b[0m  \x1b[33mwarn\x1b[0m  {WHERE}"
    assert lines[-2:] == ["pass   \x1b[31mfail\x1b[0m", "none   odd"]


@pytest.mark.parametrize(
    "value", [None, True, -1, float("nan"), "x" * 1000, [], [[]], {}, {"a": {"b": []}}, [{"a": 3}]]
)
@pytest.mark.parametrize("key", [*DOCUMENT])
def test_any_type_anywhere(key: str, value: Any) -> None:
    """Whatever is in the place of what is expected is no error."""
    for document in (DOCUMENT | {key: value}, {"status": "pass", key: value}):
        lines = command.table(document, WHERE, color=True)
        assert all(len(line) < 800 for line in lines)
        assert command.summary(document) is not None


def test_nothing_reaches_the_terminal_as_a_command() -> None:
    """No control character of the document is printed, wherever it is."""
    nasty = "a\x1b[2J\n\r\x9b31m\u202e\x07b"
    check = {"status": nasty, "observedValue": nasty, "observedUnit": nasty, "output": nasty}
    document = DOCUMENT | {
        "reason": nasty,
        "checks": {nasty: [check]},
        "application": {"name": nasty, "host": nasty, "pid": nasty},
        "requests": [{"method": nasty, "path": nasty}],
        "work": [{"name": nasty}],
        "startup_tasks": [{"name": nasty}],
        "cordon": {"by": nasty},
    }
    lines = command.table(document, nasty, color=False)
    assert all(line.isprintable() for line in lines)
    assert command.summary(document).isprintable()
    assert sum(r"\x1b[2J\n\r\x9b31m\u202e\x07" in line for line in lines) == 8


def test_a_summary() -> None:
    """The line of a change names the state, the status, the reason, the phase and what is not well."""
    assert command.summary(DOCUMENT) == "DRAINING  fail  SIGTERM  finishing requests and work  the cache fail"
    assert command.summary({"status": "pass"}) == "pass"
    ages = DOCUMENT | {"uptime": 1, "in_flight": 9, "remaining": 3}
    assert command.summary(ages) == command.summary(DOCUMENT)
