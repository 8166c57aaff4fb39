"""The extension: what users hold in their hands."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_lifecycle import Check, Lifecycle, RequestInfo, ShutdownReport, State, state_changed
from flask_lifecycle._core.feature import Feature
from tests._fakes import BOUND, SELF_WAIT, finish, make_app, run_python, running, state_of, until, whole


def serve(**config: Any) -> tuple[Flask, Lifecycle]:
    """A testing application with a Lifecycle."""
    app = make_app(**config)
    return app, Lifecycle(app)


def get(app: Flask, path: str = "/work", **arguments: Any) -> TestResponse:
    return app.test_client().open(path, buffered=True, **arguments)


def test_the_extension_keeps_no_application_alive() -> None:
    """An application that nobody else holds goes, although its Lifecycle and the process knew it."""
    lifecycle = Lifecycle()

    def make() -> weakref.ref[Flask]:
        app = make_app()
        lifecycle.init_app(app)
        return weakref.ref(app)

    gone = make()
    gc.collect()
    assert gone() is None


def test_registered_before_or_after_init_app() -> None:
    """Checks and hooks hold for the application whether they were registered before or after init_app."""
    lifecycle, ran = Lifecycle(), list[str]()
    lifecycle.check("early")(lambda: ran.append("early check"))
    lifecycle.on_shutdown(name="early")(lambda: ran.append("early hook"))
    app = make_app()
    lifecycle.init_app(app)
    lifecycle.check("late")(lambda: ran.append("late check"))
    lifecycle.on_shutdown(name="late")(lambda: ran.append("late hook"))
    assert get(app, "/readyz").status_code == 200
    assert sorted(ran) == ["early check", "late check"]
    lifecycle.shutdown()
    assert ran[2:] == ["late hook", "early hook"]


def test_decorators_return_the_function() -> None:
    """A decorated function is still the function, with or without arguments."""
    lifecycle = Lifecycle()

    def function() -> None: ...

    assert lifecycle.check(function) is function
    assert lifecycle.check("named", timeout=1, critical=False, groups=("live",))(function) is function
    assert lifecycle.check(name="keyword")(function) is function
    for register in (lifecycle.on_startup, lifecycle.on_drain, lifecycle.on_shutdown):
        assert register(function) is function
        assert register(name="named", timeout=1.0)(function) is function
    checks = {check.name: check for check in lifecycle._registered.checks.checks()}
    assert checks["named"] == Check("named", function, timeout=1, critical=False, groups=("live",))
    assert checks["function"] == Check("function", function)


def test_work_waits_for_the_start_up_and_probes_do_not(free: threading.Event) -> None:
    """A probe that comes first begins the start-up and tells the truth meanwhile; requests wait until it is over."""
    app, lifecycle = serve()
    codes, ran = list[int](), list[bool]()
    lifecycle.on_startup(name="slow")(lambda: ran.append(free.wait(BOUND)))
    assert [get(app, path).status_code for path in ("/readyz", "/startupz", "/livez")] == [503, 503, 200]
    with running(lambda: codes.append(get(app).status_code)), running(lambda: codes.append(get(app).status_code)):
        until(lambda: lifecycle.in_flight == 2)
        assert codes == []
        free.set()
    assert (codes, ran) == ([200, 200], [True])
    until(lambda: get(app, "/readyz").status_code == 200)


def test_under_run_work_waits_and_probes_do_not(free: threading.Event) -> None:
    """Where run() is in charge it runs the start-up: a request waits for it, a probe neither waits nor begins it."""
    app, lifecycle = serve()
    state_of(app).process.owner = "run"
    ran, codes = list[str](), list[int]()
    lifecycle.on_startup(name="s")(lambda: ran.append("s"))
    assert get(app, "/readyz").status_code == 503
    with running(lambda: codes.append(get(app).status_code)):
        until(lambda: lifecycle.in_flight == 1)
        assert (ran, codes) == ([], [])
        state_of(app).startup.run()
    assert (ran, codes) == (["s"], [200])
    state_of(app).startup.run()
    assert ran == ["s"]


def test_a_shutdown_overtakes_the_end_of_the_start_up(free: threading.Event) -> None:
    """A shutdown that begins while the start-up is ending wins: nobody sees an error, and the work is refused."""
    # shutdown: the guard is there, and requests are let on to it; the state is DRAINING, its receivers are told |
    # request: it is refused; the start-up is over, but nothing leads from DRAINING to READY | shutdown: its receivers
    # are through
    app, lifecycle = serve()
    begun, changes = threading.Event(), list[State]()

    def hold(sender: Flask, *, old: State, new: State, reason: str) -> None:
        changes.append(new)
        begun.set()
        assert free.wait(BOUND)

    @lifecycle.on_startup
    def stops() -> None:
        lifecycle.shutdown("quicker", wait=False)
        assert begun.wait(BOUND)

    with state_changed.connected_to(hold, sender=app):
        assert get(app).status_code == 503
        assert begun.wait(BOUND)
        assert changes == [State.DRAINING]
        free.set()
        report = lifecycle.shutdown()
        finish(state_of(app).process.shutdown)
    assert (report.reason, report.clean) == ("quicker", True)
    assert changes == [State.DRAINING, State.STOPPING, State.STOPPED]


def test_state_changed_is_sent_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    """Each change of state is sent and logged once, the last two for debugging; a raising receiver stops nobody."""
    caplog.set_level(logging.DEBUG, "flask_lifecycle")
    app, lifecycle = serve()
    heard: list[tuple[State, State, str]] = []

    def receiver(sender: Flask, *, old: State, new: State, reason: str) -> None:
        assert sender is app
        heard.append((old, new, reason))

    def raises(sender: Flask, **_arguments: Any) -> None:
        raise ValueError("deaf")

    with state_changed.connected_to(raises), state_changed.connected_to(receiver, sender=app):
        get(app)
        lifecycle.set_not_ready("maintenance")
        lifecycle.set_not_ready("maintenance")
        lifecycle.set_ready()
        lifecycle.shutdown("over")
        lifecycle.shutdown("again")
        finish(state_of(app).process.shutdown)
    assert heard == [
        (State.STARTING, State.READY, "started"),
        (State.READY, State.NOT_READY, "maintenance"),
        (State.NOT_READY, State.READY, "set_ready()"),
        (State.READY, State.DRAINING, "over"),
        (State.DRAINING, State.STOPPING, "over"),
        (State.STOPPING, State.STOPPED, "over"),
    ]
    logged = [record for record in caplog.records if record.getMessage().startswith("state ")]
    assert [(record.levelname, record.getMessage()) for record in logged] == [
        ("INFO", "state STARTING -> READY"),
        ("INFO", "state READY -> NOT_READY: maintenance"),
        ("INFO", "state NOT_READY -> READY"),
        ("INFO", "state READY -> DRAINING"),
        ("DEBUG", "state DRAINING -> STOPPING"),
        ("DEBUG", "state STOPPING -> STOPPED"),
    ]
    fields = [(record.__dict__["lifecycle_state"], record.__dict__["lifecycle_reason"]) for record in logged]
    assert fields == [(new.name, reason) for _old, new, reason in heard]


def test_every_caller_gets_the_same_report() -> None:
    """Two callers of shutdown(), and one that comes later, get the same report."""
    app, lifecycle = serve()
    get(app)
    barrier, reports = threading.Barrier(2, timeout=BOUND), list[ShutdownReport]()

    def stop() -> None:
        barrier.wait()
        reports.append(lifecycle.shutdown(threading.current_thread().name))

    with running(stop, "one"), running(stop, "two"):
        pass
    reports.append(lifecycle.shutdown("late"))
    assert reports[0] is reports[1] is reports[2]
    assert reports[0].reason in ("one", "two")


@pytest.mark.parametrize("way", ["request", "startup", "drain", "shutdown", "block", "decorator", "submitted", "task"])
def test_a_shutdown_that_would_wait_for_itself(way: str) -> None:
    """Where a shutdown waits for a request, hook or work item, waiting for it there is an error that names the cure."""
    app, lifecycle = serve()
    errors: list[str] = []

    @app.get("/stop")
    def stop() -> str:
        with pytest.raises(RuntimeError, match=whole(SELF_WAIT)) as caught:
            lifecycle.shutdown()
        errors.append(str(caught.value))
        return ""

    if way in ("startup", "drain", "shutdown"):
        getattr(lifecycle, f"on_{way}")(stop)
        get(app)
    elif way == "request":
        get(app, "/stop")
    elif way == "submitted":
        with ThreadPoolExecutor(1) as executor:
            lifecycle.submit(executor, stop).result(BOUND)
    elif way == "decorator":
        lifecycle.work("job")(stop)()
    else:
        with lifecycle.work("job") if way == "block" else lifecycle.startup_task("job"):
            stop()
    assert not state_of(app).process.shutdown.begun
    item = lifecycle.work("job")
    with running(item.done):
        assert lifecycle.shutdown().clean  # it is another thread that ends it
    assert errors == [SELF_WAIT]


def test_a_request_sees_itself_in_flight() -> None:
    """It has method, path, route and thread, but not the address of its client; it may ask for the shutdown."""
    app, lifecycle = serve()
    seen: list[RequestInfo] = []

    @app.post("/seen")
    def see() -> str:
        seen.extend(lifecycle.requests())
        assert lifecycle.shutdown("asked", wait=False) is None
        return ""

    assert get(app, "/seen?x=1", method="POST").status_code == 200
    thread = threading.current_thread().name
    assert seen == [RequestInfo("POST", "/seen", seen[0].age, thread, "running", route="/seen", remote="")]
    report = lifecycle.shutdown()
    assert (report.reason, report.clean, lifecycle.in_flight) == ("asked", True, 0)


def test_two_applications_with_one_lifecycle() -> None:
    """One Lifecycle may serve several applications, each asked inside its own context; a single one anywhere."""
    lifecycle = Lifecycle()
    apps = [make_app(), make_app(LIFECYCLE_READY="manual")]
    lifecycle.init_app(apps[0])
    with make_app().app_context():
        assert lifecycle.state is State.STARTING
    lifecycle.init_app(apps[1])
    states = []
    for app in apps:
        get(app)
        with app.app_context():
            states.append(lifecycle.state)
    assert states == [State.READY, State.NOT_READY]
    message = "This Lifecycle has several applications; use it inside the application context of one."
    with pytest.raises(RuntimeError, match=whole(message)):
        _ = lifecycle.state
    with make_app().app_context(), pytest.raises(RuntimeError, match=whole(message)):
        _ = lifecycle.in_flight


TWO_APPS = """
from flask import Flask, current_app
from flask_lifecycle import Lifecycle
lifecycle = Lifecycle()
def say(what):
    print(what, current_app.name, flush=True)
