"""What an application says of its health: its registry, its groups, its states, and the changes that it tells."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, current_app, g
from flask.ctx import AppContext

from flask_lifecycle import (
    Check,
    CheckContext,
    CheckResult,
    HealthCheckError,
    HealthReport,
    Lifecycle,
    State,
    Transition,
    check_changed,
    health_changed,
    state_changed,
)
from flask_lifecycle._state import Event, StateMachine
from flask_lifecycle.checks import Group
from flask_lifecycle.checks._health import Health
from flask_lifecycle.checks._registry import Registry
from tests._fakes import BOUND, make_app, running, state_of, until, whole


class FakeApp:
    """An application as the engine sees it."""

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def ensure_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        raise AssertionError("there is no coroutine here")

    def check_context(self) -> CheckContext:
        raise AssertionError("nobody wants it")


class Switch:
    """A check that fails while it is told to, and counts its calls."""

    def __init__(self, status: str = "pass") -> None:
        self.status = status
        self.calls = 0

    def __call__(self) -> CheckResult:
        self.calls += 1
        return CheckResult(self.status)


class Healthy:
    """The health of an application without Flask, READY unless it is said otherwise, and the changes that it told."""

    def __init__(self, *checks: Check, keep: bool = False, start: bool = True) -> None:
        self.checks = list(checks)
        self.told: list[tuple[str, ...]] = []
        self.machine = StateMachine(ready=True, notify=lambda *change: self.health.state_changed(*change))
        self.health = Health(FakeApp(), lambda: self.checks, self, self.machine, BOUND, keep=keep)
        if start:
            self.machine.apply(Event.STARTED)

    def said(self, *groups: str) -> list[str]:
        """What these groups say."""
        return [self.health.report(group).status for group in groups]

    def ended(self) -> None:
        """Wait until the checks' threads are gone, and what they had to tell is told."""
        until(lambda: not any(thread.name.startswith("lifecycle-check") for thread in threading.enumerate()))


@contextlib.contextmanager
def heard(sender: Any) -> Iterator[list[tuple[str, ...]]]:
    """What the two signals tell of this sender."""
    told: list[tuple[str, ...]] = []

    def check(_sender: Any, check: str, old: str, new: str, reason: str) -> None:
        told.append((check, old, new, reason))

    def health(_sender: Any, old: str, new: str, reason: str) -> None:
        told.append((old, new, reason))

    with check_changed.connected_to(check, sender), health_changed.connected_to(health, sender):
        yield told


FOUR = ("live", "ready", "startup", "healthcheck")


# -- the registry -------------------------------------------------------------------------------------------------


def nothing() -> None:
    """A check that is well."""


def test_the_registry_keeps_the_order() -> None:
    """Checks are given in the order of their registration, and the four groups are always there."""
    registry = Registry()
    for name in "bac":
        registry.add(Check(name, nothing))
    assert [check.name for check in registry.checks()] == ["b", "a", "c"]
    assert list(registry.groups()) == ["live", "ready", "startup", "healthcheck"]


def test_what_was_given_out_does_not_change() -> None:
    """Whoever goes through the checks or groups is not disturbed by one that comes meanwhile."""
    registry = Registry()
    checks, groups = registry.checks(), registry.groups()
    registry.add(Check("a", nothing))
    registry.set_group(Group("own", "/own"))
    assert (checks, list(groups)) == ((), list(FOUR))
    assert (len(registry.checks()), registry.groups()["own"].path) == (1, "/own")


