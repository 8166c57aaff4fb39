"""The status of a process as a table for people, made from whatever document came back.

The document was written by another process, perhaps of another version, or by somebody who only claims to be one. So
nothing is taken to be there or of a certain type, and no character reaches the terminal that is more than a letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._duration import format_duration
from ._remote import visible

_COLORS = {"pass": 32, "warn": 33, "fail": 31}
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")  # what we put in ourselves; in groups, so that a split keeps it
_CHECK_COLUMNS = ("CHECK", "STATUS", "VALUE", "AGE", "OUTPUT")


def table(document: Mapping[str, Any], where: str, *, color: bool) -> list[str]:
    """The lines of the table.

    :param where: the document comes from.
    """
    status = _text(document.get("status"))
    state = _text(document.get("state"))
    head = [_bold(state, color)] if state else []
    lines = ["  ".join([*head, _colored(status, status, color), visible(where)])]
    lines += _aligned([(name, value) for name, tell in _ROWS if (value := tell(document))])
    checks = _check_rows(document.get("checks"))
    if checks:
        rows = _aligned([_CHECK_COLUMNS, *checks])
        colored = zip(rows[1:], checks, strict=True)
        lines += ["", rows[0], *(_with_status(row, check[0], check[1], color) for row, check in colored)]
    if not state:
        lines.append("no details are told; give the token, and set 'LIFECYCLE_DETAILS' there")
    return lines


def summary(document: Mapping[str, Any]) -> str:
    """What is worth a new line when it changes: the state and the statuses, and neither ages nor counts."""
    parts = [_text(document.get("state")), _text(document.get("status")), _text(document.get("reason"))]
    phase = _text(document.get("phase"))
    bad = [f"{name} {status}" for name, status, *_ in _check_rows(document.get("checks")) if status != "pass"]
    return "  ".join(part for part in (*parts, phase and f"phase {phase}", ", ".join(bad)) if part)


def clip(line: str, width: int) -> str:
    """As much of a line as fits, so that a terminal does not break it; colours take no room."""
    text, room = "", width
    for piece in _STYLE.split(line):
        if piece.startswith("\x1b"):
            text += piece
            continue
        for each in piece:
            room -= _room(each)
            if room < 0:
                return text + ("\x1b[0m" if "\x1b" in text else "")
            text += each
    return text


# -- the rows -----------------------------------------------------------------------------------------------------


def _reason(document: Mapping[str, Any]) -> str:
    return _text(document.get("reason"))


def _cordon(document: Mapping[str, Any]) -> str:
    cordon = document.get("cordon")
    if not isinstance(cordon, Mapping):
        return ""
    by, left = _text(cordon.get("by")), _seconds(cordon.get("remaining"))
    return ", ".join(part for part in (by and f"by {by}", left and f"{left} left") if part)


def _process(document: Mapping[str, Any]) -> str:
    application = document.get("application")
    if not isinstance(application, Mapping):
        return ""
    name, host, pid = (_text(application.get(key)) for key in ("name", "host", "pid"))
    since = _seconds(document.get("uptime"))
    parts = [name, f"on {host}" if host else "", f"pid {pid}" if pid else "", f"up {since}" if since else ""]
    return ", ".join(part for part in parts if part)


def _server(document: Mapping[str, Any]) -> str:
    server = document.get("server")
    if not isinstance(server, Mapping):
        return ""
    name, promise = _text(server.get("name")), _text(server.get("promise"))
    return ", ".join(part for part in (name, promise and f"promise {promise}") if part)


def _phase(document: Mapping[str, Any]) -> str:
    phase, left = _text(document.get("phase")), _seconds(document.get("remaining"))
    return ", ".join(part for part in (phase, f"{left} left" if left else "") if part)


def _in_flight(document: Mapping[str, Any]) -> str:
    count = document.get("in_flight", document.get("inFlight"))
    return _with_oldest(_text(count), document.get("requests"), ("method", "path"))


def _tokens(document: Mapping[str, Any]) -> str:
    tokens = document.get("tokens")
    if not isinstance(tokens, list):
        return _text(tokens)
    omitted = document.get("tokens_omitted")
    return _with_oldest(_text(len(tokens) + (omitted if isinstance(omitted, int) else 0)), tokens, ("name",))


def _startup(document: Mapping[str, Any]) -> str:
    tasks = document.get("startup_tasks")
    return _with_oldest(str(len(tasks)), tasks, ("name",)) if isinstance(tasks, list) and tasks else ""


_ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("reason", _reason),
    ("cordon", _cordon),
    ("process", _process),
    ("server", _server),
    ("phase", _phase),
    ("in flight", _in_flight),
    ("tokens", _tokens),
    ("start-up", _startup),
)


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
    for name, components in checks.items() if isinstance(checks, Mapping) else ():
        for component in components if isinstance(components, list) else (components,):
            if isinstance(component, Mapping):
                rows.append(_check_row(_text(name), component))
    return rows


def _check_row(name: str, component: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    value = " ".join(part for key in ("observedValue", "observedUnit") if (part := _text(component.get(key))))
    output = _text(component.get("output"))
    return name, _text(component.get("status")), value, _seconds(component.get("age")), output


# -- words --------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A value as one line that may be printed; empty for what has no place in a table."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    text = visible(str(value)) if not isinstance(value, int) or value.bit_length() < 1024 else "?"
    return text if len(text) <= 200 else f"{text[:197]}..."


def _seconds(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        return ""
    return format_duration(round(value, 1) if value < 10 else round(value))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns begin below each other."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    padded = ([cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _width(text: str) -> int:
    return sum(map(_room, text))


def _room(character: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text


def _colored(text: str, status: str, color: bool) -> str:
    return f"\x1b[{_COLORS[status]}m{text}\x1b[0m" if color and status in _COLORS else text


def _with_status(row: str, name: str, status: str, color: bool) -> str:
    """A row of a check with its status coloured, which is the first word behind the name."""
    rest = row[len(name) :]
    return name + rest.replace(status, _colored(status, status, color), 1) if status else row
