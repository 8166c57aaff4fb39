"""Units of systemd: a service, or a drop-in that changes one."""

from __future__ import annotations

import math
import re

from .model import Command, Notes, Number, Stop, Workload, split
from .source import UnreadableError, Value, find_template, joined, template

# systemd's own default, DefaultTimeoutStopSec=.
_LIMIT = 90.0
_UNITS = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3,
    "": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0, "w": 604800.0, "week": 604800.0, "weeks": 604800.0,
}  # fmt: skip
_LONGEST = 100  # characters of a time
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_SECTION = re.compile(r"\[[\w-]+\]")
_PREFIXES = "-@:+!|"


def is_systemd(file: str, text: str) -> bool:
    _, first = next(joined(text, "#;"), (0, ""))
    return file.endswith(".service") or first in ("[Unit]", "[Service]", "[Install]")


def read_systemd(text: str, notes: Notes) -> Workload:
    """The service of a unit."""
    marked = find_template(text)
    if marked:
        raise template(marked)
    entries = _service(text)
    if not entries:
        raise UnreadableError(0, "The unit has no section '[Service]', so there is nothing to check.")
    last = _last(entries)
    name = notes.file.rpartition("/")[2]
    notes.subject = f"unit '{name}'"
    start, stop = last.get("ExecStart"), last.get("ExecStop")
    environment = [
        (name, Value(value.line, text))
        for key, value in entries
        if key == "Environment"
        for name, _, text in (word.partition("=") for word in split(str(value.data)))
    ]
    return Workload(
        "systemd", notes.file, notes.subject, start.line if start else entries[0][1].line,
        _limit(last, start, notes), "TimeoutStopSec",
        Command.of(start.line, _words(start)) if start else None,
        Stop.of(stop.line, _words(stop)) if stop else None,
        env=dict(environment), options=last,
    )  # fmt: skip


def _service(text: str) -> list[tuple[str, Value]]:
    """The keys and values of the section, in their order."""
    section, found = "", []
    for number, line in joined(text, "#;"):
        if _SECTION.fullmatch(line):
            section = line
            continue
        key, equals, value = line.partition("=")
        if not equals or not section:
            raise UnreadableError(number, "This is not a line of a unit, such as '[Section]' or 'Key=value'.")
        if section == "[Service]":
            found.append((key.strip(), Value(number, value.strip())))
    return found


def _last(entries: list[tuple[str, Value]]) -> dict[str, Value]:
    """The effective value of each key; an empty value resets it."""
    found: dict[str, Value] = {}
    for key, value in entries:
        found.pop(key, None)
        if value.data:
            found[key] = value
    return found


def _words(value: Value) -> list[str]:
    text = str(value.data)
    words = list(split(text.lstrip(_PREFIXES)))
    renamed = "@" in text[: len(text) - len(text.lstrip(_PREFIXES))]
    return words[:1] + words[2:] if renamed else words


def _limit(last: dict[str, Value], start: Value | None, notes: Notes) -> Number:
    value = last.get("TimeoutStopSec") or last.get("TimeoutSec")
    if value is None:
        # A drop-in has only what it changes.
        return Number(_LIMIT if start else math.inf, start.line if start else 0, False)
    seconds = _seconds(str(value.data))
    if math.isnan(seconds):
        notes.add(value.line, f"TimeoutStopSec is '{value.data}'", "give it a time such as '30' or '1min 30s'")
        return Number(_LIMIT, value.line, False)
    return Number(seconds, value.line)


def _seconds(text: str) -> float:
    """A time as systemd writes it, ``nan`` if it is not valid; 0 means no limit, too."""
    if text == "infinity":
        return math.inf
    if len(text) > _LONGEST:
        return math.nan
    parts = _PART.findall(text)
    known = bool(parts) and all(unit in _UNITS for _, unit in parts)
    if not known or _PART.sub("", text).strip():
        return math.nan
    return sum(float(number) * _UNITS[unit] for number, unit in parts) or math.inf
