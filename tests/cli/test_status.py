"""``flask lifecycle status``: once and again, on a terminal and elsewhere, and what the table shows."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import pytest
from flask.cli import FlaskGroup

from tests._fakes import raiser
from tests._raw_server import RawServer, answer

# What the command writes of a process, and its exit code.
Status = Callable[..., int]


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
def url() -> list[str]:
    """The URL that was asked last."""
    return []


@pytest.fixture
def status(serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch, url: list[str]) -> Status:
    """Run the command for a process that gives these answers, ``None`` for no answer, and then press Ctrl-C."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "60"), ("LINES", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(out: TextIO | None, *documents: dict[str, Any] | None, options: tuple[str, ...] = ()) -> int:
        left = list(documents)

        def script(server: RawServer, sock: socket.socket) -> None:
            found = left.pop(0)
            if found is not None:
                answer(json.dumps(found).encode())(server, sock)

        def sleep(seconds: float) -> None:
            if not left:
                raise KeyboardInterrupt

        url[:] = [f"{serve(script).url}healthcheck"]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(time, "sleep", sleep)
            with pytest.raises(SystemExit) as caught:
                FlaskGroup().main(["lifecycle", "status", url[0], "--timeout", "1m", *options])
        return int(caught.value.code or 0)

    return run


def lines_of(status: Status, document: dict[str, Any], *options: str, tty: bool = False) -> list[str]:
    """The lines that the command writes of a document."""
    status(out := Terminal(tty=tty), document, options=options)
    return out.getvalue().splitlines()


