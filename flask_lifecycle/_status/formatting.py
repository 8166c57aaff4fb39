"""Values of the status document as readable text, for the page's template and for ``flask lifecycle status``.

The document may come from another process, perhaps of another version, so each value may be missing or of any type. A
function returns a value that it does not understand as text. The caller makes the text safe for where it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ..checks._check import is_number

# What a phase of the shutdown does, in words: those of ``_core/shutdown.py``, and the way out.
PHASES = {
    "announce": "announcing the shutdown",
    "delay": "waiting for load balancers",
    "stop accepting": "closing the listener",
    "drain": "finishing requests and work",
    "hooks": "running on_shutdown functions",
    "exit": "exiting",
}
_VERBS = {"fail": "fails", "warn": "warns"}
_ORDER = ("fail", "warn", "pass")

# Characters of a text that are shown.
_LONGEST = 300
_MARKS = {"pass": "\u2713", "warn": "!", "fail": "\u2715"}
_COLOURS = {"pass": "#1a7f37", "warn": "#bf8700", "fail": "#cf222e"}
_ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='{}'/></svg>"

# Characters without a glyph, and those that change the direction of text, are shown as a replacement character.
_UNSEEN = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
) | {ord(blank): " " for blank in "\t\n\r"}

# Of a line of bars, in pixels: the width of a bar, the gap behind it, and the height of the highest.
_BAR, _GAP, _HEIGHT = 2, 1, 16
_BARS = 30


class Phase(NamedTuple):
    """A phase of a shutdown: ``over``, ``now`` or ``ahead``."""

    name: str
    when: str
    mark: str
    seconds: Any


class Spark(NamedTuple):
    """A line of bars: its shape, and its description."""

    path: str
    width: int
    height: int
    label: str
    range: str


def short(value: Any) -> str:
    """A text on one line, of limited length, without invisible characters."""
    text = "" if value is None else str(value)
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
    return cut.translate(_UNSEEN)


def long(seconds: Any) -> str:
    """Seconds in two units at most."""
    if not is_number(seconds):
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
    """Seconds with one decimal place, below a minute."""
    return f"{seconds:.1f} s" if is_number(seconds) and 0 <= seconds < 60 else long(seconds)


def brief(seconds: Any) -> str:
    """Seconds as milliseconds with three digits, or as seconds from one on."""
    if not is_number(seconds):
        return short(seconds)
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
    milliseconds = max(0.0, seconds * 1000)
    digits = 2 if milliseconds < 1 else 1 if milliseconds < 10 else 0
    return f"{milliseconds:.{digits}f} ms"


def clock(iso: Any) -> str:
    return f"{short(iso)[:19].replace('T', ' ')} UTC"


def mark(status: Any) -> str:
    """A symbol for a status, for readers who do not see colours."""
    return _MARKS.get(status, "?")


def css_class(status: Any) -> str:
    return status if status in _MARKS else ""


def icon(status: Any) -> str:
    return f"data:image/svg+xml,{quote(_ICON.format(_COLOURS.get(status, '#57606a')))}"


def status_counts(checks: Mapping[str, Any]) -> str:
    found = [check["status"] for (check,) in checks.values()]
    return ", ".join(f"{found.count(status)} {status}" for status in _MARKS if status in found) or "0"


def figure(check: Mapping[str, Any]) -> str:
    """A check's own value, if it has one; its duration, which the draft has in that place, is in another column."""
    value, unit = check.get("observedValue"), check.get("observedUnit")
    took = unit == "ms" and is_number(value) and value == round(check.get("duration", 0) * 1000, 1)
    return "" if took or value is None else f"{value} {unit or ''}".rstrip()


