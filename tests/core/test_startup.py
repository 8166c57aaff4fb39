"""The start-up: tasks that hold readiness, resources, twins, and whoever waits for ready."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_lifecycle import Lifecycle, ShutdownReport, State
from flask_lifecycle._core import startup
from tests._fakes import BOUND, in_child, make_app, running, state_of, until, whole


def started(lifecycle: Lifecycle, **config: Any) -> Flask:
    """An application whose start-up functions have run."""
    app = make_app(**config)
    lifecycle.init_app(app)
    state_of(app).startup.run()
    vars(lifecycle)["kept"] = app  # by itself it holds its applications weakly
    return app


def ended(app: Flask) -> ShutdownReport:
    """The report of the shutdown that has begun by itself."""
    shutdown = state_of(app).process.shutdown
    assert shutdown.done.wait(BOUND)
    return shutdown.wait()


def test_a_request_that_waits_for_a_hung_start_is_answered_when_the_process_stops(lifecycle: Lifecycle) -> None:
    """Under a server of somebody else's, too, a stop answers the requests that a start-up which hangs holds."""
    free, statuses = threading.Event(), []
    lifecycle.on_startup(name="hangs")(lambda: free.wait(BOUND))
    lifecycle.init_app(app := make_app())
    with running(lambda: statuses.append(app.test_client().get("/work", buffered=True).status_code)):
        until(lambda: lifecycle.in_flight == 1 and lifecycle._state().startup.runs_functions)
        lifecycle.shutdown(wait=False)
        until(lambda: bool(statuses))
        free.set()
    assert statuses == [503]
    ended(app)


def test_a_task_holds_readiness(lifecycle: Lifecycle) -> None:
    """Until the last task has ended the state is STARTING; a second end does no harm, nor the end of an application."""
    first, second = lifecycle.startup_task("cache"), lifecycle.startup_task("model")
    with lifecycle.startup_task("over before the functions are"):
        pass
    started(lifecycle)
    vars(lifecycle)["kept"] = None
    gc.collect()
    app, other = started(lifecycle), started(lifecycle)
    assert app.test_client().get("/work", buffered=True).status_code == 200
    first.done()
    first.done()
    first.fail("too late to fail")
    assert [state_of(each).machine.state for each in (app, other)] == [State.STARTING] * 2
    second.done()
    assert [state_of(each).machine.state for each in (app, other)] == [State.READY] * 2


def test_a_decorated_task_is_over_with_its_first_call(lifecycle: Lifecycle) -> None:
    """A decorated function is the task: readiness waits for its first call, and later calls change nothing."""

    @lifecycle.startup_task("warm")
    def warm(number: int) -> tuple[int, State]:
        return number, lifecycle.state

    app = started(lifecycle)
    assert lifecycle.state.name == "STARTING"
    assert warm(1) == (1, State.STARTING)
    assert lifecycle.state.name == "READY"
    assert (warm(2), app.name) == ((2, State.READY), "testing")


@pytest.mark.parametrize("begun", [True, False], ids=["serving", "not yet"])
def test_a_failing_task_stops_the_process(lifecycle: Lifecycle, caplog: pytest.LogCaptureFixture, begun: bool) -> None:
    """A task that raises begins the shutdown, at once or as soon as the process serves, and the exit code is 1."""
    task = lifecycle.startup_task("model")
    app = started(lifecycle) if begun else make_app()
    with pytest.raises(OSError, match=whole("no such model")), task:
        raise OSError("no such model")
    if not begun:
        lifecycle.init_app(app)
        assert not state_of(app).process.shutdown.begun
        state_of(app).startup.run()
    report = ended(app)
    assert report.reason == "start-up failed: startup task 'model'"
    assert [(r.name, r.kind, r.outcome, r.error) for r in report.hooks] == [
        ("model", "task", "failed", "OSError: no such model")
    ]
    assert (report.exit_code, str(report)) == (1, "1 hook failed, exit 1")
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [re.sub(r"\d+\.\d s", "N s", error) for error in errors] == [
        "startup task 'model' failed after N s: OSError: no such model"
    ]


def test_what_a_task_is_failed_with_stays_out_of_the_report(lifecycle: Lifecycle) -> None:
    """The text that ``fail()`` was given is the application's own and may hold a secret: the log has it alone."""
    task = lifecycle.startup_task("model")
    app = started(lifecycle)
    task.fail("hunter2 was refused")
    report = ended(app)
    assert report.hooks[0].error == "fail(): hunter2 was refused"
    assert report.as_dict()["hooks"][0]["error"] == "fail()"


