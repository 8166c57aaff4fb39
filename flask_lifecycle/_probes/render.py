"""The body of a probe's answer: JSON in the shape of the IETF draft, text as the Kubernetes API server, HTML.

Callers who may not see details get the status and nothing else: no names, no versions, no texts. No caller gets the
text of an exception, which may hold hosts, users and passwords: that is in the log.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from .._core.text import visible
from ..checks import CheckReport, HealthReport, Transition
from ..checks._check import text_of

if TYPE_CHECKING:
    from jinja2 import Template

HEALTH_JSON = "application/health+json"
JSON = "application/json"
TEXT = "text/plain"
HTML = "text/html"
_OFFERS = (HEALTH_JSON, JSON, TEXT, HTML)

# Werkzeug's time to parse an Accept header grows with the square of its length: 4 s for 30,000 characters, half a
# millisecond for 300. A browser's has about 200.
_LONGEST_ACCEPT = 300

_MARKS = {"pass": "+", "warn": "!", "fail": "-"}
_WORDS = {"pass": "ok", "warn": "warning", "fail": "failed"}


def negotiate(accept: str, verbose: bool = False) -> str:
    """The media type that suits best; a default in place of 406, and for a header of more than 300 characters."""
    anything = TEXT if verbose else HEALTH_JSON  # ``curl .../readyz?verbose``, as with the Kubernetes API server
    if not accept or accept == "*/*" or len(accept) > _LONGEST_ACCEPT:
        return anything
    return _best_match(accept, anything)


@functools.lru_cache(64)  # probers send the same header each time
def _best_match(accept: str, anything: str) -> str:
    return parse_accept_header(accept, MIMEAccept).best_match(_OFFERS, anything)


def render(
    report: HealthReport,
    kind: str,
    verbose: bool = False,
    transitions: Sequence[Transition] = (),
    sign_in: str = "",
) -> bytes:
    """The body of an answer.

    :param verbose: whether a text lists the checks, and JSON the last ``transitions``, for callers who may see them.
    :param sign_in: a relative URL at which a browser can sign in.
    """
    if kind == TEXT:
        return _text(report, verbose).encode("utf-8", "backslashreplace")
    if kind == HTML:
        return _page().render(report=report, sign_in=sign_in).encode("utf-8", "backslashreplace")
    document: dict[str, Any] = {"status": report.status}
    if report.details:
        document |= {"state": report.state.value, "reason": report.reason}
        document["checks"] = {check.name: [component_of(check)] for check in report.checks}
        if verbose:
            document["transitions"] = [transition_of(transition) for transition in transitions]
    return to_json(document)


def _text(report: HealthReport, verbose: bool) -> str:
    if not (verbose and report.details):
        return f"{report.status}\n"
    by_state = report.status == "fail" and all(check.status != "fail" for check in report.checks)
    lines = [f"[{'-' if by_state else '+'}]state {report.state.value}: {report.reason}"]
    for check in report.checks:
        output = f": {check.output}" if check.output else ""
        lines.append(f"[{_MARKS[check.status]}]{check.name} {_WORDS[check.status]}{output}")
        lines += [f"   {name}: {cause}" for name, cause in check.causes.items()]
    what = report.component or report.group
    lines.append(f"{what} check {'failed' if report.status == 'fail' else 'passed'}")
    return "".join(f"{visible(' '.join(line.splitlines()))}\n" for line in lines)


def component_of(check: CheckReport) -> dict[str, Any]:
    """A check in the shape of the IETF draft."""
    result = check.result
    component: dict[str, Any] = {"componentId": check.name, "status": check.status, "time": iso(check.time)}
    if result.value is None:
        component |= {"observedValue": round(check.duration * 1000, 1), "observedUnit": "ms"}
    else:
        component |= {"observedValue": result.value, "observedUnit": result.unit}
    observed = plain(result.observed)
    if observed:
        component["observed"] = observed
    if check.check.affects and check.status != "pass":
        component["affectedEndpoints"] = list(check.check.affects)
    if check.output:
        component["output"] = check.output
    if check.causes:
        component["causes"] = check.causes
    if check.damped:
        component["contradictedBy"] = check.damped
    return component


def transition_of(transition: Transition) -> dict[str, Any]:
    """A change of the health, with its time."""
    return transition._asdict() | {"time": iso(transition.time), "age": round(transition.age, 1)}


def iso(time: float) -> str:
    """Seconds since the epoch in ISO 8601."""
    return datetime.datetime.fromtimestamp(time, datetime.timezone.utc).isoformat(timespec="milliseconds")


def to_json(document: Any) -> bytes:
    """JSON of any value: what JSON cannot express becomes text."""
    return json.dumps(plain(document)).encode() + b"\n"


def plain(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A value that JSON can express.

    An observed value may be NaN, have keys of any type, contain itself, or be changed by another thread meanwhile.

    :param within: the ids of the values around this one.
    """
    if value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and value.bit_length() < 1024:  # a longer one Python may refuse to write
        return value
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and len(within) < 8 and id(value) not in within:
        within = (*within, id(value))
        with contextlib.suppress(Exception):  # it fails when it is iterated over
            if isinstance(value, Mapping):
                # A dict's items are listed in one step: the application may change it meanwhile.
                return {text_of(key): plain(item, within) for key, item in list(value.items())}
            return [plain(item, within) for item in list(value)]
    return text_of(str.__str__(value) if isinstance(value, str) else value)  # of an enumeration's member, its value


def to_body(made: Any) -> tuple[str, bytes]:
    """The content type and the body from a renderer's result: a mapping, a list, a text or bytes, or one with its type.

    :raises TypeError: the result is something else.
    :raises ValueError: its type cannot be sent in a header.
    """
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], str):
        if not (made[1].isascii() and made[1].isprintable()):
            raise ValueError(f"The content type of a body must be one line of printable ASCII, not {made[1]!r}.")
        return made[1], to_body(made[0])[1]
    if isinstance(made, str):
        return f"{TEXT}; charset=utf-8", made.encode()
    if isinstance(made, bytes):
        return "application/octet-stream", made
    if isinstance(made, (Mapping, list)):
        return JSON, to_json(made)
    raise TypeError(
        "The body of a probe is a mapping, a list, a text or bytes, or one of them with its content type,"
        f" not {made!r}."
    )


@functools.cache
def _page() -> Template:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader(__package__), autoescape=True).get_template("health.html")
