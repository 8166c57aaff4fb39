"""``flask lifecycle status``: the status of a process as a table, once or repeatedly.

The document comes from another process, perhaps of another version, or from something that only claims to be one. So
each value may be missing or of any type, and nothing but printable characters reaches the terminal.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import click

from .._core.text import visible
from .._status.formatting import headline, long, phase_in_words, worst_first
from .client import UnreachableError, Url, fetch_health

_COLORS = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """The answer of a process, or why there is none."""

    code: int
    document: dict[str, Any]
    trouble: str = ""


def show_status(
    url: Url, token: str | None, timeout: float, *, as_json: bool, interval: float | None, stream: TextIO | None = None
) -> int:
    """Show the status of a process once, or until Ctrl-C; return the exit code."""
    out = stream or sys.stdout or io.StringIO()  # stdout may be closed; the exit code counts all the same
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # the terminal may not know "é"

    def ask() -> Seen:
        try:
            document = fetch_health(url, token, timeout)
        except UnreachableError as error:
            return Seen(2, {}, str(error))
        return Seen(0 if document["status"] in ("pass", "warn") else 1, document)

    if interval is not None:
        draws = out.isatty() and not as_json
        return _repeat(ask, _redraw(url, out) if draws else _print_changes(out, as_json), interval)
    seen = ask()
    if seen.trouble:
        click.echo(seen.trouble, err=True)
    else:
        out.write("".join(f"{line}\n" for line in ([_json(seen)] if as_json else _lines(seen, url, out))))
        out.flush()
    return seen.code


def _repeat(ask: Callable[[], Seen], show: Callable[[Seen], None], interval: float) -> int:
    """Ask and show until Ctrl-C; return the last exit code."""
    code = 2
    try:
        while True:
            seen = ask()
            code = seen.code
            show(seen)
            time.sleep(interval)
    except KeyboardInterrupt:
        return code


def _json(seen: Seen) -> str:
    return json.dumps(seen.document)  # ASCII alone, so no terminal takes any of it for a command


def _lines(seen: Seen, url: Url, out: TextIO) -> list[str]:
    color = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return [seen.trouble] if seen.trouble else table(seen.document, str(url), color=color)


def _print_changes(out: TextIO, as_json: bool) -> Callable[[Seen], None]:
    """Give a function that prints a line when the status has changed."""
    last: str | None = None

    def show(seen: Seen) -> None:
        nonlocal last
        text = seen.trouble or summary(seen.document)
        if text != last:
            last = text
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            out.write(f"{_json(seen)}\n" if as_json and not seen.trouble else f"{now}  {text}\n")
            out.flush()

    return show


def _redraw(url: Url, out: TextIO) -> Callable[[Seen], None]:
    """Give a function that draws the table in place. Each picture is one write, so that nothing flickers."""

    def show(seen: Seen) -> None:
        now = datetime.datetime.now().strftime("%H:%M:%S")
        lines = [*_lines(seen, url, out), "", f"{now}  Ctrl-C ends this"][: shutil.get_terminal_size().lines]
        # From the first place on, without wrapping long lines.
        out.write("\x1b[H\x1b[?7l" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J\x1b[?7h")
        out.flush()

    return show


# -- the table ----------------------------------------------------------------------------------------------------


def table(document: Mapping[str, Any], where: str, *, color: bool) -> list[str]:
    """The lines of the table.

    :param where: the document comes from.
    """
    state, status = _text(document.get("state")), _text(document.get("status"))
    head = [_styled(state, color, bold=True)] if state else []
    lines = ["  ".join([*head, _styled(status, color, fg=_COLORS.get(status)), visible(where)])]
    lines += [_text(says)] if (says := headline(document)) else []
    lines += _aligned([(name, value) for name, value in _rows(document) if value])
    checks = _check_rows(document.get("checks"))
    if checks:
        header, *rows = _aligned([("CHECK", "STATUS", "VALUE", "AGE", "OUTPUT"), *checks])
        lines += ["", header]
        for row, (name, status, *_rest) in zip(rows, checks, strict=True):
            styled = _styled(status, color, fg=_COLORS.get(status))
            lines.append(name + row[len(name) :].replace(status, styled, 1) if status else row)
    if not state:
        lines.append("No details are shown: pass --token, or set 'LIFECYCLE_DETAILS' in the application.")
    return lines


def summary(document: Mapping[str, Any]) -> str:
    """What is worth a new line when it changes: the state and the statuses, and neither ages nor counts."""
    parts = [_text(document.get(key)) for key in ("state", "status", "reason")]
    phase = _text(phase_in_words(document.get("phase")))
    bad = [f"{name} {status}" for name, status, *_ in _check_rows(document.get("checks")) if status != "pass"]
    return "  ".join(part for part in (*parts, phase, ", ".join(bad)) if part)


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cordon, application, server = (_mapping(document.get(key)) for key in ("cordon", "application", "server"))
    name, host, pid = (_text(application.get(key)) for key in ("name", "host", "pid"))
    up = _seconds(document.get("uptime")) if application else ""
    items, omitted = document.get("work"), document.get("work_omitted")
    if isinstance(items, list):
        count = _text(len(items) + (omitted if isinstance(omitted, int) else 0))
    else:
        count = _text(items)
    tasks = document.get("startup_tasks")
    yield "reason", _text(document.get("reason"))
    yield "cordon", _joined("by ", _text(cordon.get("by")), _left(cordon))
    yield "process", _joined("", name, host and f"on {host}", pid and f"pid {pid}", up and f"up {up}")
    answers = _after("a shutdown answers ", _text(server.get("guarantee")))
    yield "server", _joined("", _text(server.get("name")), answers)
    yield "shutdown", _joined("", _text(phase_in_words(document.get("phase"))), _left(document))
    yield "in flight", _with_oldest(_text(document.get("in_flight")), document.get("requests"), ("method", "path"))
    yield "work", _with_oldest(count, items, ("name",))
    yield "start-up", _with_oldest(str(len(tasks)), tasks, ("name",)) if isinstance(tasks, list) and tasks else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _after(prefix: str, text: str) -> str:
    return f"{prefix}{text}" if text else ""


def _joined(prefix: str, first: str, *others: str) -> str:
    return ", ".join(part for part in (_after(prefix, first), *others) if part)


def _left(document: Mapping[str, Any]) -> str:
    seconds = _seconds(document.get("remaining"))
    return seconds and f"{seconds} left"


def _with_oldest(count: str, entries: Any, names: Sequence[str]) -> str:
    """A count, and the first of what is counted."""
    first = entries[0] if isinstance(entries, list) and entries else None
    if not isinstance(first, Mapping):
        return count
    words = [word for name in names if (word := _text(first.get(name)))]
    age = _seconds(first.get("age"))
    return f"{count} (oldest: {' '.join([*words, *([f'for {age}'] if age else [])])})"


def _check_rows(checks: Any) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name, check in worst_first(checks):
        value = " ".join(part for key in ("observedValue", "observedUnit") if (part := _text(check.get(key))))
        status, output = _text(check.get("status")), _text(check.get("output"))
        rows.append((_text(name), status, value, _seconds(check.get("age")), output))
    return rows


def _text(value: Any) -> str:
    """A value as one printable line; empty for what has no place in a table."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return "?" if isinstance(value, int) and value.bit_length() >= 1024 else visible(str(value), 200)


def _seconds(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        return ""
    return long(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _styled(text: str, color: bool, **style: Any) -> str:
    return click.style(text, **style) if color and any(style.values()) else text