class Watcher:
    """One that watches a registry."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def judge(self, groups: dict[str, Group]) -> None:
        self.seen.append(f"judge {len(groups)}")
        if "bad" in groups:
            raise ValueError("a bad group")

    def watch(self) -> None:
        self.seen.append("watch")


def test_the_registry_tells_of_what_comes() -> None:
    """A watcher judges the groups that there are and each that comes before it is there, and hears of all that came."""
    registry, watcher = Registry(), Watcher()
    registry.watch(watcher.judge, watcher.watch)
    registry.add(Check("a", nothing))
    registry.set_group(Group("own", "/own"))
    assert watcher.seen == ["judge 4", "watch", "judge 5", "watch"]
    with pytest.raises(ValueError, match=whole("a bad group")):
        registry.set_group(Group("bad", "/bad"))
    assert "bad" not in registry.groups()
    assert watcher.seen[4:] == ["judge 6"]


def test_a_watcher_that_is_gone() -> None:
    """A registry keeps none of its watchers alive, and one that is gone is not missed."""
    registry, watcher = Registry(), Watcher()
    seen = watcher.seen
    registry.watch(watcher.judge, watcher.watch)
    del watcher
    gc.collect()
    registry.set_group(Group("own", "/own"))
    registry.add(Check("a", nothing))
    assert seen == ["judge 4"]


def test_two_threads_register_one_name() -> None:
    """Of two threads that register one name at once one gets the error, and the other's check is there."""
    registry, barrier = Registry(), threading.Barrier(2, timeout=BOUND)
    errors: list[str] = []

    def register() -> None:
        barrier.wait()
        try:
            registry.add(Check("a", nothing))
        except ValueError as error:
            errors.append(str(error))

    with running(register), running(register):
        pass
    assert errors == ["There is a check 'a' already; give this one another name."]
    assert len(registry.checks()) == 1


# -- groups and scope ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, {"ready": "fail", "startup": "fail", "healthcheck": "fail", "own": "fail", None: "fail"}),
        (
            {"critical": False},
            {"ready": "warn", "startup": "warn", "healthcheck": "warn", "own": "warn", None: "warn"},
        ),
        # What takes an instance out of rotation or restarts it is only warned; who asks for itself is told.
        (
            {"scope": "shared"},
            {"ready": "warn", "startup": "warn", "healthcheck": "warn", "own": "fail", None: "fail"},
        ),
        (
            {"scope": "shared", "critical": False},
            {"ready": "warn", "startup": "warn", "healthcheck": "warn", "own": "warn", None: "warn"},
        ),
    ],
)
def test_scope_and_weight(options: dict[str, Any], said: dict[str | None, str]) -> None:
    """A shared dependency that fails warns where an instance is judged, and fails where it is asked for by itself."""
    made = Healthy(Check("db", Switch("fail"), groups=("ready", "startup", "own"), **options))
    reports = {group: made.health.report(group or "healthcheck", None if group else "db") for group in said}
    assert {group: report.status for group, report in reports.items()} == said
    for group, report in reports.items():
        assert [check.status for check in report.checks] == [said[group]]
    assert made.said("live") == ["pass"]


@pytest.mark.parametrize("group", ["ready", "healthcheck", "own"])
def test_exclusion(group: str) -> None:
    """What is excluded is neither asked nor told; a name that there is not excludes nothing."""
    bad, good = Switch("fail"), Switch()
    made = Healthy(Check("bad", bad, groups=("ready", "own")), Check("good", good, groups=("ready", "own")))
    report = made.health.report(group, None, ["bad", "other"])
    assert (report.status, [check.name for check in report.checks]) == ("pass", ["good"])
    assert (bad.calls, good.calls) == (0, 1)


def test_a_component_is_one_check() -> None:
    """A component asks that check alone, and excluding it changes nothing."""
    bad, good = Switch("fail"), Switch()
    made = Healthy(Check("bad", bad), Check("good", good))
    report = made.health.report("ready", "good", ["good"])
    assert (report.group, report.component, report.status) == ("ready", "good", "pass")
    assert [check.name for check in report.checks] == ["good"]
    assert bad.calls == 0


def test_the_report_of_a_probe() -> None:
    """A report says what was asked, what the state is and why, and shows no details unless it is told to."""
    made = Healthy(Check("db", Switch("warn")))
    report = made.health.report("ready")
    [check] = report.checks
    assert report == HealthReport("ready", None, "warn", State.READY, "started", (check,), False, False)
    assert (check.name, check.status) == ("db", "warn")


# -- states -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "said", "draining"),
    [
        (State.STARTING, "live warn, startup fail, ready fail, healthcheck fail, own warn", []),
        (State.READY, "live warn, startup warn, ready warn, healthcheck warn, own warn", []),
        (State.NOT_READY, "live warn, startup warn, ready fail, healthcheck fail, own warn", []),
        *(
            (state, "live warn, startup pass, ready fail, healthcheck fail, own fail", ["ready", "healthcheck", "own"])
            for state in (State.DRAINING, State.STOPPING, State.STOPPED)
        ),
    ],
)
def test_groups_in_each_state(state: State, said: str, draining: list[str]) -> None:
    """Each group says in each state what the table at the head of the module has; all checks warn here."""
    made = Healthy(Check("db", Switch("warn"), groups=("live", "ready", "startup", "own")))
    made.machine.state = state
    reports = {group: made.health.report(group) for group in ("live", "startup", "ready", "healthcheck", "own")}
    assert ", ".join(f"{group} {report.status}" for group, report in reports.items()) == said
    assert [group for group, report in reports.items() if report.draining] == draining
    assert all(bool(report.checks) == (report.status == "warn") for report in reports.values())