@pytest.mark.parametrize("by_hand", ["before the last task has ended", "afterwards"])
def test_a_failing_task_may_leave_the_process_not_ready(lifecycle: Lifecycle, by_hand: str) -> None:
    """With ``on_failure="not_ready"`` the start-up ends in NOT_READY, which says why, until ``set_ready()``."""
    task, other = lifecycle.startup_task("cache", on_failure="not_ready"), lifecycle.startup_task("other")
    app = started(lifecycle)
    task.fail("cold")
    assert lifecycle.state.name == "STARTING"
    if by_hand == "afterwards":
        other.done()
        assert (lifecycle.state, state_of(app).machine.reason) == (State.NOT_READY, "startup task 'cache' failed")
        assert [app.test_client().get(path).status_code for path in ("/readyz", "/startupz")] == [503, 200]
    lifecycle.set_ready()
    other.done()
    assert lifecycle.state is State.READY
    assert lifecycle.shutdown().clean  # it was a choice, and no flaw of the stop


def test_a_task_that_ends_in_a_forked_child(lifecycle: Lifecycle) -> None:
    """A task of the thread that forks holds the child's readiness too."""
    task = lifecycle.startup_task("model")
    lifecycle.init_app(app := make_app())

    def child() -> int:
        state_of(app).startup.run()
        before = lifecycle.state
        task.done()
        return (before, lifecycle.state) != (State.STARTING, State.READY)

    assert in_child(child) == 0


