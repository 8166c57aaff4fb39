"""What a check is, what it may return, and what it may raise."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .._callbacks import name_of, takes_context
from .._record import NamedTuple
from .._state import State

# Two seconds is what hellofresh/health-go gives a check; a kubelet waits for one unless it is told to wait longer.
DEFAULT_TIMEOUT = 2.0
# So that a storm of probes is no load on what is checked; AppsFlyer's and Dropwizard's caches begin at the same second.
DEFAULT_TTL = 1.0

STATUSES = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """One registered health check. Times are seconds.

    :param name: how it is called in logs, details and URLs; unique within a :class:`~flask_lifecycle.Lifecycle`.
    :param function: called in an application context, in a thread of its own, never twice at once. It may take one
        argument, the :class:`CheckContext`, and it may be ``async``. It passes by returning nothing, a mapping of what
        it observed, or a :class:`CheckResult`; it fails by raising.
    :param timeout: how long it may take. Past that it is reported as failing, "hanging since".
    :param critical: whether its failure fails the probe (503) or only warns (200, ``warn``).
    :param groups: which probes ask it: ``live``, ``ready``, ``startup`` and your own. ``/healthcheck`` asks all. Put
        nothing into ``live`` that depends on anything outside the process: its failure gets the process killed, which
        mends no database.
    :param ttl: how long a good result is answered without running the check again.
    :param fail_ttl: the same of a bad one; by default as ``ttl``.
    :param interval: run it in the background each so many seconds, so that probes only read.
    :param fail_interval: the same while it fails; by default as ``interval``.
    :param fail_after: so many failures in a row before it counts as failing. The very first result counts at once.
    :param recover_after: so many good results in a row before it counts as well again.
    :param fail_for: and so many seconds since the first of those failures.
    :param scope: ``"shared"`` for what all replicas depend on: its failure warns, but takes no instance out of
        rotation, because that would take out all of them. ``"local"`` for what is wrong with this instance alone.
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
        check_timeout(f"check '{self.name}'", self.timeout)
        for option in ("ttl", "fail_ttl", "fail_for"):
            self._check_seconds(option, zero=True)
        for option in ("interval", "fail_interval"):
            self._check_seconds(option, zero=False)
        if self.fail_interval is not None and self.interval is None:
            raise ValueError(f"The check '{self.name}' has a fail_interval but no interval; give it both.")
        for option in ("fail_after", "recover_after"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"The {option} of the check '{self.name}' must be a whole number from 1, not {value!r}."
                )

    def _check_seconds(self, option: str, *, zero: bool) -> None:
        value = getattr(self, option)
        if value is None and option != "ttl":
            return
        if not is_number(value) or value < 0 or (value == 0 and not zero):
            bound = "zero or more" if zero else "greater than zero"
            raise ValueError(
                f"The {option} of the check '{self.name}' must be a number of seconds {bound}, not {value!r}."
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
                f"The check '{self.name}' is shared and in the group 'live': restarting every replica mends nothing"
                " that they share; take it out of 'live'."
            )

    @property
    def coroutine(self) -> Callable[..., Any] | None:
        """Its function, or the method of its object, if that is a coroutine function."""
        call = getattr(self.function, "__call__", None)  # noqa: B004  the method itself is asked for
        return next((f for f in (self.function, call) if f is not None and inspect.iscoroutinefunction(f)), None)

    @classmethod
    def of(cls, check: Any, **options: Any) -> Check:
        """A check from any callable object with (some of) the attributes of this class, which ``options`` override."""
        known = [option.name for option in fields(cls) if option.init and option.name != "function"]
        for option in options:
            if option not in known:
                import difflib  # for this sentence alone

                near = difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
                raise TypeError(f"A check has no option '{option}'; did you mean '{near}'?")
        if not callable(check if not isinstance(check, cls) else check.function):
            raise TypeError(f"The check {check!r} is not callable; register a function, or an object with __call__.")
        named = {key: getattr(check, key) for key in known if hasattr(check, key)}
        named |= {"name": named.get("name") or name_of(check)} | options
        return cls(function=check.function if isinstance(check, cls) else check, **named)


