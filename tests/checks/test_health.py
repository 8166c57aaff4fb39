"""The health of an application: its registry, its groups, its states, and the changes that it publishes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, current_app, g

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
from flask_lifecycle._core.state import Event
from tests._fakes import BOUND, in_child, make_app, running, state_of, until


class Switch:
    """A check with this status, which counts its calls."""

    def __init__(self, status: str = "pass") -> None:
        self.status = status
        self.calls = 0

    def __call__(self) -> CheckResult:
        self.calls += 1
        return CheckResult(self.status)


class Healthy:
    """The health of an application, READY by default, with a group of its own."""

    def __init__(self, *checks: Check, keep: bool = False, start: bool = True) -> None:
        config = {"LIFECYCLE_READINESS_ON_DRAIN": "keep" if keep else "fail", "LIFECYCLE_PROBE_TIMEOUT": BOUND}
        self.lifecycle = Lifecycle(app := make_app(**config))
        self.lifecycle.group("own", path="/own")
        for check in checks:
            self.lifecycle.add_check(check)
        self.app, self.machine, self.health = app, state_of(app).machine, state_of(app).health
        if start:
            self.machine.apply(Event.STARTED)

    def said(self, *groups: str) -> list[str]:
        """The status of these groups."""
        return [self.health.report(group).status for group in groups]

    def ended(self) -> None:
        """Wait until the checks' threads have ended, and with them what they publish."""
        until(lambda: not any(thread.name.startswith("lifecycle-check") for thread in threading.enumerate()))


@contextlib.contextmanager
def heard(sender: Any) -> Iterator[list[tuple[str, ...]]]:
    """The changes that the two signals publish for this sender."""
    told: list[tuple[str, ...]] = []

    def check(_sender: Any, check: str, old: str, new: str, reason: str) -> None:
        told.append((check, old, new, reason))

    def health(_sender: Any, old: str, new: str, reason: str) -> None:
        told.append((old, new, reason))

    with check_changed.connected_to(check, sender), health_changed.connected_to(health, sender):
        yield told


WARNS = dict.fromkeys(("ready", "startup", "healthcheck", "own", None), "warn")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, dict.fromkeys(WARNS, "fail")),
        ({"critical": False}, WARNS),
        ({"scope": "shared"}, {**WARNS, "own": "fail", None: "fail"}),
        ({"scope": "shared", "critical": False}, WARNS),
    ],
)
def test_scope_and_weight(options: dict[str, Any], said: dict[str | None, str]) -> None:
    """A shared dependency that fails warns where it decides about an instance, and fails where it is asked itself."""
    made = Healthy(Check("db", Switch("fail"), groups=("ready", "startup", "own"), **options))
    reports = {group: made.health.report(group or "healthcheck", None if group else "db") for group in said}
    assert {group: report.status for group, report in reports.items()} == said
    for group, report in reports.items():
        assert [check.status for check in report.checks] == [said[group]]
    assert made.said("live") == ["pass"]


def test_only_what_is_asked_is_run() -> None:
    """An excluded check is neither run nor reported; a component asks its check alone, and cannot be excluded."""
    bad, good = Switch("fail"), Switch()
    made = Healthy(Check("bad", bad, groups=("ready", "own")), Check("good", good, groups=("ready", "own")))
    for group in ("ready", "healthcheck", "own"):
        for report in (made.health.report(group, None, ["bad", "other"]), made.health.report(group, "good", ["good"])):
            assert (report.status, [check.name for check in report.checks]) == ("pass", ["good"])
    assert (bad.calls, good.calls) == (0, 1)


ENDING = "warn pass fail fail fail fail pass"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        # live, startup, ready, healthcheck, own, and the check by its own URL below ready and startup
        (State.STARTING, "warn fail fail fail warn warn warn"),
        (State.READY, "warn warn warn warn warn warn warn"),
        (State.NOT_READY, "warn warn fail fail warn warn warn"),
        *((state, ENDING) for state in (State.DRAINING, State.STOPPING, State.STOPPED)),
    ],
)
def test_groups_in_each_state(state: State, said: str) -> None:
    """Each group, and the check as a component, has the status of the table above; it warns here."""
    # A component is not the instance: it has its own status before that is ready, but not in a drain.
    made = Healthy(Check("db", Switch("warn"), groups=("live", "ready", "startup", "own")))
    made.machine.state = state
    asked = [(group, None) for group in ("live", "startup", "ready", "healthcheck", "own")]
    reports = [made.health.report(group, check) for group, check in (*asked, ("ready", "db"), ("startup", "db"))]
    assert " ".join(report.status for report in reports) == said
    assert [report.draining for report in reports] == [said == ENDING and report.status == "fail" for report in reports]
    assert all(bool(report.checks) == (report.status == "warn") for report in reports)


