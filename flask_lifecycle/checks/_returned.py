"""What the return value of a check means.

A check passes by returning nothing or a mapping, or returns a :class:`CheckResult`. Functions from elsewhere return
other things: Flask views return a text with a status or a response, checks of other packages a boolean. Where these
contain a status, it counts. Anything else fails, because a check that passes by mistake hides an outage, and the
mistake is logged once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from ._check import STATUSES, CheckResult, HealthCheckError, is_status_code, text_of

# In lower case. The words of Spring Boot Actuator, Docker, systemd and the IETF draft, and common ones of developers.
_FAILURES = frozenset(
    (
        "critical", "dead", "down", "error", "fail", "failed", "failing", "failure", "false", "inactive", "ko",
        "not ok", "not ready", "not_ok", "not_ready", "offline", "out of service", "out_of_service", "unavailable",
        "unhealthy", "unready",
    )
)  # fmt: skip
_WARNINGS = frozenset(("degraded", "warn", "warning"))

# Room for a sentence, but not for the page of an error handler.
_LONGEST = 200


class CheckMistakeError(HealthCheckError):
    """The return value of a check means neither pass nor fail. The text contains only types, so it is public."""


def as_result(returned: Any) -> CheckResult:
    """The result that a check's return value means; :exc:`CheckMistakeError` if that is neither pass nor fail."""
    if isinstance(returned, CheckResult):
        return _checked(returned)
    if returned is None or returned is True:
        return CheckResult()
    if returned is False:
        return CheckResult("fail", "the check returned False")
    if isinstance(returned, Mapping):
        return _of_mapping(returned)
    if isinstance(returned, tuple):
        return _of_tuple(returned)
    code = _status_code(getattr(returned, "status_code", None))
    if code is None:
        raise _mistake(returned)
    body = _body_of(returned)
    return _of_mapping(body) if code < 400 and isinstance(body, Mapping) else _of_status(code, body)


def _checked(result: CheckResult) -> CheckResult:
    if result.status not in STATUSES:
        raise CheckMistakeError(f"A check's status must be one of {', '.join(STATUSES)}, not {result.status!r}.")
    output = "" if result.output is None else text_of(result.output)
    observed: Any = result.observed
    if not isinstance(observed, Mapping):  # the status page lists it by name
        observed = {} if observed is None else {"observed": observed}
    return result._replace(output=output, observed=observed)


def _of_mapping(observed: Mapping[Any, Any]) -> CheckResult:
    """A mapping passes unless its ``status`` means something else."""
    status = observed.get("status")
    word = status.strip().lower() if isinstance(status, str) else "fail" if status is False else ""
    if word in _FAILURES or (_status_code(status) or 0) >= 400:
        return CheckResult("fail", _short(status), observed)
    return CheckResult("warn", _short(status), observed) if word in _WARNINGS else CheckResult(observed=observed)


def _of_tuple(returned: tuple[Any, ...]) -> CheckResult:
    """A body with its status, as a view returns it, or a boolean with a text, as checks of other packages do."""
    first = returned[0] if returned else None
    if isinstance(first, bool):  # the text may not be public
        return as_result(first)
    code = _status_code(returned[1]) if len(returned) in (2, 3) else None
    if code is None:
        raise _mistake(returned)
    if code < 400 and (isinstance(first, Mapping) or hasattr(first, "status_code")):
        return as_result(first)
    return _of_status(code, _body_of(first) if hasattr(first, "status_code") else first)


def _of_status(code: int, body: Any) -> CheckResult:
    """An HTTP status, with the text or the mapping that belongs to it."""
    if code < 400:
        return CheckResult()
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body
    output = (_short(text) if isinstance(text, str) else "") or f"status {code}"
    return CheckResult("fail", output, body if isinstance(body, Mapping) else {})


def _status_code(value: Any) -> int | None:
    """An HTTP status as Flask accepts it, 503 or ``"503 Service Unavailable"``; ``None`` for anything else."""
    if isinstance(value, str) and re.match(r"[2-5]\d\d(?!\S)", value):
        return int(value[:3])
    return int(value) if is_status_code(value) else None


def _body_of(response: Any) -> Any:
    """The body of a Werkzeug response that is complete in memory; ``None`` for any other response."""
    if getattr(response, "is_sequence", False) is not True:  # streamed, a file, or the response of an HTTP client
        return None
    return response.get_json(silent=True) if response.is_json else response.get_data(as_text=True)


def _short(value: Any) -> str:
    return " ".join(text_of(value).split())[:_LONGEST]


def _mistake(returned: Any) -> CheckMistakeError:
    if inspect.iscoroutine(returned) or inspect.isgenerator(returned):
        returned.close()
        kind = "coroutine" if inspect.iscoroutine(returned) else "generator"
        return CheckMistakeError(f"The check returned a {kind}, which has not run; register an 'async def' itself.")
    return CheckMistakeError(
        f"The check returned an object of type '{type(returned).__name__}', which means neither pass nor fail; return"
        " nothing, a mapping or a CheckResult, and raise HealthCheckError when it fails."
    )
