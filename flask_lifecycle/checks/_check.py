"""A check, the result it may return, the error it may raise, and the report that a probe makes of it."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from .._config import bound, is_seconds, shown
from .._core.callbacks import name_of, takes_context
from .._core.state import State

# More runs in a row take years.
_MOST_RUNS = 1_000_000
# hellofresh/health-go gives a check two seconds; a kubelet waits one second by default.
DEFAULT_TIMEOUT = 2.0
# Frequent probes must not load what is checked; the caches of AppsFlyer's and Dropwizard's libraries start at a second.
DEFAULT_TTL = 1.0

STATUSES = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """One registered health check. Times are seconds.

    :param name: its name in logs, details and URLs; unique within a :class:`~flask_lifecycle.Lifecycle`.
    :param function: called in an application context, in its own thread, never twice at once. It may take one
        argument, the :class:`CheckContext`, and it may be ``async``. It passes by returning nothing or a mapping of
        what it observed, or returns a :class:`CheckResult`; it fails by raising. A response, or a tuple as views
        return it, fails if its status is 400 or more. Any other return value fails.
    :param timeout: how long it may take. After that it is reported as failing, "hanging since".
    :param critical: whether its failure fails the probe (503) or only warns (200, ``warn``).
    :param groups: which probes ask it: ``live``, ``ready``, ``startup`` and your own. ``/healthcheck`` asks all. Put
        nothing into ``live`` that depends on anything outside the process: its failure gets the process killed, which
        repairs no database.
    :param ttl: how long a good result is cached.
    :param fail_ttl: how long a failure is cached; by default as ``ttl``.
    :param interval: run it in the background every ``interval`` seconds, so that probes only read its result.
    :param fail_interval: the same while it fails; by default as ``interval``.
    :param fail_after: how many failures in a row until its status becomes ``fail``. The very first result counts at
        once.
    :param recover_after: how many good results in a row until it recovers.
    :param fail_for: how many seconds must have passed since the first of those failures.
    :param scope: ``"shared"`` for what all replicas depend on: its failure warns but takes no instance out of
        rotation, because that would take out all of them. ``"local"`` for what concerns this instance alone.
    :param affects: the paths that do not work without it, for the details.
    """

    name: str
    function: Callable[..., Any]
    timeout: float = DEFAULT_TIMEOUT
    critical: bool = True
    groups: tuple[str, ...] = ("ready",)
    ttl: float = DEFAULT_TTL
    fail_ttl: float | None = None
    interval: float | None = None
    fail_interval: float | None = None
    fail_after: int = 1
    recover_after: int = 1
    fail_for: float = 0.0
    scope: str = "local"
    affects: tuple[str, ...] = ()
    wants_context: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"The check '{self.name}' is not callable; register a function, or an object with __call__."
            )
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"A check needs a name that is a string, not {self.name!r}; pass name='...'.")
        object.__setattr__(self, "wants_context", takes_context(f"check '{self.name}'", self.function))
        self._check_times()
        self._check_groups()

    def _check_times(self) -> None:
        check = f"the check '{self.name}'"
        check_seconds(f"The timeout of {check}", self.timeout)
        for option, value in (("ttl", self.ttl), ("fail_ttl", self.fail_ttl), ("fail_for", self.fail_for)):
            if value is not None or option == "ttl":
                check_seconds(f"The {option} of {check}", value, zero=True)
        for option, value in (("interval", self.interval), ("fail_interval", self.fail_interval)):
            if value is not None:
                check_seconds(f"The {option} of {check}", value)
        if self.fail_interval is not None and self.interval is None:
            raise ValueError(f"The check '{self.name}' has a fail_interval but no interval; give it both.")
        for option, runs in (("fail_after", self.fail_after), ("recover_after", self.recover_after)):
            if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= _MOST_RUNS:
                raise ValueError(
                    f"The {option} of {check} must be a whole number from 1 to {_MOST_RUNS}, not {shown(runs)}."
                )

    def _check_groups(self) -> None:
        for option in ("groups", "affects"):
            value = getattr(self, option)
            items = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
            if not all(isinstance(item, str) for item in items):
                raise TypeError(f"The {option} of the check '{self.name}' must be a tuple of strings, not {value!r}.")
            object.__setattr__(self, option, items)
        if self.scope not in ("local", "shared"):
            raise ValueError(f"The scope of the check '{self.name}' must be 'local' or 'shared', not {self.scope!r}.")
        if self.scope == "shared" and "live" in self.groups:
            raise ValueError(
                f"The check '{self.name}' is shared and in the group 'live': restarting every replica does not repair"
                " what they share; take it out of 'live'."
            )

    @property
    def coroutine(self) -> Callable[..., Any] | None:
        """Its function, or the method of its object, if that is a coroutine function."""
        call = getattr(self.function, "__call__", None)  # noqa: B004  the method itself is wanted
        return next((f for f in (self.function, call) if f is not None and inspect.iscoroutinefunction(f)), None)

    @classmethod
    def of(cls, check: Any, **options: Any) -> Check:
        """A check from any callable object with (some of) the attributes of this class, which ``options`` override."""
        known = [option.name for option in fields(cls) if option.init and option.name != "function"]
        for option in options:
            if option not in known:
                import difflib  # only for this error

                near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
                raise TypeError(f"A check has no option '{option}'; did you mean '{near}'?")
        function = check.function if isinstance(check, cls) else check
        if not callable(function):
            raise TypeError(f"The check {check!r} is not callable; register a function, or an object with __call__.")
        named = {key: getattr(check, key) for key in known if hasattr(check, key)}
        named |= {"name": named.get("name") or name_of(check)} | options
        return cls(function=function, **named)


def is_status_code(value: Any) -> bool:
    """Whether a probe can be answered with this as its HTTP status."""
    return isinstance(value, int) and 200 <= value <= 599


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def check_seconds(what: str, value: Any, *, zero: bool = False) -> None:
    """Reject what is not a number of seconds, of a year at most; zero is one only with ``zero``."""
    if not is_seconds(value, zero=zero):
        least = "zero or more" if zero else "greater than zero"
        raise ValueError(f"{what} must be a number of seconds {least}{bound(value)}, not {shown(value)}.")


class CheckContext(NamedTuple):
    """The application that a check runs for, as the check may see it.

    :param state: of the application.
    :param reason: why it is in this state.
    :param in_flight: how many requests have not ended.
    :param remaining: seconds left of the grace period, ``None`` before a shutdown.
    """

    state: State
    reason: str
    in_flight: int
    remaining: float | None


class CheckResult(NamedTuple):
    """The result that a check may return.

    :param status: ``"pass"``, ``"warn"`` or ``"fail"``.
    :param output: one sentence for callers allowed to see details; without hosts, users or DSNs.
    :param observed: what it observed, by name.
    :param value: the one number that matters, in ``unit``.
    """

    status: str = "pass"
    output: str = ""
    observed: Mapping[str, Any] = MappingProxyType({})
    value: float | int | str | None = None
    unit: str = ""


class HealthCheckError(Exception):
    """Raised by a check that fails: callers who may see details get the message; the cause is only logged.

    :param causes: what is wrong, by name or as a list: texts or exceptions.
    :param status_code: of the probe that fails because of this error, instead of the configured one.
    :param response: the body of that probe's response, instead of the report: a mapping or a text.
    :raises ValueError: ``status_code`` is not an HTTP status.
    """

    # For subclasses that do not call __init__, or have their own values.
    causes: Mapping[str, Any] | Sequence[Any] = ()
    status_code: int | None = None
    response: Any = None

    def __init__(
        self,
        message: str = "",
        causes: Mapping[str, Any] | Sequence[Any] = (),
        *,
        status_code: int | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(message)
        if status_code is not None and not is_status_code(status_code):
            raise ValueError(
                f"The status_code of a HealthCheckError must be an HTTP status from 200 to 599, not {status_code!r}."
            )
        self.causes = causes or self.causes
        self.status_code = self.status_code if status_code is None else status_code
        self.response = self.response if response is None else response


class CheckReport(NamedTuple):
    """The result of one check, as a probe reports it.

    :param check: the check itself, with its options.
    :param status: ``pass``, ``warn`` or ``fail``, after debouncing and ``critical``.
    :param duration: seconds that the last run took, or has taken so far.
    :param time: when it ended, in seconds since the epoch; now, if it still runs.
    :param result: what it returned.
    :param error: what it raised.
    :param hanging: whether it is past its timeout.
    :param damped: how many results in a row have contradicted ``status`` without changing it yet.
    """

    check: Check
    status: str
    duration: float
    time: float
    result: CheckResult = CheckResult()
    error: BaseException | None = None
    hanging: bool = False
    damped: int = 0

    @property
    def name(self) -> str:
        """The name of the check."""
        return self.check.name

    @property
    def output(self) -> str:
        """The text for callers allowed to see details."""
        if self.hanging:
            return f"hanging since {self.duration:.1f} s"
        return public_text(self.error) if self.error is not None else self.result.output

    @property
    def causes(self) -> dict[str, str]:
        """The causes of its failure, by name."""
        return public_causes(self.error)


class CheckHistory(NamedTuple):
    """What is kept of a check beside its last result."""

    durations: tuple[float, ...]  # seconds that its last runs took, oldest first
    changed: float  # when its status changed last, in seconds since the epoch; 0 before the first result


def text_of(value: Any) -> str:
    """Any value as text that can be sent; its type, if it cannot be converted."""
    try:
        text = str(value)
    except Exception:
        text = type(value).__name__
    return text.encode("utf-8", "backslashreplace").decode()  # a file name may hold half of a surrogate pair


def public_text(error: BaseException) -> str:
    """The public text of an exception: the message of a ``HealthCheckError``, else only the type."""
    message = text_of(error) if isinstance(error, HealthCheckError) else ""
    return message or type(error).__name__


def public_causes(error: BaseException | None, depth: int = 5) -> dict[str, str]:
    """The causes of a failure, by name: those of a ``HealthCheckError``, or the members of an exception group."""
    found: dict[str, str] = {}
    for name, cause in _causes(error) if depth else ():  # a cause may contain itself
        found[name] = public_text(cause) if isinstance(cause, BaseException) else text_of(cause)
        inner = public_causes(cause, depth - 1) if isinstance(cause, BaseException) else {}
        found |= {f"{name}.{key}": text for key, text in inner.items()}
    return found


def _causes(error: BaseException | None) -> list[tuple[str, Any]]:
    """The direct causes by name; none if reading them fails, because the probe must be answered."""
    with contextlib.suppress(Exception):
        causes: Any = error.causes if isinstance(error, HealthCheckError) else getattr(error, "exceptions", ())
        if isinstance(causes, Mapping):
            # list() takes a dict's items in one step: the application may go on writing to it.
            return [(text_of(name), cause) for name, cause in list(causes.items())]
        if isinstance(causes, Sequence) and not isinstance(causes, (str, bytes)):
            return [(str(number), cause) for number, cause in enumerate(list(causes), 1)]
    return []