def test_keeping_readiness_in_a_drain() -> None:
    """With "keep" readiness depends on its checks after the beginning of a drain, until it is ended."""
    # An application that was not ready before the drain does not become ready; its own groups go on.
    switch = Switch()
    made = Healthy(Check("db", switch, groups=("ready", "own"), ttl=0), keep=True)
    made.machine.apply(Event.DRAIN, "SIGTERM")
    assert made.said("ready", "healthcheck", "own") == ["pass"] * 3
    switch.status = "fail"
    report = made.health.report("ready")
    assert (report.state, report.status, report.draining) == (State.DRAINING, "fail", False)
    switch.status = "pass"
    made.health.end_readiness()
    assert made.said("ready", "healthcheck", "own") == ["fail"] * 3
    assert made.health.report("ready").draining
    made = Healthy(Check("db", switch, groups=("ready", "own")), keep=True)
    made.machine.apply(Event.SET_NOT_READY, "maintenance")
    made.machine.apply(Event.DRAIN)
    assert made.said("ready", "healthcheck", "own") == ["fail", "fail", "pass"]


def test_readiness_that_is_handed_over() -> None:
    """If another process serves at the same address, readiness depends on its checks to the end."""
    switch = Switch()
    made = Healthy(Check("db", switch, groups=("ready", "own"), ttl=0))
    made.health.hand_over_readiness()
    made.machine.apply(Event.DRAIN, "process 4711 serves now")
    made.health.end_readiness()
    assert made.said("ready", "healthcheck", "own") == ["pass"] * 3
    switch.status = "fail"
    assert made.said("ready") == ["fail"]


@pytest.mark.parametrize("keep", [True, False])
def test_waiting_probes_are_answered_when_readiness_ends(keep: bool) -> None:
    """A probe that waits for a check is answered when the state decides: at the drain, or when readiness ends."""
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
            made.health.end_readiness()
        thread.join(BOUND)
        assert not thread.is_alive()
        free.set()
    [report] = reports
    assert (report.status, report.draining, report.checks) == ("fail", True, ())
    made.ended()


def test_a_check_that_ends_the_readiness() -> None:
    """A probe whose check was still running when the state changed answers by the new state."""
    # Interleaving: the probe finds READY and runs the check; the check sets the application not ready, and passes.
    made = Healthy()
    made.lifecycle.add_check(Check("db", lambda: made.machine.apply(Event.SET_NOT_READY, "by the check")))
    report = made.health.report("ready")
    assert (report.status, report.state, report.reason) == ("fail", State.NOT_READY, "by the check")
    assert not report.draining