lifecycle.on_startup(name="start")(lambda: say("start"))
lifecycle.on_shutdown(name="stop")(lambda: say("stop"))
@lifecycle.resource
def pool():
    yield f"pool of {current_app.name}"
    say("close")
apps = [Flask("one"), Flask("two")]
for app in apps:
    app.config["LIFECYCLE_SHUTDOWN_DELAY"] = 0
    lifecycle.init_app(app)
    app.test_client().get("/", buffered=True)
    with app.app_context():
        assert pool.value == f"pool of {app.name}"
try:
    pool.value
except RuntimeError as error:
    print(error)
with apps[0].app_context():
    report = lifecycle.shutdown("both")
for app in apps:
    with app.app_context():
        assert lifecycle.state.name == "STOPPED", lifecycle.state
assert report.clean
"""


def test_applications_with_one_lifecycle_start_and_stop_each() -> None:
    """Hooks of a Lifecycle that applications share run for each of them, in its context, and so do its resources."""
    done = run_python(TWO_APPS)
    assert done.stdout.splitlines() == [
        "start one", "start two",
        "The resource 'pool' is open for several applications; use it inside the application context of one.",
        "close two", "stop two", "close one", "stop one",
    ], done.stderr  # fmt: skip


IN_A_THREAD = """
import threading, logging, signal
from flask import Flask
from flask_lifecycle import Lifecycle
logging.basicConfig(format="%(levelname)s %(message)s")
before = signal.getsignal(signal.SIGTERM)
for testing in (False, True):
    app = Flask("x")
    app.testing = testing
    thread = threading.Thread(target=lambda: Lifecycle(app))
    thread.start()
    thread.join()
