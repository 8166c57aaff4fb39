"""``flask lifecycle status``: the status of a process as a table, once or repeatedly.

The document comes from another process, perhaps of another version, or from something that only claims to be one. So
nothing but printable characters reaches the terminal, and a document that has other types is not shown.
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

_LONGEST = 200  # characters of a text of the document
_COLORS = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """The answer of a process, or why there is none."""

    code: int
    document: dict[str, Any]
    trouble: str = ""


def show_status(url: Url, token: str | None, timeout: float, *, as_json: bool, interval: float | None) -> int:
    """Show the status of a process once, or until Ctrl-C; return the exit code."""
    out: TextIO = sys.stdout or io.StringIO()  # stdout may be closed; the exit code counts all the same
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
    """The lines of the table, or of a sentence if the document is not understood.

    :param where: the document comes from.
    """
    try:
        return _table(_printable(document), visible(where), color)
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{visible(where)} has a health document that is not understood; --json shows it."]


def _table(document: Mapping[str, Any], where: str, color: bool) -> list[str]:
    state, status = document.get("state", ""), document["status"]
    head = [_styled(state, color, bold=True)] if state else []
    lines = ["  ".join([*head, _styled(status, color, fg=_COLORS.get(status)), where])]
    lines += [says] if (says := headline(document)) else []
    lines += _aligned([(name, value) for name, value in _rows(document) if value])
    checks = [
        (name, each.get("status", ""), _value(each), long(each["age"]) if "age" in each else "", each.get("output", ""))
        for name, each in worst_first(document.get("checks", {}))
    ]
    if checks:
        header, *rows = _aligned([("CHECK", "STATUS", "VALUE", "AGE", "OUTPUT"), *checks])
        lines += ["", header]
        for row, (name, status, *_rest) in zip(rows, checks, strict=True):
            styled = _styled(status, color, fg=_COLORS.get(status))
            lines.append(name + row[len(name) :].replace(status, styled, 1) if status else row)
    if not state:
        lines.append("No details are shown: set 'LIFECYCLE_DETAILS' in the application; with 'token', pass --token.")
    return lines


def summary(document: Mapping[str, Any]) -> str:
    """What is worth a new line when it changes: the state and the statuses, and neither ages nor counts."""
    try:
        document = _printable(document)
        bad = [f"{name} {each['status']}" for name, each in worst_first(document.get("checks", {}))]
        parts = [document.get(key) for key in ("state", "status", "reason")]
        parts += [phase_in_words(document.get("phase")), ", ".join(each for each in bad if not each.endswith(" pass"))]
        return "  ".join(part for part in parts if part)
    except (AttributeError, KeyError, TypeError, ValueError):
        return str(document["status"])


def _printable(value: Any) -> Any:
    """A value of JSON with all its texts on one line and of limited length."""
    if isinstance(value, Mapping):
        return {visible(name, _LONGEST): _printable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return visible(value, _LONGEST) if isinstance(value, str) else value


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cordon, application, server = (document.get(key) for key in ("cordon", "application", "server"))
    phase, work, tasks = document.get("phase"), document.get("work"), document.get("startup_tasks")
    yield "reason", document.get("reason", "")
    if cordon:
        yield "cordon", f"by {cordon['by']}{_left(cordon)}"
    if application:
        up = long(document["uptime"])
        yield "process", f"{application['name']}, on {application['host']}, pid {application['pid']}, up {up}"
    if server:
        yield "server", f"{server['name']}, a shutdown answers {server['guarantee']}"
    if phase:
        yield "shutdown", phase_in_words(phase) + _left(document)
    if "in_flight" in document:
        yield "in flight", _with_oldest(document["in_flight"], document.get("requests"), "method", "path")
    if work is not None:
        yield "work", _with_oldest(len(work) + document.get("work_omitted", 0), work, "name")
    if tasks:
        yield "start-up", _with_oldest(len(tasks), tasks, "name")


def _left(document: Mapping[str, Any]) -> str:
    seconds = document.get("remaining")
    return "" if seconds is None else f", {long(seconds)} left"


def _with_oldest(count: int, entries: Sequence[Mapping[str, Any]] | None, *names: str) -> str:
    """A count, and the first of what is counted."""
    if not entries:
        return str(count)
    words = [entries[0][name] for name in names if name in entries[0]]  # a request that is half received has no path
    words += [f"for {long(entries[0]['age'])}"] if "age" in entries[0] else []
    return f"{count} (oldest: {' '.join(words)})"


def _value(check: Mapping[str, Any]) -> str:
    return " ".join(str(check[key]) for key in ("observedValue", "observedUnit") if key in check)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _styled(text: str, color: bool, **style: Any) -> str:
    return click.style(text, **style) if color and any(style.values()) else text