@pytest.mark.parametrize("then", ["shutdown", "not_ready", "begun anew"])
def test_a_task_that_is_lost_in_a_fork(lifecycle: Lifecycle, then: str, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose thread is left behind fails in the child, unless it is begun anew, and goes on in the parent."""
    on_failure: Any = "shutdown" if then == "begun anew" else then
    tasks: list[Any] = []
    with running(lambda: tasks.append(lifecycle.startup_task("cache", on_failure=on_failure)), "warmer"):
        pass
    parent = os.getpid()

    @lifecycle.on_startup
    def again() -> None:
        if then == "begun anew" and os.getpid() != parent:
            lifecycle.startup_task("cache").done()

    lifecycle.init_app(app := make_app())

    def child() -> int:
        tasks[0].done()  # by whoever: it is lost
        state_of(app).startup.run()
        told = "the thread 'warmer' that began it is not in this process" in caplog.text
        stops = state_of(app).process.shutdown.begun
        ready = lifecycle.state is State.READY
        return (told, stops, ready) != (then != "begun anew", then == "shutdown", then == "begun anew")

    assert in_child(child) == 0
    state_of(app).startup.run()
    tasks[0].done()
    assert lifecycle.state is State.READY


def test_a_task_that_a_signal_handler_ends(lifecycle: Lifecycle) -> None:
    """A handler, or a finalizer, that runs in the middle of a task's end may end another one."""
    task, other = lifecycle.startup_task("a"), lifecycle.startup_task("b")
    started(lifecycle)

    class Interrupted(list[Any]):
        def append(self, failure: Any) -> None:
            super().append(failure)
            other.done()

    lifecycle._registered.tasks.failures = Interrupted()
    task.fail("interrupted")
    assert lifecycle._registered.tasks.items() == ()


def test_a_task_after_the_start_is_refused(lifecycle: Lifecycle) -> None:
    """Nothing leads back to STARTING, so a task that begins too late is an error that names what there is instead."""
    started(lifecycle)
    message = (
        "The startup task 'late' begins when the start-up is over; begin it before, or use set_not_ready() and"
        " set_ready()."
    )
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.startup_task("late")
    assert lifecycle.state.name == "READY"


def test_a_task_that_outlives_the_drain_is_abandoned(lifecycle: Lifecycle) -> None:
    """A task that has not ended at the deadline is told as work that was."""
    lifecycle.startup_task("cache")
    app = started(lifecycle, LIFECYCLE_GRACE_PERIOD=0.2)
    lifecycle.shutdown(wait=False)
    assert [info.name for info in ended(app).work] == ["cache"]


def test_the_last_task_ends_while_the_start_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes last, the task's end or the functions' end, makes the application ready, and once."""
    # start: functions are over | task: leaves, looks: both over, applies STARTED | start: looks, applies it again.
    lifecycle = Lifecycle()
    task = lifecycle.startup_task("cache")
    lifecycle.init_app(app := make_app())
    state, changes = state_of(app), list[State]()
    check = state.startup.check_tasks

    def check_late() -> None:
        monkeypatch.setattr(state.startup, "check_tasks", check)
        task.done()
        changes.append(lifecycle.state)
        check()

    monkeypatch.setattr(state.startup, "check_tasks", check_late)
    state.startup.run()
    assert changes == [State.READY]
    assert lifecycle.state.name == "READY"
    # task: leaves, looks: the functions are not over | start: functions are over, looks: both over.
    lifecycle = Lifecycle()
    task = lifecycle.startup_task("cache")
    lifecycle.on_startup(name="ends the task")(task.done)
    app = started(lifecycle)
    assert lifecycle.state.name == "READY"


def test_a_task_begins_while_the_start_ends(lifecycle: Lifecycle) -> None:
    """A task that begins when the start-up has just found none is refused, and not overlooked."""
    # start: finds no task | begin: wants the lock | start: closes, lets go of the lock | begin: is refused.
    lock, wanted, errors = threading.Lock(), threading.Event(), list[str]()

    class Announcing:
        def __enter__(self) -> None:
            if lock.locked():
                wanted.set()
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    def begin() -> None:
        try:
            lifecycle.startup_task("late")
        except RuntimeError as error:
            errors.append(str(error))

    class Dict(dict[Any, None]):
        def __bool__(self) -> bool:
            if lock.locked() and late.ident is None:
                late.start()
                assert wanted.wait(BOUND)
            return len(self) > 0

    late = threading.Thread(target=begin)
    tasks = lifecycle._registered.tasks
    tasks._lock, tasks.active = Announcing(), Dict()  # type: ignore[assignment]  # a lock that says who waits
    started(lifecycle)
    late.join(BOUND)
    assert lifecycle.state is State.READY
    assert [error.partition(";")[0] for error in errors] == ["The startup task 'late' begins when the start-up is over"]


def test_a_start_that_hangs_is_not_silent(
    lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the start-up goes on the log says again and again what it waits for, function and tasks."""
    monkeypatch.setattr(startup, "STILL_STARTING", 0.01)
    free = threading.Event()
    lifecycle.on_startup(name="migrate")(lambda: free.wait(BOUND))
    task = lifecycle.startup_task("cache")
    lifecycle.init_app(app := make_app())
    state = state_of(app)

    def said(what: str) -> bool:
        return any(r.getMessage().endswith(f"waiting for {what}") for r in caplog.records)

    with running(state.startup._log_waiting), running(state.startup.run):
        until(lambda: said("on_startup 'migrate', startup task 'cache'"))
        free.set()
        until(lambda: said("startup task 'cache'"))
        task.done()
    assert lifecycle.state.name == "READY"
    assert {r.levelname for r in caplog.records if "waiting for" in r.getMessage()} == {"WARNING"}


@pytest.mark.parametrize("end", ["ready", "shutdown"])
def test_wait_ready(lifecycle: Lifecycle, end: str) -> None:
    """``wait_ready`` comes back when the application is ready, or cannot be any more, or when its time is over."""
    task = lifecycle.startup_task("cache")
    app = started(lifecycle)
    for timeout in (0, 0.01, float("nan")):
        assert lifecycle.wait_ready(timeout) is False
    seen = []
    with running(lambda: seen.append(lifecycle.wait_ready())):
        if end == "ready":
            task.done()
        else:
            lifecycle.shutdown(wait=False)
    assert seen == [end == "ready"]
    assert lifecycle.wait_ready(0) is (end == "ready")
    task.done()
    if end == "shutdown":
        ended(app)


WAITS_FOR_ITSELF = (
    "wait_ready() was called by a hook or a startup task, which readiness waits for; use a thread of its own."
)


def test_wait_ready_where_readiness_waits_is_refused() -> None:
    """A start-up function or task that waits for ready would wait for itself; beside the task one may wait."""
    lifecycle = Lifecycle()
    lifecycle.on_startup(name="waits for itself")(lambda: lifecycle.wait_ready())
    (record,) = ended(started(lifecycle)).hooks
    assert record.error == f"RuntimeError: {WAITS_FOR_ITSELF}"
    lifecycle = Lifecycle()
    task = lifecycle.startup_task("cache")
    started(lifecycle)
    assert not lifecycle.wait_ready(0.0)
    with task, pytest.raises(RuntimeError, match=whole(WAITS_FOR_ITSELF)):
        lifecycle.wait_ready()
    assert lifecycle.wait_ready(BOUND)


def test_resources_are_opened_in_order_and_closed_in_reverse() -> None:
    """Generator functions, context managers and what returns them are opened at the start, and closed at the end."""
    lifecycle, course = Lifecycle(), list[str]()

    @lifecycle.resource
    def engine() -> Iterator[str]:
        course.append("open engine")
        yield "the engine"
        course.append("close engine")

    class Pool:
        def __enter__(self) -> Pool:
            course.append("open pool")
            return self

        def __exit__(self, *exc_info: object) -> None:
            course.append("close pool")

    pool = lifecycle.resource(name="pool")(Pool)
    instance = lifecycle.resource(name="instance")(Pool())
    started(lifecycle)
    assert (engine.value, type(pool.value), type(instance.value)) == ("the engine", Pool, Pool)
    lifecycle.on_shutdown(name="last")(lambda: course.append("last registered"))
    assert lifecycle.shutdown().clean
    assert course == [
        "open engine", "open pool", "open pool", "last registered", "close pool", "close pool", "close engine",
    ]  # fmt: skip
    message = "The resource 'engine' is not open; it is, from the start-up to the end of the drain."
    with pytest.raises(RuntimeError, match=whole(message)):
        _ = engine.value


def test_what_did_not_open_is_not_closed() -> None:
    """Where the start-up fails, what was opened is closed, and neither what failed nor what came behind it."""
    lifecycle, course = Lifecycle(), list[str]()

    def resource(name: str, fails: bool = False) -> Any:
        def opened() -> Iterator[None]:
            course.append(f"open {name}")
            if fails:
                raise ConnectionError(name)
            yield
            course.append(f"close {name}")

        return lifecycle.resource(name=name)(opened)

    resource("first"), resource("second", fails=True), resource("third")
    report = ended(started(lifecycle))
    assert course == ["open first", "open second", "close first"]
    assert [(r.name, r.kind, r.outcome) for r in report.hooks] == [
        ("first", "startup", "ok"),
        ("second", "startup", "failed"),
        ("third", "shutdown", "skipped"),
        ("second", "shutdown", "skipped"),
        ("first", "shutdown", "ok"),
    ]
    assert report.exit_code == 1


@pytest.mark.parametrize("in_time", [True, False])
def test_a_resource_that_opens_after_its_timeout_is_closed(lifecycle: Lifecycle, in_time: bool) -> None:
    """What the start-up has given up is closed by the shutdown, or, if it opens after that, by whoever opens it."""
    go, course, closed = threading.Event(), list[str](), threading.Event()

    @lifecycle.resource(timeout=0.01)
    def slow() -> Iterator[None]:
        go.wait(BOUND)
        course.append("open")
        yield
        course.append("closed")
        closed.set()

    @lifecycle.on_drain
    def let_it_open() -> None:
        if in_time:
            go.set()
            until(lambda: bool(slow._open))

    report = ended(started(lifecycle))
    outcomes = [("slow", "hung"), ("let_it_open", "ok"), ("slow", "ok" if in_time else "skipped")]
    assert [(record.name, record.outcome) for record in report.hooks] == outcomes
    go.set()
    assert closed.wait(BOUND)
    assert course == ["open", "closed"]
    slow.close()  # it has been closed, and that is that


def test_a_skipped_function_does_not_spoil_a_stop(lifecycle: Lifecycle, caplog: pytest.LogCaptureFixture) -> None:
    """A process that is stopped before it has started skips what it has not opened, runs the rest, and is clean."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    lifecycle.on_startup(name="pool")(lambda: None)
    for name in ("pool", "other"):
        lifecycle.on_shutdown(name=name)(lambda: None)
    lifecycle.init_app(app := make_app())
    report = lifecycle.shutdown()
    assert state_of(app).process.shutdown.report is report  # and the application lives until then
    assert [(r.name, r.outcome) for r in report.hooks] == [("other", "ok"), ("pool", "skipped")]
    assert "on_shutdown 'pool' skipped: its start did not succeed" in caplog.messages
    assert (report.clean, report.exit_code) == (True, 0)


def test_a_resource_that_fails(lifecycle: Lifecycle) -> None:
    """What a resource raises while it closes, or gives instead of a context manager, is told as a failed hook."""

    @lifecycle.resource(close_timeout=5.0)
    def pool() -> Iterator[None]:
        yield
        raise OSError("cannot close")

    @lifecycle.resource
    def number() -> int:
        return 5

    error = "TypeError: The resource 'number' gave 5, which is not a context manager; yield once, or return one."
    assert [(r.name, r.kind, r.outcome, r.error) for r in ended(started(lifecycle)).hooks] == [
        ("pool", "startup", "ok", ""),
        ("number", "startup", "failed", error),
        ("number", "shutdown", "skipped", ""),
        ("pool", "shutdown", "failed", "OSError: cannot close"),
    ]