@pytest.mark.parametrize(
    ("state", "status"),
    [(State.STARTING, "pass"), (State.NOT_READY, "pass"), (State.READY, "pass"), (State.DRAINING, "fail")],
)
def test_a_component_in_each_state(state: State, status: str) -> None:
    """A component is not the instance: it says what it is before and while that is not ready, but not in a drain."""
    made = Healthy(Check("db", Switch(), groups=("ready", "startup")))
    made.machine.state = state
    assert [made.health.report(group, "db").status for group in ("ready", "healthcheck")] == [status] * 2
    assert made.health.report("startup", "db").status == "pass"


def test_keeping_readiness_in_a_drain() -> None:
    """With "keep" readiness outlives the beginning of a drain, with its checks, until it is withdrawn."""
    switch = Switch()
    made = Healthy(Check("db", switch, groups=("ready", "own"), ttl=0), keep=True)
    made.machine.apply(Event.DRAIN, "SIGTERM")
    assert made.said("ready", "healthcheck", "own") == ["pass"] * 3
    assert made.health.report("ready").state is State.DRAINING
    switch.status = "fail"
    assert made.said("ready") == ["fail"]
    assert not made.health.report("ready").draining
    switch.status = "pass"
    made.health.withdraw()
    assert made.said("ready", "healthcheck", "own") == ["fail"] * 3
    assert made.health.report("ready").draining


def test_readiness_that_outlives_the_process() -> None:
    """Where another process goes on at the same address, readiness is what it is to the end, with its checks."""
    switch = Switch()
    made = Healthy(Check("db", switch, groups=("ready", "own"), ttl=0))
    made.health.outlive()
    made.machine.apply(Event.DRAIN, "process 4711 serves now")
    made.health.withdraw()
    assert made.said("ready", "healthcheck", "own") == ["pass"] * 3
    switch.status = "fail"
    assert made.said("ready") == ["fail"]


def test_nothing_is_kept_that_was_not_there() -> None:
    """With "keep" an application that was not ready when the drain began does not become it; its own groups go on."""
    made = Healthy(Check("db", Switch(), groups=("ready", "own")), keep=True)
    made.machine.apply(Event.SET_NOT_READY, "maintenance")
    made.machine.apply(Event.DRAIN)
    assert made.said("ready", "healthcheck", "own") == ["fail", "fail", "pass"]


@pytest.mark.parametrize("keep", [True, False])
def test_whoever_waits_when_readiness_ends_is_answered(keep: bool) -> None:
    """A probe that waits for a check is answered when the state decides: at the drain, or when it is withdrawn."""
    entered, free = threading.Event(), threading.Event()

    def hangs() -> None:
        entered.set()
        assert free.wait(BOUND)

    made, reports = Healthy(Check("db", hangs, timeout=BOUND), keep=keep), list[HealthReport]()
    with running(lambda: reports.append(made.health.report("ready"))) as thread:
        assert entered.wait(BOUND)
        made.machine.apply(Event.DRAIN, "SIGTERM")
        if keep:
            assert thread.is_alive()
            made.health.withdraw()
        thread.join(BOUND)
        assert not thread.is_alive()
        free.set()
    [report] = reports
    assert (report.status, report.draining, report.checks) == ("fail", True, ())
    made.ended()


def test_a_check_that_ends_the_readiness() -> None:
    """A probe whose check was still running when the state changed answers by the new state.

    Interleaving: the probe finds READY and runs the check; the check sets the application not ready, and passes.
    """
    made = Healthy()
    made.checks.append(Check("db", lambda: made.machine.apply(Event.SET_NOT_READY, "by the check")))
    report = made.health.report("ready")
    assert (report.status, report.state, report.reason) == ("fail", State.NOT_READY, "by the check")
    assert not report.draining


