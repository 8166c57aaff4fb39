"""What a check is, what it may return, and what it may raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class CheckResult(NamedTuple):
    """What a check saw.

    :param status: ``"pass"``, ``"warn"`` or ``"fail"``.
    :param output: one sentence for whoever may see details; no hosts, users or DSNs.
    :param observed: what it observed, by name.
    :param value: the one figure that matters, in ``unit``.
    """

    status: str = "pass"
    output: str = ""
    observed: Mapping[str, Any] = {}
    value: float | int | str | None = None
    unit: str = ""


class HealthCheckError(Exception):
    """Raised by a check that fails: the message is for the public, what it is raised ``from`` for the log.

    :param causes: what is wrong, by name, or one after the other: texts or exceptions.
    :param status_code: of a probe that fails because of this one, in place of the configured one.
    :param response: the body of that probe's answer, in place of the report.
    """

    def __init__(
        self,
        message: str = "",
        causes: Mapping[str, Any] | Sequence[Any] = (),
        *,
        status_code: int | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(message)
        self.causes = causes
        self.status_code = status_code
        self.response = response