assert signal.getsignal(signal.SIGTERM) == before
"""


def test_init_app_in_a_thread_warns_once() -> None:
    """Off the main thread no handler can be installed: one warning, but for testing, says what to call instead."""
    done = run_python(IN_A_THREAD)
    assert (done.returncode, done.stderr) == (
        0,
        "WARNING init_app was called outside the main thread, where no signal handler can be installed;"
        " call lifecycle.shutdown() when the process is to stop.\n",
    )


TAKEN = """
import signal
from flask import Flask
from flask_lifecycle import Lifecycle
numbers = sorted(set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
for config in ({"TESTING": True}, {"LIFECYCLE_SIGNALS": []}, {"LIFECYCLE_SIGNALS": ["SIGUSR1", "HUP"]}, {}):
    before = {n: signal.getsignal(n) for n in numbers}
    app = Flask("x")
    app.config.update(config)
    Lifecycle(app)
    print(*(n.name for n in numbers if signal.getsignal(n) != before[n]))
"""


def test_which_signals_are_taken() -> None:
    """init_app takes SIGTERM, or what LIFECYCLE_SIGNALS says, and with the first SIGURG; in testing mode none."""
    done = run_python(TAKEN)
    assert (done.stdout.splitlines(), done.stderr) == (["", "", "SIGHUP SIGUSR1 SIGURG", "SIGTERM"], "")


def test_the_probe_listener_is_opened_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever opens the probe listener a second time finds it open; closing it twice is harmless as well."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    app, lifecycle = serve(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=0)
    state = state_of(app)
    assert lifecycle.probe_address is None
    for _ in range(2):
        state.open()
    assert lifecycle.probe_address is not None
    host, port = lifecycle.probe_address
    assert f"probe listener on http://{host}:{port}" in caplog.messages
    for _ in range(2):
        state.end()
    assert lifecycle.probe_address is None
    assert len([record for record in caplog.records if "probe listener on" in record.getMessage()]) == 1


def test_a_feature_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A feature that fails is logged by name, and the others go on."""
    app = make_app()
    Lifecycle(app)
    state, told = state_of(app), list[State]()

    class Broken(Feature):
        def state_changed(self, new: State, reason: str) -> None:
            raise ValueError("broken")

    class Sound(Feature):
        def state_changed(self, new: State, reason: str) -> None:
            told.append(new)

    state.features |= {"broken": Broken(state), "sound": Sound(state)}
    state.startup.run()
    assert told == [State.READY]
    assert "broken failed" in caplog.messages