def test_stopping_ends_the_background() -> None:
    """When the application stops the background checks' thread is given back."""
    switch = Switch()
    made = Healthy(Check("db", switch, interval=60.0))
    made.health.engine.start()
    until(lambda: switch.calls == 1)
    made.machine.apply(Event.DRAIN)
    assert any(thread.name == "lifecycle-checks" for thread in threading.enumerate())
    made.machine.apply(Event.STOP)
    assert not any(thread.name == "lifecycle-checks" for thread in threading.enumerate())
    made.ended()


# -- changes ------------------------------------------------------------------------------------------------------


def test_changes_are_told_once() -> None:
    """Each change of a check and of the whole is told once, after the damping, with a reason that may be told."""
    down = [False]

    def check() -> None:
        if down[0]:
            raise HealthCheckError("down")

    made = Healthy(Check("db", check, ttl=0, fail_after=2), start=False)
    with heard(made) as told:
        made.machine.apply(Event.STARTED)
        for down[0] in (False, False, True, True, True, False):
            made.said("ready")
            made.ended()
    assert told == [
        ("fail", "pass", "state READY"),
        ("db", "", "pass", ""),
        ("db", "pass", "fail", "down"),
        ("pass", "fail", "check db"),
        ("db", "fail", "pass", ""),
        ("fail", "pass", "check db"),
    ]


def test_what_is_shared_only_warns_in_the_whole() -> None:
    """A shared check that fails is told as failing, and the health as a whole as a warning."""
    made = Healthy(Check("db", Switch("fail"), scope="shared"))
    with heard(made) as told:
        made.said("ready")
        made.ended()
    assert told == [("db", "", "fail", ""), ("pass", "warn", "check db")]


@pytest.mark.parametrize("keep", [True, False])
def test_the_state_changes_the_whole(keep: bool) -> None:
    """The health as a whole follows the state: with "keep" it fails when readiness is withdrawn, else at the drain."""
    made = Healthy(keep=keep)
    with heard(made) as told:
        made.machine.apply(Event.SET_NOT_READY, "maintenance")
        made.machine.apply(Event.SET_READY)
        made.machine.apply(Event.DRAIN, "SIGTERM")
        made.health.withdraw()
        made.machine.apply(Event.STOP)
        made.machine.apply(Event.STOPPED)
    assert told == [
        ("pass", "fail", "state NOT_READY"),
        ("fail", "pass", "state READY"),
        ("pass", "fail", "nobody is let in any more" if keep else "state DRAINING"),
    ]


