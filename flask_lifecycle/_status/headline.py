"""The first sentence of the page and of ``flask lifecycle status``: what is wrong, or what the process waits for.

The document may come from another process, perhaps of another version: each value may be missing or of any type. The
caller makes the text safe for where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a phase of the shutdown does, in words.
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


def phase_in_words(phase: Any) -> str:
    """What the shutdown does now; the name of a phase that is unknown here."""
    return PHASES.get(phase, phase) if isinstance(phase, str) else ""


def worst_first(checks: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The checks by name, failing ones first, otherwise in the order of registration."""
    found = [
        (str(name), each if isinstance(each, Mapping) else {})
        for name, components in (checks if isinstance(checks, Mapping) else {}).items()
        for each in (components if isinstance(components, list) else [components])
    ]
    return sorted(found, key=lambda named: [*_ORDER, _word(named[1], "status")].index(_word(named[1], "status")))


def headline(document: Mapping[str, Any]) -> str:
    """The sentence; empty for a document without details."""
    state, phase = _word(document, "state"), phase_in_words(document.get("phase"))
    if phase:
        report = document.get("report")
        return f"Stopped: {_word(report, 'summary')}." if isinstance(report, Mapping) else f"Shutting down: {phase}."
    if state == "STARTING":
        return _starting(document.get("startup_tasks"))
    if state == "NOT_READY":
        cordon = document.get("cordon")
        why = f"cordoned by {_word(cordon, 'by')}" if isinstance(cordon, Mapping) else _word(document, "reason")
        return f"Out of rotation{why and f': {why}'}. Requests that arrive are served."
    return _checks(document.get("checks")) if state else ""


def tone(document: Mapping[str, Any]) -> str:
    """The status as a colour: a start, a shutdown and a cordon fail readiness, but are not an alarm."""
    status, report = _word(document, "status"), document.get("report")
    lost = isinstance(report, Mapping) and not report.get("clean")
    return "warn" if status == "fail" and document.get("state") != "READY" and not lost else status


def _word(mapping: Any, key: str) -> str:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, str) else ""


def _starting(tasks: Any) -> str:
    names = [_word(task, "name") for task in tasks] if isinstance(tasks, list) else []
    if not names:
        return "Starting: on_startup functions run."
    return f"Starting: waiting for '{names[0]}'{_more(len(names) - 1)}."


def _checks(checks: Any) -> str:
    found = worst_first(checks)
    bad = [(name, check) for name, check in found if _word(check, "status") in _VERBS]
    if not bad:
        passing = sum(_word(check, "status") == "pass" for _, check in found)
        return "" if not passing else "The only check passes." if passing == 1 else f"All {passing} checks pass."
    name, check = bad[0]
    output = _word(check, "output").rstrip(".")
    others = len(bad) - 1
    more = f" {others} more {'does' if others == 1 else 'do'} not pass." if others else ""
    return f"Check '{name}' {_VERBS[_word(check, 'status')]}{output and f': {output}'}.{more}"


def _more(number: int) -> str:
    return f" (and {number} more)" if number else ""