def summary_of(status: Status, *documents: dict[str, Any]) -> list[str]:
    """The lines of the changes, without their times."""
    status(out := Terminal(tty=False), *documents, options=("--watch",))
    return [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  ", "", line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(("health", "code"), [("pass", 0), ("warn", 0), ("fail", 1)])
@pytest.mark.parametrize("options", [("--json",), ()])
def test_once(status: Status, url: list[str], health: str, code: int, options: tuple[str, ...]) -> None:
    """The exit code is 0 for a healthy process, also with a warning, and 1 otherwise, however it is shown."""
    out = Terminal(tty=False)
    assert status(out, document(status=health), options=options) == code
    wanted = f'{{"status": "{health}", "state": "READY"}}\n' if options else f"READY  {health}  {url[0]}\n"
    assert out.getvalue() == wanted


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_colors_of_terminals(status: Status, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A terminal gets colours unless it has none or the user wants none."""
    monkeypatch.setenv(variable, value)
    assert ("\x1b[" in "".join(lines_of(status, document(), tty=True))) is (value == "xterm")


@pytest.mark.parametrize(
    ("encoding", "options", "wanted"),
    [
        ("ascii", (), "\\xe9\\u4e16  pass"),
        ("latin-1", (), "\xe9\\u4e16  pass"),
        ("utf-8", ("--json",), '"\\u00e9\\u4e16"'),
    ],
)
def test_a_terminal_of_few_letters(status: Status, encoding: str, options: tuple[str, ...], wanted: str) -> None:
    """What the encoding of the terminal does not have is escaped, and JSON is ASCII."""
    raw = io.BytesIO()
    assert status(io.TextIOWrapper(raw, encoding), document("\xe9\u4e16"), options=options) == 0
    assert wanted in raw.getvalue().decode(encoding)


def test_a_closed_stdout(status: Status) -> None:
    """With stdout closed there is still the exit code."""
    assert status(None, document()) == 0


def test_watch_elsewhere(status: Status, url: list[str]) -> None:
    """Elsewhere than on a terminal each change is a line, and the exit code is the last one."""
    draining = document("DRAINING", "fail", phase="drain")
    answers = (document(), document(uptime=7), draining, None, None, document(), None)
    assert status(Terminal(tty=False), *answers, options=("--watch",)) == 2
    lines = summary_of(status, *answers)  # type: ignore[arg-type]  # None is no answer
    gone = f"{url[0]} does not answer: the connection was closed without an answer."
    assert lines == ["READY  pass", "DRAINING  fail  finishing requests and work", gone, "READY  pass", gone]


def test_watch_json(status: Status) -> None:
    """With --json the document is printed for each change, also on a terminal."""
    answers = (document(), document(), None, document(status="fail"))
    out = Terminal()
    assert status(out, *answers, options=("--json", "--watch")) == 1
    lines = out.getvalue().splitlines()
    assert [lines[0], lines[2]] == [json.dumps(document()), json.dumps(document(status="fail"))]
    assert lines[1].endswith("without an answer.")


def test_watch_on_a_terminal(status: Status, url: list[str]) -> None:
    """On a terminal each picture is one write over the last, within its height."""
    many = {f"check-{number}": [{"status": "pass", "output": "x" * 100}] for number in range(20)}
    answers = (document(checks=many), None, document("DRAINING", "fail"))
    out = Terminal()
    assert status(out, *answers, options=("--watch",)) == 1
    first, second, third = out.writes
    assert all(each.startswith("\x1b[H\x1b[?7l") and each.endswith("\x1b[J\x1b[?7h") for each in out.writes)
    assert len(first.split("\r\n")) == 8
    assert second.startswith(f"\x1b[H\x1b[?7l{url[0]} does not answer: the connection")
    assert "without an answer.\x1b[K\r\n\x1b[K\r\n" in second
    assert "Ctrl-C ends this" in third


def test_ctrl_c_before_the_first_answer(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer before Ctrl-C the exit code is 2."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", raiser(KeyboardInterrupt()))
        assert status(Terminal(tty=False), options=("--watch",)) == 2


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


def test_a_table(status: Status, url: list[str]) -> None:
    """All that is known is shown, one below the other."""
    assert lines_of(status, DOCUMENT) == [
        f"DRAINING  fail  {url[0]}",
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


def test_a_document_without_details(status: Status, url: list[str]) -> None:
    """Where no details are told there is the status, and what to do."""
    assert lines_of(status, {"status": "pass"}) == [
        f"pass  {url[0]}",
        "No details are shown: set 'LIFECYCLE_DETAILS' in the application; with 'token', pass --token.",
    ]


def test_a_document_that_is_not_understood(status: Status, url: list[str]) -> None:
    """A document with other types than ours is not shown."""
    document = {"status": "pass", "state": "READY", "checks": {"db": 3}}
    sentence = "has a health document that is not understood; --json shows it."
    assert lines_of(status, document) == [f"{url[0]} {sentence}"]
    assert summary_of(status, document) == ["pass"]


def test_colors(status: Status, url: list[str]) -> None:
    """States are bold and statuses coloured, also where a check has the name of one."""
    checks = {"pass": [{"status": "fail"}], "none": [{"status": "odd"}]}
    lines = lines_of(status, document(status="warn", checks=checks), tty=True)
    assert lines[0] == f"\x1b[1mREADY\x1b[0m  \x1b[33mwarn\x1b[0m  {url[0]}"
    assert lines[-2:] == ["pass   \x1b[31mfail\x1b[0m", "none   odd"]


VALUES: list[Any] = [
    None, True, -1, float("nan"), "x" * 1000, [], [[]], {}, {"a": {"b": []}}, [{"a": 3}], "pass",
]  # fmt: skip


@pytest.mark.parametrize("key", [*DOCUMENT])
def test_any_type_anywhere(status: Status, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Whatever is in the place of what is expected is no error, in the table and in the line of a change."""
    monkeypatch.setenv("LINES", "99")
    values = ["pass", "fail"] if key == "status" else VALUES  # without its status it is no health document
    documents = [each for value in values for each in (DOCUMENT | {key: value}, {"status": "pass", key: value})]
    out = Terminal()
    assert status(out, *documents, options=("--watch",)) in (0, 1)
    assert len(out.writes) == len(documents)
    assert all(len(line) < 800 for line in out.getvalue().split("\r\n"))
    assert all(summary_of(status, *documents))


def test_nothing_reaches_the_terminal_as_a_command(status: Status) -> None:
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
    lines = lines_of(status, document)
    assert all(line.isprintable() for line in (*lines, *summary_of(status, document)))
    assert sum(r"\x1b[2J\n\r\x9b31m\u202e\x07" in line for line in lines) == 7


def test_a_summary(status: Status) -> None:
    """The line of a change names the state, the status, the reason, the phase and what is not well, but no ages."""
    shown = "DRAINING  fail  SIGTERM  finishing requests and work  the cache fail"
    ages = DOCUMENT | {"uptime": 1, "in_flight": 9, "remaining": 3}
    assert summary_of(status, DOCUMENT, ages, {"status": "pass"}) == [shown, "pass"]
