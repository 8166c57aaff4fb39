"""What an application reports about its health: its checks and their groups, its state, and the changes of both.

Groups
------

A probe asks a group. Four always exist, ``/healthcheck`` asks all checks, and an application may add groups. The state
decides first, the checks second:

===========  ===========================================================================================
live         the checks of the group, and with ``LIFECYCLE_STUCK_AFTER`` whether the worker pool is stuck;
             a drain does not change it, and nothing else is in it by default
startup      ``fail`` until the start-up is over
ready        ``fail`` unless the state is READY
healthcheck  as ``ready``, of all checks and of the worker pool
own groups   their checks, whatever the state; ``fail`` in a drain, as readiness
component    one check by its own URL: only that check, as in an own group
===========  ===========================================================================================

A check with ``scope="shared"`` only warns in the four standard groups, because they take an instance out of rotation or
restart it. In an application's own group, and by its own URL, it fails.

Changes
-------

Each change is recorded and listed when it takes effect, under the lock of what changes, and the health as a whole is
computed right there. The signals are sent later, without a lock: ``health_changed`` in order, by one thread at a time.

Interleaving: two checks change at once, first one that only warns, then one that fails. If the health were computed
when the signals are sent, the first thread would see both changes and name its own check for the failure of the other.
Recorded one after the other, "pass" becomes "warn" by the first check and "fail" by the second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from blinker import Namespace

from .._core.fork import renew_in_children
from .._core.state import ENDING, State, StateMachine, send
from ._check import Check, CheckReport
from ._engine import Engine
from ._outbox import Outbox

_signals = Namespace()

check_changed = _signals.signal(
    "lifecycle-check-changed",
    doc="""Sent once for each change of a check, after debouncing. The sender is the application; ``check`` is its name,
    ``old`` (empty at the first result) and ``new`` are ``pass``, ``warn`` or ``fail``, ``reason`` is public.""",
)
health_changed = _signals.signal(
    "lifecycle-health-changed",
    doc="""Sent once for each change of the status of ``/healthcheck``. The sender is the application; ``old`` and
    ``new`` are ``pass``, ``warn`` or ``fail``, ``reason`` names the change of a state or check that caused it.""",
)

LIVE, READY, STARTUP, ALL = "live", "ready", "startup", "healthcheck"
ALWAYS = (LIVE, READY, STARTUP, ALL)


@dataclasses.dataclass(eq=False, repr=False)
class Group:
    """The checks that one probe asks, and how it answers.

    :param name: the name that checks list in their ``groups``.
    :param path: its path below ``LIFECYCLE_URL_PREFIX``; ``None`` for those of ``LIFECYCLE_PATHS``.
    :param status_codes: by status; missing ones are taken from ``LIFECYCLE_STATUS_CODES``.
    :param headers: sent with every response, over ``LIFECYCLE_HEADERS``.
    :param details: ``never``, ``token`` or ``always``; by default ``LIFECYCLE_DETAILS``.
    :param renderer: makes the body from the whole :class:`HealthReport`.
    """

    name: str
    path: str | None = None
    status_codes: Mapping[str, int] | None = None
    headers: Mapping[str, str] | None = None
    details: str | None = None
    renderer: Callable[[HealthReport], Any] | None = None


class HealthReport(NamedTuple):
    """The answer to a probe.

    :param group: the name of the group that was asked.
    :param component: the one check that was asked, if it was.
    :param status: ``pass``, ``warn`` or ``fail``.
    :param state: of the application.
    :param reason: why it is in this state.
    :param checks: their reports, in the order of registration; none where the state alone decides.
    :param draining: whether it fails because of the drain.
    :param details: whether the caller may see more than the status.
    """

    group: str
    component: str | None
    status: str
    state: State
    reason: str
    checks: tuple[CheckReport, ...] = ()
    draining: bool = False
    details: bool = False


class Transition(NamedTuple):
    """A change of the health of an application.

    :param subject: ``state``, ``health`` or a check, as ``check database``.
    :param old: the state or status before.
    :param new: the state or status after.
    :param reason: why it changed.
    :param time: when, in seconds since the epoch.
    :param age: how many seconds ago.
    """

    subject: str
    old: str
    new: str
    reason: str
    time: float
    age: float


class Registry:
    """The checks and groups of one ``Lifecycle``, in the order of their registration. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both against two registrations of one name
        self._checks: dict[str, Check] = {}
        self._groups = {name: Group(name) for name in ALWAYS}
        self._set: set[str] = set()  # the groups that lifecycle.group() was called for
        self.renderer: Callable[[HealthReport], Any] | None = None  # of every group that has none of its own
        self._validators: list[weakref.WeakMethod[Callable[[dict[str, Group]], Any]]] = []
        self._listeners: list[weakref.WeakMethod[Callable[[], Any]]] = []

    def checks(self) -> tuple[Check, ...]:
        return tuple(self._checks.values())

    def groups(self) -> dict[str, Group]:
        return self._groups

    def watch(self, validate: Callable[[dict[str, Group]], Any], changed: Callable[[], Any]) -> None:
        """Call two methods while their object lives: one validates the groups, now and before one is added; the other
        is called after each registration.

        :raises ValueError: the first method rejects a group.
        """
        validate(self._groups)
        self._validators.append(weakref.WeakMethod(validate))
        self._listeners.append(weakref.WeakMethod(changed))

    def add(self, check: Check) -> None:
        """Register a check, which the next probe runs; :exc:`ValueError` for a taken name or an unknown group."""
        with self._lock:
            if check.name in self._checks:
                raise ValueError(
                    f"The check '{check.name}' is registered already; give this one another name. If a factory"
                    " registers it for each application, register it once, outside the factory."
                )
            known = [name for name in self._groups if name != ALL]
            for group in check.groups:
                if group not in known:
                    raise ValueError(
                        f"The check '{check.name}' names the group {group!r}, which does not exist; the groups are"
                        f" {', '.join(map(repr, known))}, and lifecycle.group() adds more."
                    )
            self._checks = self._checks | {check.name: check}
        self._publish()

    def set_group(self, group: Group) -> None:
        """Add a group, or configure a standard one; :exc:`ValueError` if its name or path is taken."""
        with self._lock:
            if group.name in self._set:
                cure = "configure it in one call" if group.name in ALWAYS else "give this one another name"
                raise ValueError(f"The group '{group.name}' is configured already; {cure}.")
            if any(other.path == group.path is not None for other in self._groups.values()):
                raise ValueError(f"The path '{group.path}' has a group already; give '{group.name}' another path.")
            groups = self._groups | {group.name: group}
            for reference in self._validators:
                if (validate := reference()) is not None:
                    validate(groups)
            self._groups = groups
            self._set.add(group.name)
        self._publish()

    def _publish(self) -> None:
        for reference in self._listeners:
            if (changed := reference()) is not None:
                changed()


