"""``flask lifecycle status``: once and again, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle import _status_watch as watch
from flask_lifecycle._remote import UnreachableError, Url
from flask_lifecycle._status_watch import Changes, Screen, Seen, json_text, status

URL = Url("http", "127.0.0.1", 9000, "/healthcheck")
GONE = "http://127.0.0.1:9000/healthcheck cannot be asked: nobody listens there."


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
    """Let a process answer these, one after the other; ``None`` for nothing, and then Ctrl-C is pressed."""

    def say(*documents: dict[str, Any] | None) -> None:
        left = list(documents)

        def fetch(url: Url, token: str | None, timeout: float) -> tuple[dict[str, Any], bytes]:
            assert (url, token, timeout) == (URL, "hush", 5.0)
            if not left:
                raise KeyboardInterrupt
            found = left.pop(0)
            if found is None:
                raise UnreachableError(GONE)
            return found, json.dumps(found).encode()

        monkeypatch.setattr(watch, "fetch_health", fetch)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((60, 8)))
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("LINES", "8")

    return say


def run(out: Terminal, *, as_json: bool = False, interval: float | None = None) -> int:
    return status(URL, "hush", 5.0, as_json=as_json, interval=interval, stream=out)


@pytest.mark.parametrize(("said", "code"), [("pass", 0), ("warn", 0), ("fail", 1)])
@pytest.mark.parametrize("as_json", [True, False])
def test_once(answers: Any, said: str, code: int, as_json: bool) -> None:
    """The exit code is 0 for a healthy process, a warning included, and 1 for another, however it is shown."""
    answers(document(status=said))
    out = Terminal(tty=False)
    assert run(out, as_json=as_json) == code
    wanted = f'{{"status": "{said}", "state": "READY"}}\n' if as_json else f"READY  {said}  {URL}\n"
    assert out.getvalue() == wanted


def test_nobody(answers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is nobody the exit code is 2, and one sentence is on stderr."""
    answers(None)
    out = Terminal(tty=False)
    assert run(out) == 2
    assert (out.getvalue(), capsys.readouterr().err) == ("", f"{GONE}\n")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_colors(answers: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A terminal gets colours unless it cannot show them or nobody wants them."""
    answers(document())
    monkeypatch.setenv(variable, value)
    out = Terminal()
    run(out)
    assert ("\x1b[" in out.getvalue()) is (value == "xterm")


def test_json_is_printed_as_it_came() -> None:
    """The document is not written anew, but for what a terminal might take for a command, and means the same."""
    body = '{"status":  "pass",\r\n\t"a": "ü世\x7f\x9b\u202e\U000e0001"}\n\n'.encode()
    text = json_text(body)
    assert text == '{"status":  "pass",\n\t"a": "ü世\\u007f\\u009b\\u202e\\udb40\\udc01"}\n'
    assert json.loads(text) == json.loads(body)
    assert json_text(b"\x1b\r") == "\\u001b\\u000d\n"


@pytest.mark.parametrize(
    ("encoding", "as_json", "told"),
    [
        ("ascii", False, "\\xe9\\u4e16  pass"),
        ("latin-1", False, "\xe9\\u4e16  pass"),
        ("ascii", True, '"state": "\\u00e9\\u4e16"'),
        ("latin-1", True, '"state": "\xe9\\u4e16"'),
        ("utf-8", True, '"state": "\xe9\u4e16"'),
    ],
)
def test_a_terminal_of_few_letters(monkeypatch: pytest.MonkeyPatch, encoding: str, as_json: bool, told: str) -> None:
    """What the encoding of the terminal does not have is escaped, and a healthy process is healthy all the same."""
    found = document("\xe9\u4e16")
    body = json.dumps(found, ensure_ascii=False).encode()
    monkeypatch.setattr(watch, "fetch_health", lambda *arguments: (found, body))
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding)
    assert status(URL, "hush", 5.0, as_json=as_json, interval=None, stream=out) == 0
    assert told in raw.getvalue().decode(encoding)


def test_a_closed_stdout(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has closed stdout gets the exit code."""
    monkeypatch.setattr(sys, "stdout", None)
    answers(document())
    assert status(URL, "hush", 5.0, as_json=False, interval=None) == 0


def test_a_reader_that_has_gone() -> None:
    """Who watches through a pipe ends when nobody reads it any more, although there is nothing new to write."""
    read, write = os.pipe()
    with open(write, "w") as out:
        changes = Changes(out, as_json=False)
        for _ in range(2):
            changes.show(Seen(0, document(), b""))
        os.close(read)
        with pytest.raises(BrokenPipeError, match="Broken pipe"):
            changes.show(Seen(0, document(), b""))


def test_watch_elsewhere(answers: Any) -> None:
    """Elsewhere than on a terminal a line is printed for each change, and the exit code is the last one."""
    out = Terminal(tty=False)
    answers(document(), document(uptime=7), document("DRAINING", "fail", phase="drain"), None, None)
    assert run(out, interval=1) == 2
    lines = [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  ", "", line) for line in out.getvalue().splitlines()]
    assert lines == ["READY  pass", "DRAINING  fail  phase drain", GONE]


def test_watch_json(answers: Any) -> None:
    """With --json the document is printed for each change, also on a terminal."""
    out = Terminal()
    answers(document(), document(), None, document(status="fail"))
    assert run(out, as_json=True, interval=1) == 1
    lines = out.getvalue().splitlines()
    assert [lines[0], lines[2]] == [json.dumps(document()), json.dumps(document(status="fail"))]
    assert lines[1].endswith(GONE)


def test_watch_on_a_terminal(answers: Any) -> None:
    """On a terminal each look is drawn in one write over the last, within its size, and at the end it is as it was."""
    out = Terminal()
    many = {f"check-{number}": {"status": "pass", "output": "x" * 100} for number in range(20)}
    answers(document(checks=many), None, document("DRAINING", "fail"))
    assert run(out, interval=1) == 1
    begin, first, second, third, end, *last = out.writes
    assert begin == "\x1b[?1049h\x1b[?25l\x1b[2J"
    assert end == "\x1b[?25h\x1b[?1049l"
    assert all(picture.startswith("\x1b[H") and picture.endswith("\x1b[K\x1b[J") for picture in (first, second, third))
    lines = re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", first).split("\r\n")
    assert len(lines) == 8
    assert max(map(len, lines)) == 60
    assert second.startswith(f"\x1b[H{GONE[:60]}\x1b[K\r\n\x1b[K\r\n")
    assert "Ctrl-C ends this" in third
    assert "".join(last) == f"\x1b[1mDRAINING\x1b[0m  \x1b[31mfail\x1b[0m  {URL}\n"


def test_sigterm_gives_the_terminal_back(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends it as Ctrl-C does, and whoever had the signal has it again."""
    answers(document())
    monkeypatch.setattr(time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    out = Terminal()
    assert run(out, interval=1) == 0
    assert out.writes[2] == "\x1b[?25h\x1b[?1049l"


def test_a_terminal_is_given_back_when_something_fails() -> None:
    """Whatever happens, the terminal has its cursor and its first screen again."""
    out = Terminal()
    with pytest.raises(ZeroDivisionError, match="defect"), Screen(out):
        raise ZeroDivisionError("defect")
    assert out.writes[-1] == "\x1b[?25h\x1b[?1049l"


def test_ctrl_c_before_the_first_answer(answers: Any) -> None:
    """Who gives up before anything was seen has seen nobody."""
    answers()
    assert run(Terminal(tty=False), interval=1) == 2


def test_changes_are_told_once() -> None:
    """A line is printed when something is another than before, and again when it is back."""
    out = Terminal(tty=False)
    changes = Changes(out, as_json=False)
    for said in (document(), document(), document("NOT_READY", "fail"), document()):
        changes.show(Seen(0, said, b""))
    assert [line.split("  ")[1] for line in out.getvalue().splitlines()] == ["READY", "NOT_READY", "READY"]
