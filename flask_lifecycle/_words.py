"""The figures of the status document as people read them: what the template of the status page calls.

What comes here may be anything: figures that a check has made up, a receipt that was read from a file. Each function
answers with a text, and for what it does not understand with that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from ._record import NamedTuple

# The phases of a stop; those of ``_shutdown.PHASES``, and the way out.
COURSE = ("announce", "delay", "stop accepting", "drain", "hooks", "exit")

# Of one text so much is shown: a page is no log.
_LONGEST = 300
_MARKS = {"pass": "\u2713", "warn": "!", "fail": "\u2715"}
_COLOURS = {"pass": "#1a7f37", "warn": "#bf8700", "fail": "#cf222e"}
_ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='{}'/></svg>"

# What has no sign of its own, and what would turn the text around it: a page shows that there is something.
_UNSEEN = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
) | {ord(blank): " " for blank in "\t\n\r"}

# Of a line of bars, in pixels: of each its width and the gap behind it, and how high the highest is.
_BAR, _GAP, _HEIGHT = 2, 1, 16
_BARS = 30


class Keyed(NamedTuple):
    """A row of a table, and what tells it from the others."""

    key: str
    of: Mapping[str, Any]


class Phase(NamedTuple):
    """A phase of a stop: ``over``, ``now`` or ``ahead``."""

    name: str
    when: str
    mark: str
    seconds: Any


class Spark(NamedTuple):
    """A line of bars: its shape, and the same in words."""

    path: str
    width: int
    height: int
    label: str
    range: str


def is_figure(value: Any) -> bool:
    """Whether this is a number that can be shown as one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """A text on one line, no longer than there is room for, and of signs that can be seen."""
    text = "" if value is None else str(value)
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
    return cut.translate(_UNSEEN)


def long(seconds: Any) -> str:
    """An age, or what is left: seconds in two units at most."""
    if not is_figure(seconds):
        return short(seconds)
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(min(seconds, 1e12))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def tenths(seconds: Any) -> str:
    """How long something took that is over."""
    return f"{seconds:.1f} s" if is_figure(seconds) and 0 <= seconds < 60 else long(seconds)


def brief(seconds: Any) -> str:
    """What a run took: milliseconds to three digits, seconds from one on."""
    if not is_figure(seconds):
        return short(seconds)
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
    milliseconds = max(0.0, seconds * 1000)
    digits = 2 if milliseconds < 1 else 1 if milliseconds < 10 else 0
    return f"{milliseconds:.{digits}f} ms"


def clock(iso: Any) -> str:
    """A moment to the second."""
    return f"{short(iso)[:19].replace('T', ' ')} UTC"


def mark(status: Any) -> str:
    """A status as a sign, for those who do not see colours."""
    return _MARKS.get(status, "?")


def token(status: Any) -> str:
    """A status as a class of the style sheet."""
    return status if status in _MARKS else ""


def icon(status: Any) -> str:
    """A status as an icon, for the tab of the browser."""
    return f"data:image/svg+xml,{quote(_ICON.format(_COLOURS.get(status, '#57606a')))}"


def tally(checks: Mapping[str, Any]) -> str:
    """How many checks say what."""
    found = [check["status"] for (check,) in checks.values()]
    return ", ".join(f"{found.count(status)} {status}" for status in _MARKS if status in found) or "0"


def worst_first(checks: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The checks by name: what somebody who looks for trouble looks for is above."""
    order = ["fail", "warn", "pass"]
    return sorted(((name, check) for name, (check,) in checks.items()), key=lambda each: order.index(each[1]["status"]))


def figure(check: Mapping[str, Any]) -> str:
    """A check's own figure, if it has one; what the draft has in its place, how long it took, is in another column."""
    value, unit = check.get("observedValue"), check.get("observedUnit")
    took = unit == "ms" and is_figure(value) and value == round(check.get("duration", 0) * 1000, 1)
    return "" if took or value is None else f"{value} {unit or ''}".rstrip()


def keyed(rows: Iterable[Mapping[str, Any]], *names: str) -> list[Keyed]:
    """Rows, each with a key that stays the same as long as these values do, and that no other has."""
    counts: dict[str, int] = {}
    found = []
    for row in rows:
        key = "|".join(str(row.get(name, "")) for name in names)
        counts[key] = counts.get(key, 0) + 1
        found.append(Keyed(f"{key}|{counts[key]}", row))
    return found


def records(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def phases(document: Mapping[str, Any]) -> list[Phase]:
    """All phases of a stop, as far as it has come."""
    over = {phase["name"]: phase["seconds"] for phase in records(document["phases"])}
    found = []
    for name in COURSE:
        if name == document["phase"]:  # looked at first: for an instant the last one is over and the next is not on
            found.append(Phase(name, "now", "\u25b8", None))
        elif name in over:
            found.append(Phase(name, "over", _MARKS["pass"], over[name]))
        else:
            found.append(Phase(name, "ahead", "\u00b7", None))
    return found


def spark(durations: Any) -> Spark | None:
    """The last durations of a check as bars, the newest on the right; of one alone nothing is to be seen."""
    figures = [value for value in durations or () if is_figure(value) and value >= 0][-_BARS:]
    if len(figures) < 2:
        return None
    highest = max(figures) or 1.0
    step = _BAR + _GAP
    start = (_BARS - len(figures)) * step
    bars = []
    for number, value in enumerate(figures):
        height = max(1, round(value / highest * _HEIGHT))
        bars.append(f"M{start + number * step} {_HEIGHT}v-{height}h{_BAR}v{height}z")
    low, high = brief(min(figures)), brief(max(figures))
    label = f"The last {len(figures)} runs took {low} to {high}, the latest {brief(figures[-1])}"
    return Spark("".join(bars), _BARS * step - _GAP, _HEIGHT, label, low if low == high else f"{low} \u2013 {high}")


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        brief,
        clock,
        figure,
        icon,
        keyed,
        long,
        mark,
        phases,
        records,
        short,
        spark,
        tally,
        tenths,
        token,
        worst_first,
    )
}