class Health:
    """The health of one application. Any thread may use it.

    :param app: the application, as the engine uses it.
    :param checks: gives the registered checks.
    :param sender: of the signals.
    :param timeout: seconds that a probe waits for all its checks together.
    :param keep: whether readiness passes after the beginning of a drain, until :meth:`end_readiness`.
    """

    def __init__(
        self,
        app: Any,
        checks: Callable[[], Iterable[Check]],
        sender: Any,
        machine: StateMachine,
        timeout: float,
        *,
        keep: bool,
    ) -> None:
        self.engine = Engine(app, checks, self.check_changed, self.record_check)
        # The report of the worker pool; with True it looks at the pool, else it is the last known one.
        self.pool: Callable[[bool], CheckReport] | None = None
        self._sender = sender
        self._machine = machine
        self._timeout = timeout
        self._keep = keep
        self._handed_over = False
        self._listed: deque[tuple[str, str, str, str, float, float]] = deque(maxlen=100)
        self.after_fork()
        renew_in_children(self.after_fork)

    def after_fork(self) -> None:
        """Start anew: no check has run in this child, and another thread may have held the lock."""
        # Guards _state, _statuses, _listed and _keep. A finalizer may change the state in a thread that holds it.
        self._lock = threading.RLock()
        self._state = self._machine.state
        self._statuses: dict[int, str] = {}  # of the checks and of the pool, by the id of the check
        self._outbox = Outbox()

    # -- answering probes -----------------------------------------------------------------------------------------

    def report(self, group: str, component: str | None = None, exclude: Collection[str] = ()) -> HealthReport:
        """Report a group. Blocks for its checks as long as their timeouts and the probe's allow."""

        def wanted(check: Check) -> bool:
            if component is not None:
                return check.name == component
            return check.name not in exclude and (group == ALL or group in check.groups)

        while True:
            state, reason = self._machine.state, self._machine.reason
            failure = self._failure(group, component)
            if failure:
                return HealthReport(group, component, "fail", state, reason, draining=failure == "drain")
            if group == STARTUP and self._machine.ending:  # it has started; that remains true
                return HealthReport(group, component, "pass", state, reason)
            checks = self.engine.run(wanted, self._timeout, releasable=group != LIVE)
            if self.pool is not None and group in (LIVE, ALL) and component is None:
                checks += (self.pool(True),)
            # If a drain began while a check ran, the answer is another one.
            if not self._failure(group, component):
                if group in ALWAYS and component is None:
                    checks = _weigh_all(checks)
                return HealthReport(group, component, overall(each.status for each in checks), state, reason, checks)

    def known(self) -> tuple[CheckReport, ...]:
        """The last reports of all checks, as ``/healthcheck`` shows them; runs none, and waits for none."""
        known = _weigh_all(self.engine.known())
        return known if self.pool is None else (*known, self.pool(False))

    def known_status(self, group: str) -> str:
        """The status of a group by the last reports, without running a check."""
        if self._failure(group):
            return "fail"
        reports = [each for each in self.known() if group == ALL or group in each.check.groups]
        return overall(each.status for each in reports)

    def _failure(self, group: str, component: str | None = None, state: State | None = None) -> str:
        """Why the state alone makes a group fail: ``"drain"``, ``"state"``, or empty if it does not."""
        state = state or self._machine.state
        if group == LIVE:
            return ""
        if state in ENDING and group != STARTUP:
            return "" if self._keep and (self._machine.was_ready or group not in ALWAYS) else "drain"
        if component is not None:
            return ""
        if group == STARTUP:
            return "state" if state is State.STARTING else ""
        return "state" if group in (READY, ALL) and state is not State.READY else ""

    # -- changes --------------------------------------------------------------------------------------------------

    def hand_over_readiness(self) -> None:
        """Another process serves at the same address: readiness is also its own, and a drain does not change it."""
        self._keep = self._handed_over = True

    def end_readiness(self) -> None:
        """From now on readiness fails in a drain, whatever the policy; waiting probes are answered."""
        with self._changing("readiness has ended"):
            self._keep = self._handed_over
        self.engine.release()
        self._outbox.flush()

    def record_state(self, old: State, new: State, reason: str) -> None:
        """Record that the state of the application changes. Does not block."""
        with self._changing(f"state {new.value}"):
            self._state = new
            self._list("state", old.value, new.value, reason)

    def state_changed(self, new: State) -> None:
        """Act on a change of the state, and send ``health_changed``."""
        if new in ENDING and not self._keep:
            self.engine.release()
        if new is State.STOPPING:
            self.engine.stop()
        self._outbox.flush()

    def record_check(self, check: Check, old: str, new: str, reason: str) -> None:
        """Record that the status of a check, or of the worker pool, changes. Does not block."""
        with self._changing(f"check {check.name}"):
            self._statuses[id(check)] = _weigh(check, new)
            self._list(f"check {check.name}", old, new, reason)

    def check_changed(self, check: Check, old: str, new: str, reason: str) -> None:
        """Send ``check_changed``, and ``health_changed`` if the health has changed. Receivers may block."""
        send(check_changed, self._sender, check=check.name, old=old, new=new, reason=reason)
        self._outbox.flush()

    @contextlib.contextmanager
    def _changing(self, reason: str) -> Iterator[None]:
        """Hold the lock for a change, and list what it makes of the health as a whole."""
        with self._lock:
            old = self._overall()
            yield
            new = self._overall()
            if new != old:
                self._list("health", old, new, reason)
                self._outbox.put(functools.partial(send, health_changed, self._sender, old=old, new=new, reason=reason))

    def _overall(self) -> str:
        return "fail" if self._failure(ALL, state=self._state) else overall(self._statuses.values())

    def _list(self, subject: str, old: str, new: str, reason: str) -> None:
        self._listed.append((subject, old, new, reason, time.time(), time.monotonic()))

    def transitions(self) -> tuple[Transition, ...]:
        """The last hundred, oldest first."""
        with self._lock:  # a change that is being recorded is in effect already
            listed, now = self._listed.copy(), time.monotonic()
        return tuple(
            Transition(subject, old, new, reason, at, now - since) for subject, old, new, reason, at, since in listed
        )


def overall(statuses: Iterable[str]) -> str:
    """The worst of statuses: ``fail`` before ``warn`` before ``pass``."""
    found = set(statuses)
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def _weigh(check: Check, status: str) -> str:
    """The status of a check in a probe that decides about this instance."""
    return "warn" if status == "fail" and check.scope == "shared" else status


def _weigh_all(checks: Iterable[CheckReport]) -> tuple[CheckReport, ...]:
    return tuple(each._replace(status=_weigh(each.check, each.status)) for each in checks)