@pytest.mark.parametrize(("scope", "whole"), [("local", "fail"), ("shared", "warn")])
def test_changes_are_published_once(scope: str, whole: str) -> None:
    """Each change of a check and of the whole, where a shared one only warns, is sent once, after debouncing."""
    down = [False]

    def check() -> None:
        if down[0]:
            raise HealthCheckError("down")

    made = Healthy(Check("db", check, ttl=0, fail_after=2, scope=scope), start=False)
    with heard(made.app) as told:
        made.machine.apply(Event.STARTED)
        for down[0] in (False, False, True, True, True, False):
            made.said("ready")
            made.ended()
    assert told == [
        ("fail", "pass", "state READY"),
        ("db", "", "pass", ""),
        ("db", "pass", "fail", "down"),
        ("pass", whole, "check db"),
        ("db", "fail", "pass", ""),
        (whole, "pass", "check db"),
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_the_state_changes_the_whole(keep: bool) -> None:
    """The health follows the state: with "keep" it fails when readiness ends, else at the drain."""
    made = Healthy(keep=keep)
    with heard(made.app) as told:
        made.machine.apply(Event.SET_NOT_READY, "maintenance")
        made.machine.apply(Event.SET_READY)
        made.machine.apply(Event.DRAIN, "SIGTERM")
        made.health.end_readiness()
        made.machine.apply(Event.STOP)
        made.machine.apply(Event.STOPPED)
    assert told == [
        ("pass", "fail", "state NOT_READY"),
        ("fail", "pass", "state READY"),
        ("pass", "fail", "readiness has ended" if keep else "state DRAINING"),
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
                stack.enter_context(signal.connected_to(receiver, made.app))
        assert made.said("ready") == ["fail"]
        made.ended()
    assert told == ["fail", "fail"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["a receiver of check_changed failed", "a receiver of health_changed failed"]


def test_no_lock_is_held_while_a_change_is_sent() -> None:
    """A receiver may ask for the health itself, and change the state."""
    made, seen = Healthy(Check("db", Switch("fail"))), list[Any]()

    def receiver(sender: Any, **change: str) -> None:
        seen.append((made.said("healthcheck"), len(made.health.transitions())))
        if made.machine.state is State.READY:
            made.machine.apply(Event.SET_NOT_READY, "by the receiver")

    with health_changed.connected_to(receiver, made.app):
        made.said("ready")
        made.ended()
    assert seen == [(["fail"], 4)]


def test_transitions() -> None:
    """The changes of the state, the checks and the whole are listed with their reasons, the oldest first."""
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


def test_a_hundred_transitions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of more than a hundred transitions are dropped; their age is by the monotonic clock."""
    made, clock = Healthy(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.time", lambda: 5000.0)
    for number in range(60):
        made.machine.apply(Event.SET_NOT_READY, f"reason {number}")
        made.machine.apply(Event.SET_READY, "again")
    clock[0] += 7.0
    monkeypatch.setattr("time.time", lambda: 1.0)
    transitions = made.health.transitions()
    monkeypatch.undo()
    assert (len(transitions), transitions[0].reason, transitions[-2].reason) == (100, "reason 35", "again")
    assert transitions[0] == Transition("state", "READY", "NOT_READY", "reason 35", 5000.0, 7.0)


def test_each_change_of_the_health_names_its_check() -> None:
    """Of two checks that change at once, each is named for its effect on the health, whichever is sent first."""
    # The check that warns has changed, and its receiver blocks while the one that fails changes. Computed when it is
    # sent, the health would go from "pass" to "fail" at once, by the check that warns if its thread goes on first.
    made = Healthy(Check("slow", Switch("fail"), critical=False, groups=("live",)), Check("dead", Switch("fail")))
    entered = {"slow": threading.Event(), "dead": threading.Event()}
    go_on = threading.Event()

    def hold(_sender: Any, check: str, **change: str) -> None:
        entered[check].set()
        assert go_on.wait(BOUND)

    with heard(made.app) as told, check_changed.connected_to(hold, made.app):
        for group, check in (("live", "slow"), ("ready", "dead")):
            made.said(group)
            assert entered[check].wait(BOUND)
        go_on.set()
        made.ended()
    changes = [("pass", "warn", "check slow"), ("warn", "fail", "check dead")]
    assert [change for change in told if len(change) == 3] == changes
    assert [each[1:4] for each in made.health.transitions() if each.subject == "health"][1:] == changes


def test_a_change_of_the_health_names_the_state_it_comes_from() -> None:
    """A check that changes while a receiver still handles the drain is not named for the effect of the drain."""
    # The state has changed, and its receiver is blocked; the check's thread then publishes the health first.
    made, held, go_on = Healthy(Check("db", Switch("fail"), ttl=0)), threading.Event(), threading.Event()

    def hold(_sender: Any, **change: Any) -> None:
        held.set()
        assert go_on.wait(BOUND)

    def drain() -> None:
        with state_changed.connected_to(hold, made.app):
            made.machine.apply(Event.DRAIN, "SIGTERM")

    with heard(made.app) as told, running(drain):
        assert held.wait(BOUND)
        made.health.engine.run(lambda check: True, BOUND)
        made.ended()
        assert made.said("ready") == ["fail"]
        subjects = [transition.subject for transition in made.health.transitions()]
        assert subjects[-3:] == ["state", "health", "check db"]
        go_on.set()
    assert [reason for *_change, reason in told if reason.startswith("state")] == ["state DRAINING"]


def test_an_answered_probe_finds_the_change_listed() -> None:
    """A change is listed before the probe is answered, however long the log takes."""
    made, held = Healthy(Check("db", Switch("fail"))), threading.Event()

    class Stalled(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return held.wait(BOUND)

    stalled = Stalled()
    logging.getLogger("flask_lifecycle").addFilter(stalled)
    try:
        assert made.said("ready") == ["fail"]
        subjects = [transition.subject for transition in made.health.transitions()]
    finally:
        held.set()
        made.ended()
        logging.getLogger("flask_lifecycle").removeFilter(stalled)
    assert subjects == ["state", "health", "check db", "health"]


def test_changes_of_the_health_are_sent_in_order() -> None:
    """A change that comes while a receiver is busy is sent after that, by the same thread."""
    switch = Switch("fail")
    made, told = Healthy(Check("db", switch, ttl=0)), list[str]()
    held, go_on = threading.Event(), threading.Event()

    def hold(_sender: Any, new: str, **change: str) -> None:
        told.append(new)
        held.set()
        assert go_on.wait(BOUND)

    with health_changed.connected_to(hold, made.app):
        made.said("ready")
        assert held.wait(BOUND)
        made.machine.apply(Event.SET_NOT_READY, "by hand")
        switch.status = "pass"
        made.health.engine.run(lambda check: True, BOUND)
        made.machine.apply(Event.SET_READY, "by hand")
        assert told == ["fail"]
        go_on.set()
        made.ended()
    assert told == ["fail", "pass"]


def test_a_forked_child_begins_with_the_health_of_its_state() -> None:
    """A child that was forked while the application was ready has not started: its checks do not change its health."""
    made = Healthy(Check("db", Switch(), ttl=0))
    made.said("ready")
    listed = len(made.health.transitions())
    state_of(made.app).after_fork()
    made.health.engine.after_fork()
    made.health.engine.run(lambda check: True, BOUND)
    assert [each.subject for each in made.health.transitions()[listed:]] == ["check db"]


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


def test_a_shutdown_that_is_quicker_than_the_start_up() -> None:
    """A start-up that ends after the drain has begun makes nothing ready."""
    lifecycle = Lifecycle(app := make_app())
    state = state_of(app)
    state.machine.apply(Event.DRAIN, "SIGTERM")
    state.startup.run()
    assert lifecycle.state is State.DRAINING
    lifecycle.shutdown()
    assert [get(app, path) for path in ("/livez", "/readyz")] == [200, 503]


def test_each_run_has_its_own_application_context() -> None:
    """The context of a run is torn down after it, with its exception, in its thread; a teardown may fail the check."""
    # Flask-SQLAlchemy keeps its session in the context, and there it is removed.
    lifecycle = Lifecycle(app := make_app())
    closed: list[tuple[str, str | None]] = []

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "session" in g:
            closed.append((g.session, type(error).__name__ if error else None))
            assert threading.current_thread().name == f"lifecycle-check-{g.session}"
            if g.session == "odd":
                raise LookupError("no session")

    def use(name: str, fail: bool = False) -> None:
        assert "session" not in g
        g.session = name
        if fail:
            raise ConnectionError("gone")

    lifecycle.check("good", ttl=0)(lambda: use("good"))
    assert [get(app, "/readyz") for _ in range(2)] == [200] * 2
    lifecycle.check("bad", ttl=0)(lambda: use("bad", True))
    assert get(app, "/readyz/") == 503
    lifecycle.check("odd", groups=("live",), ttl=0)(lambda: use("odd"))
    assert get(app, "/livez") == 503
    assert sorted(closed) == [("bad", "ConnectionError"), *[("good", None)] * 3, ("odd", None)]


@pytest.mark.parametrize("own", [True, False])
def test_an_async_check_sees_the_application(own: bool) -> None:
    """An async check runs in the application context, in its own thread, by the ensure_sync of the application."""

    class Own(Flask):
        def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
            ways.append(func.__name__)
            return lambda *arguments: asyncio.run(func(*arguments))

    ways: list[str] = []
    seen: list[Any] = []
    app = Own("testing") if own else make_app()
    app.testing = True
    lifecycle = Lifecycle(app)

    @lifecycle.check("db")
    async def check(context: CheckContext) -> None:
        seen.append((current_app.name, threading.current_thread().name, context.state, context.in_flight))

    assert get(app, "/readyz") == 200
    assert seen == [("testing", "lifecycle-check-db", State.READY, 0)]
    assert ways == ["check"] * own


def test_what_a_check_may_ask() -> None:
    """The context has the state and its reason, the requests in flight, and the rest of the grace period."""
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
    """A child that was forked while the lock of the health was held does not block on it."""
    app = make_app()
    Lifecycle(app)
    health = state_of(app).health
    with health._lock:
        assert in_child(lambda: health._lock.acquire(timeout=BOUND)) == 1
