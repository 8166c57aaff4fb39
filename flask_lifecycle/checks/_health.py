"""What an application says of its health: the groups of checks, the table of states, and the changes.

A *group* is what a probe asks. ``live``, ``ready`` and ``startup`` are always there, ``healthcheck`` asks everything,
and an application may have its own. What each says depends on the state first and on its checks second:

===========  ===========================================================================================
live         the checks of the group alone, and with ``LIFECYCLE_STUCK_AFTER`` whether the pool of workers is
             stuck; a drain does not change it, and nothing else is in it by itself
startup      ``fail`` until the start-up is over
ready        ``fail`` unless the state is READY
healthcheck  as ``ready``, of all checks and of the pool
own groups   their checks alone, whatever the state; ``fail`` in a drain, as readiness
component    one check by its own URL: that check alone, as in an own group
===========  ===========================================================================================

A check with ``scope="shared"`` warns in the four groups that are always there, because they are what takes an instance
out of rotation or restarts it. In an application's own group, and asked by its own URL, it says what it is.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from blinker import Namespace

from .._record import NamedTuple
from .._state import ENDING, State, StateMachine, send
from ._check import Check
from ._engine import App, CheckReport, Engine, overall, renewed_in_children

if TYPE_CHECKING:  # a Protocol takes its time at the import

    class Pool(Protocol):
        """What is asked of the pool of workers; see ``_stuck.py``."""

        listeners: weakref.WeakSet[Any]

        @property
        def status(self) -> str:
            """What it said last."""

        def report(self) -> CheckReport:
            """How it is now, as a check would say it."""

        def known(self) -> CheckReport:
            """What it said last."""


_signals = Namespace()

check_changed = _signals.signal(
    "lifecycle-check-changed",
    doc="""Sent once for each change of a check, after damping. The sender is the application; ``check`` is its name,
    ``old`` (empty at the first result) and ``new`` are ``pass``, ``warn`` or ``fail``, ``reason`` may be told.""",
)
health_changed = _signals.signal(
    "lifecycle-health-changed",
    doc="""Sent once for each change of what ``/healthcheck`` says. The sender is the application; ``old`` and ``new``
    are ``pass``, ``warn`` or ``fail``, ``reason`` says which change of a state or a check it comes from.""",
)

LIVE, READY, STARTUP, ALL = "live", "ready", "startup", "healthcheck"
ALWAYS = (LIVE, READY, STARTUP, ALL)


class Group:
    """What one probe asks, and how it answers.

    :param name: what checks name in their ``groups``.
    :param path: where it is asked, below ``LIFECYCLE_URL_PREFIX``; ``None`` for those of ``LIFECYCLE_PATHS``.
    :param status_codes: by status; what is not given stays as ``LIFECYCLE_STATUS_CODES`` has it.
    :param headers: sent with every answer, over ``LIFECYCLE_HEADERS``.
    :param details: ``never``, ``token`` or ``always``; by default ``LIFECYCLE_DETAILS``.
    :param renderer: makes the body from the whole :class:`HealthReport`.
    """

    def __init__(
        self,
        name: str,
        path: str | None = None,
        status_codes: Mapping[str, int] | None = None,
        headers: Mapping[str, str] | None = None,
        details: str | None = None,
        renderer: Callable[[HealthReport], Any] | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.status_codes = status_codes
        self.headers = headers
        self.details = details
        self.renderer = renderer


class HealthReport(NamedTuple):
    """What a probe is going to be answered.

    :param group: the name of the group that was asked.
    :param component: the one check that was asked for, if it was.
    :param status: ``pass``, ``warn`` or ``fail``.
    :param state: of the application, and ``reason``: why it is in it.
    :param checks: what they say, in the order of their registration; none where the state alone decides.
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
    :param time: when, in seconds since the epoch.
    :param age: how many seconds ago.
    """

    subject: str
    old: str
    new: str
    reason: str
    time: float
    age: float


class Health:
    """The health of one application. Any thread may use it.

    :param app: the application as its checks see it.
    :param checks: gives the registered checks.
    :param sender: of the signals.
    :param timeout: seconds that a probe waits for its checks in all.
    :param keep: whether readiness outlives the beginning of a drain, until :meth:`withdraw`.
    """

    def __init__(
        self,
        app: App,
        checks: Callable[[], Iterable[Check]],
        sender: Any,
        machine: StateMachine,
        timeout: float,
        *,
        keep: bool,
    ) -> None:
        self.engine = Engine(app, checks, self._check_changed)
        self._sender = sender
        self._machine = machine
        self._timeout = timeout
        self._keep = keep
        self._stays = False
        self.after_fork()
        renewed_in_children.add(self)
        self._said = "fail"
        self._ring: deque[tuple[str, str, str, str, float, float]] = deque(maxlen=100)  # appending is atomic
        self._pool: Pool | None = None

    def after_fork(self) -> None:
        """Another thread may have held it when this child was forked."""
        self._lock = threading.Lock()  # guards _said

    def watch_pool(self, pool: Pool) -> None:
        """Let liveness, and whatever asks for everything, depend on whether the workers get on."""
        self._pool = pool
        pool.listeners.add(self)

    def pool_changed(self, check: Check, old: str, new: str, reason: str) -> None:
        """The pool is stuck, or gets on again. Told to receivers, so in a thread that they may block."""
        self._check_changed(check, old, new, reason)

    # -- what a probe is told -------------------------------------------------------------------------------------

    def report(self, group: str, component: str | None = None, exclude: Collection[str] = ()) -> HealthReport:
        """What a group says now. Blocks for its checks as long as their timeouts and the probe's allow."""

        def wanted(check: Check) -> bool:
            if component is not None:
                return check.name == component
            return check.name not in exclude and (group == ALL or group in check.groups)

        while True:
            state, reason = self._machine.state, self._machine.reason
            refusing = self._refuses(group, component)
            if refusing is not None:
                return HealthReport(group, component, "fail", state, reason, draining=refusing)
            if group == STARTUP and self._machine.ending:  # it has started; that stays true
                return HealthReport(group, component, "pass", state, reason)
            checks = self.engine.run(wanted, self._timeout, hurried=group != LIVE)
            if self._pool is not None and group in (LIVE, ALL) and component is None:
                checks += (self._pool.report(),)
            # A drain that began while a check was waited for makes another answer true.
            if self._refuses(group, component) is None:
                if group in ALWAYS and component is None:
                    checks = _weigh_all(checks)
                return HealthReport(group, component, overall(each.status for each in checks), state, reason, checks)

    def known(self) -> tuple[CheckReport, ...]:
        """What every check has said last, as ``/healthcheck`` tells it; runs none, and waits for none."""
        known = _weigh_all(self.engine.known())
        return known if self._pool is None else (*known, self._pool.known())

    def _refuses(self, group: str, component: str | None = None) -> bool | None:
        """Whether the state alone makes a group fail: ``True`` because of a drain, ``False`` for another reason."""
        state = self._machine.state
        if group == LIVE:
            return None
        if state in ENDING and group != STARTUP:
            return None if self._keep and (self._machine.was_ready or group not in ALWAYS) else True
        if component is not None:
            return None
        if group == STARTUP:
            return False if state is State.STARTING else None
        return False if group in (READY, ALL) and state is not State.READY else None

    def outlive(self) -> None:
        """Readiness is that of another process as well, and a drain does not change it."""
        self._keep = self._stays = True

    def withdraw(self) -> None:
        """From now on readiness fails in a drain, whatever the policy; whoever waits for a check is answered."""
        self._keep = self._stays
        self.engine.hurry()
        self._update("nobody is let in any more")

    # -- changes --------------------------------------------------------------------------------------------------

    def state_changed(self, old: State, new: State, reason: str) -> None:
        """The state of the application has changed."""
        self._record("state", old.value, new.value, reason)
        if new in ENDING and not self._keep:
            self.engine.hurry()
        if new is State.STOPPING:
            self.engine.stop()
        self._update(f"state {new.value}")

    def _check_changed(self, check: Check, old: str, new: str, reason: str) -> None:
        """What counts of a check has changed."""
        self._record(f"check {check.name}", old, new, reason)
        send(check_changed, self._sender, check=check.name, old=old, new=new, reason=reason)
        self._update(f"check {check.name}")

    def _update(self, reason: str) -> None:
        with self._lock:
            old, new = self._said, self.standing(ALL)
            self._said = new
        if old != new:
            self._record("health", old, new, reason)
            send(health_changed, self._sender, old=old, new=new, reason=reason)

    def standing(self, group: str) -> str:
        """What a group says by what is known now, without running a check."""
        if self._refuses(group) is not None:
            return "fail"
        known = [weigh(*each) for each in self.engine.standing() if group == ALL or group in each[0].groups]
        if self._pool is not None and group in (LIVE, ALL):
            known.append(self._pool.status)
        return overall(known)

    def _record(self, *what: str) -> None:
        subject, old, new, reason = what
        self._ring.append((subject, old, new, reason, time.time(), time.monotonic()))

    def transitions(self) -> tuple[Transition, ...]:
        """The last hundred, oldest first."""
        now = time.monotonic()
        return tuple(
            Transition(subject, old, new, reason, at, now - since)
            for subject, old, new, reason, at, since in self._ring.copy()
        )


def weigh(check: Check, status: str) -> str:
    """What a check's status is to a probe that decides about this instance."""
    return "warn" if status == "fail" and check.scope == "shared" else status


def _weigh_all(checks: Iterable[CheckReport]) -> tuple[CheckReport, ...]:
    return tuple(each._replace(status=weigh(each.check, each.status)) for each in checks)