def keyed(rows: Iterable[Mapping[str, Any]], *names: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows, each behind a unique key that stays the same as long as these values do."""
    counts: dict[str, int] = {}
    found = []
    for row in rows:
        key = "|".join(str(row.get(name, "")) for name in names)
        counts[key] = counts.get(key, 0) + 1
        found.append((f"{key}|{counts[key]}", row))
    return found


def records(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def phases(document: Mapping[str, Any]) -> list[Phase]:
    """All phases of a shutdown: over, current, or ahead."""
    over = {phase["name"]: phase["seconds"] for phase in records(document["phases"])}
    found = []
    for name in PHASES:
        if name == document["phase"]:  # checked first: for an instant the last one is over and the next has not begun
            found.append(Phase(name, "now", "\u25b8", None))
        elif name in over:
            found.append(Phase(name, "over", _MARKS["pass"], over[name]))
        else:
            found.append(Phase(name, "ahead", "\u00b7", None))
    return found


def spark(durations: Any) -> Spark | None:
    """The last durations of a check as bars, the newest on the right; ``None`` for fewer than two."""
    values = [value for value in durations or () if is_number(value) and value >= 0][-_BARS:]
    if len(values) < 2:
        return None
    highest = max(values) or 1.0
    step = _BAR + _GAP
    start = (_BARS - len(values)) * step
    bars = []
    for number, value in enumerate(values):
        height = max(1, round(value / highest * _HEIGHT))
        bars.append(f"M{start + number * step} {_HEIGHT}v-{height}h{_BAR}v{height}z")
    low, high = brief(min(values)), brief(max(values))
    label = f"The last {len(values)} runs took {low} to {high}, the latest {brief(values[-1])}"
    return Spark("".join(bars), _BARS * step - _GAP, _HEIGHT, label, low if low == high else f"{low} \u2013 {high}")


# -- the headline -------------------------------------------------------------------------------------------------


def phase_in_words(phase: Any) -> str:
    """What the shutdown does now; the name of a phase that is unknown here."""
    return "" if phase is None else str(PHASES.get(phase, phase))


def worst_first(checks: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The checks by name, failing ones first, otherwise in the order of registration."""
    found = [(name, each) for name, components in checks.items() for each in components]
    return sorted(found, key=lambda named: [*_ORDER, named[1].get("status")].index(named[1].get("status")))


def headline(document: Mapping[str, Any]) -> str:
    """What is wrong, or what the process waits for, in one sentence; empty for a document without details."""
    state, phase = document.get("state"), phase_in_words(document.get("phase"))
    if phase:
        report = document.get("report")
        return f"Stopped: {report['summary']}." if report else f"Shutting down: {phase}."
    if state == "STARTING":
        return _starting(document.get("startup_tasks") or [])
    if state == "NOT_READY":
        cordon = document.get("cordon")
        why = f"cordoned by {cordon['by']}" if cordon else document["reason"]
        return f"Out of rotation{why and f': {why}'}. Requests that arrive are served."
    return _checks_in_words(document.get("checks", {})) if state else ""


def tone(document: Mapping[str, Any]) -> str:
    """The status as a colour: a start, a shutdown and a cordon fail readiness, but are not an alarm."""
    status, report = str(document.get("status", "")), document.get("report")
    lost = report is not None and not report["clean"]
    return "warn" if status == "fail" and document.get("state") != "READY" and not lost else status


def _starting(tasks: Sequence[Mapping[str, Any]]) -> str:
    if not tasks:
        return "Starting: on_startup functions run."
    others = len(tasks) - 1
    return f"Starting: waiting for '{tasks[0]['name']}'{f' (and {others} more)' if others else ''}."


def _checks_in_words(checks: Mapping[str, Any]) -> str:
    found = worst_first(checks)
    bad = [(name, check) for name, check in found if check.get("status") in _VERBS]
    if not bad:
        passing = sum(check.get("status") == "pass" for _, check in found)
        return "" if not passing else "The only check passes." if passing == 1 else f"All {passing} checks pass."
    name, check = bad[0]
    output = check.get("output", "").rstrip(".")
    others = len(bad) - 1
    more = f" {others} more {'does' if others == 1 else 'do'} not pass." if others else ""
    return f"Check '{name}' {_VERBS[check['status']]}{output and f': {output}'}.{more}"


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        brief, clock, css_class, figure, headline, icon, keyed, long, mark, phases, records, short, spark,
        status_counts, tenths, tone, worst_first,
    )
}  # fmt: skip