def is_status_code(value: Any) -> bool:
    """Whether this is a status of HTTP that a probe can be answered with."""
    return isinstance(value, int) and 200 <= value <= 599


def is_number(value: Any) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_timeout(what: str, timeout: Any) -> None:
    """Refuse a timeout that is not a positive, finite number of seconds."""
    if not is_number(timeout) or timeout <= 0:
        raise ValueError(f"The timeout of the {what} must be a number of seconds greater than zero, not {timeout!r}.")


class CheckContext(NamedTuple):
    """What a check may ask about the application that it runs for.

    :param state: of the application.
    :param reason: why it is in this state.
    :param in_flight: how many requests it has not finished.
    :param remaining: seconds left of the grace period, ``None`` when no shutdown has begun.
    """

    state: State
    reason: str
    in_flight: int
    remaining: float | None


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
    :param status_code: of the probe that fails because of this one, in place of the configured one.
    :param response: the body of that probe's answer, in place of the report: a mapping or a text.
    :raises ValueError: ``status_code`` is no status of HTTP.
    """

    # For subclasses that do not call __init__, or have values of their own.
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


def as_result(returned: Any) -> CheckResult:
    """What a check's return value says.

    :raises ValueError: it is a result with a status that there is not.
    :raises TypeError: it is a coroutine or a generator: nothing of the check has run.
    """
    if inspect.iscoroutine(returned) or inspect.isgenerator(returned):
        returned.close()
        kind = "coroutine" if inspect.iscoroutine(returned) else "generator"
        raise TypeError(f"The check returned a {kind}, of which nothing has run; register an 'async def' itself.")
    if isinstance(returned, CheckResult):
        if returned.status not in STATUSES:
            raise ValueError(f"A check's status must be one of {', '.join(STATUSES)}, not {returned.status!r}.")
        output = returned.output
        return returned._replace(output="" if output is None else text_of(output))
    if returned is False or (isinstance(returned, tuple) and returned[:1] == (False,)):
        # As other packages have it, also with a text behind; that is not known to be for the public.
        return CheckResult("fail", "the check returned False")
    return CheckResult(observed=returned) if isinstance(returned, Mapping) else CheckResult()


def text_of(value: Any) -> str:
    """Anything as text that can be sent; what cannot say what it is, by its type."""
    try:
        text = str(value)
    except Exception:
        text = type(value).__name__
    return text.encode("utf-8", "backslashreplace").decode()  # a file's name may hold half of a surrogate pair


def public_text(error: BaseException) -> str:
    """What may be told of an exception: its author's words if they were meant for it, else no more than its type."""
    words = text_of(error) if isinstance(error, HealthCheckError) else ""
    return words or type(error).__name__


def public_causes(error: BaseException | None, depth: int = 5) -> dict[str, str]:
    """What a failure consists of, by name: the causes of a ``HealthCheckError``, the members of an exception group."""
    found: dict[str, str] = {}
    for name, cause in _causes(error) if depth else ():  # a cause may be its own
        found[name] = public_text(cause) if isinstance(cause, BaseException) else text_of(cause)
        inner = public_causes(cause, depth - 1) if isinstance(cause, BaseException) else {}
        found |= {f"{name}.{key}": text for key, text in inner.items()}
    return found


def _causes(error: BaseException | None) -> list[tuple[str, Any]]:
    """The direct causes by name. Of what fails to tell them there are none: a probe answers all the same."""
    with contextlib.suppress(Exception):
        causes: Any = error.causes if isinstance(error, HealthCheckError) else getattr(error, "exceptions", ())
        if isinstance(causes, Mapping):
            # A dict's items are listed in one step: it may be what the application goes on writing to.
            return [(text_of(name), cause) for name, cause in list(causes.items())]
        if isinstance(causes, Sequence) and not isinstance(causes, (str, bytes)):
            return [(str(number), cause) for number, cause in enumerate(list(causes), 1)]
    return []