def test_receivers_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that raises is logged; the others hear the change, and the probe is answered."""
    made, told = Healthy(Check("db", Switch("fail"))), list[str]()

    def broken(sender: Any, **change: str) -> None:
        raise LookupError("odd")

    def hears(sender: Any, **change: str) -> None:
        told.append(change["new"])

    with contextlib.ExitStack() as stack:
        for signal in (check_changed, health_changed):
            for receiver in (broken, hears):
                stack.enter_context(signal.connected_to(receiver, made))
        assert made.said("ready") == ["fail"]
        made.ended()
    assert told == ["fail", "fail"]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["a receiver of check_changed failed", "a receiver of health_changed failed"]


def test_no_lock_is_held_while_a_change_is_told() -> None:
    """A receiver may ask for the health itself, and change the state."""
    made, seen = Healthy(Check("db", Switch("fail"))), list[Any]()

    def receiver(sender: Any, **change: str) -> None:
        seen.append((made.said("healthcheck"), len(made.health.transitions())))
        if made.machine.state is State.READY:
            made.machine.apply(Event.SET_NOT_READY, "by the receiver")

    with health_changed.connected_to(receiver, made):
        made.said("ready")
        made.ended()
    assert seen == [(["fail"], 4)]


def test_transitions() -> None:
    """The changes of the state, the checks and the whole are kept with their reasons, the oldest first."""
    made = Healthy(Check("db", Switch("fail")))
    made.said("ready")
    made.ended()
    made.machine.apply(Event.SET_NOT_READY, "maintenance")
    transitions = made.health.transitions()
    assert [transition[:4] for transition in transitions] == [
        ("state", "STARTING", "READY", "started"),
        ("health", "fail", "pass", "state READY"),
        ("check db", "", "fail", ""),
        ("health", "pass", "fail", "check db"),
        ("state", "READY", "NOT_READY", "maintenance"),
    ]
    times, ages = [each.time for each in transitions], [each.age for each in transitions]
    assert times == sorted(times)
    assert ages == sorted(ages, reverse=True)
    assert ages[-1] >= 0


def test_transitions_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The age of a transition is by the clock that nobody sets; the time of day is for people."""
    made = Healthy(start=False)
    clock = [100.0]
    monkeypatch.setattr("flask_lifecycle.checks._health.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("flask_lifecycle.checks._health.time.time", lambda: 5000.0)
    made.machine.apply(Event.STARTED)
    clock[0] += 7.0
    monkeypatch.setattr("flask_lifecycle.checks._health.time.time", lambda: 1.0)
    transition = made.health.transitions()[0]
    monkeypatch.undo()
    assert transition == Transition("state", "STARTING", "READY", "started", 5000.0, 7.0)


def test_a_hundred_transitions_are_kept() -> None:
    """Of more than a hundred transitions the oldest are forgotten."""
    made = Healthy()
    for number in range(60):
        made.machine.apply(Event.SET_NOT_READY, f"reason {number}")
        made.machine.apply(Event.SET_READY, "again")
    transitions = made.health.transitions()
    assert len(transitions) == 100
    assert transitions[-2].reason == "again"
    assert transitions[0].reason == "reason 35"


# -- through the extension ----------------------------------------------------------------------------------------


def get(app: Flask, path: str) -> int:
    return app.test_client().get(path).status_code


def test_two_applications_have_results_of_their_own() -> None:
    """Two applications of one Lifecycle share its checks, and neither a result, a run, a state nor a transition."""
    lifecycle, ran = Lifecycle(), list[str]()
    apps = [make_app(), make_app()]
    for number, app in enumerate(apps):
        app.name = f"app {number}"
        lifecycle.init_app(app)

    @lifecycle.check("db")
    def check() -> None:
        ran.append(current_app.name)
        if current_app.name == "app 0":
            raise HealthCheckError("down")

    with heard(apps[1]) as told:
        assert [get(app, "/readyz") for app in (*apps, *apps)] == [503, 200, 503, 200]
        until(lambda: len(told) == 2)
    assert told == [("fail", "pass", "state READY"), ("db", "", "pass", "")]
    assert ran == ["app 0", "app 1"]
    until(lambda: len(state_of(apps[0]).health.transitions()) == 4)
    subjects = []
    for app in apps:
        with app.app_context():
            subjects.append([transition.subject for transition in lifecycle.transitions()])
    assert subjects == [["state", "health", "check db", "health"], ["state", "health", "check db"]]


def test_added_at_any_time() -> None:
    """A check that is registered while the application serves is asked by the next probe."""
    lifecycle = Lifecycle(app := make_app())
    assert get(app, "/readyz") == 200
    lifecycle.add_check(Switch("fail"), name="late")
    assert get(app, "/readyz") == 503
    assert get(app, "/livez") == 200
    lifecycle.add_check(Switch("fail"), name="self", groups=("live",))
    assert get(app, "/livez") == 503


def test_a_receiver_may_send_a_probe() -> None:
    """Whoever hears that the application has started may ask it at once, and the start-up waits for nobody."""
    lifecycle = Lifecycle(app := make_app())
    codes: list[int] = []

    def receiver(sender: Any, **change: Any) -> None:
        codes.append(get(app, "/readyz"))

    with state_changed.connected_to(receiver, app), running(lambda: codes.append(get(app, "/work"))):
        pass
    assert codes == [200, 200]
    assert lifecycle.state is State.READY


def test_a_shutdown_that_is_quicker_than_the_start_up() -> None:
    """A start-up that ends when the drain has begun makes nothing ready, and the probes tell the truth.

    Interleaving: the drain changes the state, and before it lets the waiting requests go the start-up ends.
    """
    lifecycle = Lifecycle(app := make_app())
    state = state_of(app)
    state.machine.apply(Event.DRAIN, "SIGTERM")
    state.start()
    assert lifecycle.state is State.DRAINING
    lifecycle.shutdown()
    assert [get(app, path) for path in ("/livez", "/readyz")] == [200, 503]


def test_each_run_has_an_application_context_of_its_own() -> None:
    """The application context of a check's run is torn down after it, with what it raised, in the thread that ran it.

    A session that is kept in the context, as Flask-SQLAlchemy does it, is removed there and leaks no connection.
    """
    lifecycle = Lifecycle(app := make_app())
    opened: list[int] = []
    closed: list[tuple[int, str, str | None]] = []
    contexts: set[AppContext] = set()

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "session" in g:
            closed.append((g.session, threading.current_thread().name, type(error).__name__ if error else None))

    def use(fail: bool) -> None:
        assert "session" not in g
        contexts.add(current_app.app_context())
        g.session = len(opened)
        opened.append(g.session)
        if fail:
            raise ConnectionError("gone")

    lifecycle.check("good", ttl=0)(lambda: use(False))
    assert [get(app, "/readyz") for _ in range(3)] == [200] * 3
    assert closed == [(number, "lifecycle-check-good", None) for number in range(3)]
    lifecycle.check("bad", ttl=0)(lambda: use(True))
    assert get(app, "/readyz/") == 503
    assert len(closed) == len(opened) == 5
    assert {(name, error) for _, name, error in closed[3:]} == {
        ("lifecycle-check-good", None),
        ("lifecycle-check-bad", "ConnectionError"),
    }


def test_a_teardown_that_raises_is_the_checks_failure() -> None:
    """What a teardown function raises fails the check whose context it was, and no probe."""
    lifecycle = Lifecycle(app := make_app())

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "session" in g:
            raise LookupError("no session")

    def use() -> None:
        g.session = 1

    lifecycle.check("db")(use)
    assert (get(app, "/readyz"), get(app, "/livez")) == (503, 200)


def test_an_async_check_sees_the_application() -> None:
    """An async check runs in the application context, in the thread of the check, and not in one of a pool."""
    lifecycle = Lifecycle(app := make_app())
    seen: list[Any] = []

    @lifecycle.check("db")
    async def check(context: CheckContext) -> None:
        seen.append((current_app.name, threading.current_thread().name, context.state, context.in_flight))

    assert get(app, "/readyz") == 200
    assert seen == [("testing", "lifecycle-check-db", State.READY, 0)]


def test_an_application_that_runs_coroutines_its_own_way() -> None:
    """Where an application has its own way to run coroutines, its checks are run in that way as its views are."""

    class Own(Flask):
        def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
            ways.append(func.__name__)
            return lambda: func().close()

    ways: list[str] = []
    app = Own("own")
    app.testing = True
    lifecycle = Lifecycle(app)

    @lifecycle.check("db")
    async def check() -> None: ...

    assert get(app, "/readyz") == 200
    assert ways == ["check"]


def test_what_a_check_may_ask() -> None:
    """A check is told the state and why, how many requests are in flight, and what is left of the grace period."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_READY="manual"))
    contexts: list[CheckContext] = []
    lifecycle.check("self", groups=("live",), ttl=0)(lambda context: contexts.append(context))
    get(app, "/livez")
    lifecycle.set_ready()
    get(app, "/livez")
    lifecycle.shutdown("enough")
    get(app, "/livez")
    assert [context[:3] for context in contexts] == [
        (State.NOT_READY, "waiting for set_ready()", 0),
        (State.READY, "set_ready()", 0),
        (State.STOPPED, state_of(app).machine.reason, 0),
    ]
    assert [context.remaining is None for context in contexts] == [True, True, False]


def test_a_child_forked_while_health_changes() -> None:
    """A child that was forked while another thread held the lock of the health is not stuck for it."""
    app, lifecycle = make_app(), Lifecycle()
    lifecycle.init_app(app)
    health = state_of(app).health
    with health._lock:
        child = os.fork()
    if not child:
        os._exit(0 if health._lock.acquire(timeout=BOUND) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_group_is_said_once() -> None:
    """A group that is always there is configured in one call: a second would silently undo the first."""
    lifecycle = Lifecycle()
    lifecycle.group("ready", headers={"X-One": "1"})
    with pytest.raises(ValueError, match=whole("There is a group 'ready' already; say all of it in one call.")):
        lifecycle.group("ready", status_codes={"fail": 500})


def test_what_a_group_says_by_what_is_known() -> None:
    """What stands of a group is told without running a check: by the state, and by what its checks have said last."""
    app = make_app()
    lifecycle = Lifecycle(app)
    ran: list[str] = []
    lifecycle.check("db", groups=("ready",), ttl=60)(lambda: ran.append("db") or False)  # type: ignore[func-returns-value]
    health = state_of(app).health
    assert health.standing("ready") == "fail"
    assert health.standing("live") == "pass"
    app.test_client().get("/work").close()
    assert (health.standing("ready"), ran) == ("pass", [])
    health.report("ready")
    assert (health.standing("ready"), health.standing("live"), ran) == ("fail", "pass", ["db"])
