"""The extension: what users hold in their hands."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from flask import Flask, current_app
from werkzeug.test import TestResponse

from flask_lifecycle import Check, Lifecycle, ShutdownContext, ShutdownReport, State, _extension, state_changed
from flask_lifecycle._app import Application
from flask_lifecycle._core.feature import Feature
from flask_lifecycle._core.process import Process
from flask_lifecycle._core.shutdown import StopRequest
from flask_lifecycle._servers.serving import Serving, this_process
from tests._fakes import BOUND, ManualClock, finish, make_app, run_python, running, state_of, until, use_clock, whole

SELF_WAIT = (
    "shutdown() was called in a thread that the shutdown itself waits for (a request, a hook, a work item or the"
    " server's loop); call shutdown(wait=False) there."
)


def serve(**config: Any) -> tuple[Flask, Lifecycle]:
    """A testing application with a Lifecycle."""
    app = make_app(**config)
    return app, Lifecycle(app)


def get(app: Flask, path: str = "/work", **arguments: Any) -> TestResponse:
    return app.test_client().open(path, buffered=True, **arguments)


# -- the shape of an extension ------------------------------------------------------------------------------------


def test_both_ways_to_begin() -> None:
    """Lifecycle(app) and init_app in a factory come to the same."""
    one, two = make_app(), make_app()
    Lifecycle(one)
    Lifecycle().init_app(two)
    for app in (one, two):
        assert isinstance(app.extensions["lifecycle"], Application)
        assert get(app, "/readyz").status_code == 200
        assert "lifecycle" in app.cli.commands
        assert "lifecycle" in app.blueprints


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


def test_a_testing_application_shares_no_process() -> None:
    """An application in testing mode has a process of its own, which never touches a signal."""
    app, _lifecycle = serve()
    process = state_of(app).process
    assert process is not this_process
    assert not process.signals
    assert process.relay.installed == frozenset()
    assert this_process.applications() == []
    assert this_process.relay.installed == frozenset()


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


def test_add_check_of_an_object() -> None:
    """Any callable object that has some of a check's attributes is one."""
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")

    class Ping:
        name = "ping"
        critical = False

        def __call__(self) -> dict[str, int]:
            return {"ms": 3}

    lifecycle.add_check(Ping())
    response = get(app, "/readyz")
    assert response.json is not None
    assert response.json["checks"]["ping"][0]["observed"] == {"ms": 3}


def test_checks_run_in_the_application_context() -> None:
    """A check sees current_app."""
    app, lifecycle = serve()
    seen: list[Any] = []
    lifecycle.check("app")(lambda: seen.append(current_app._get_current_object()))  # type: ignore[attr-defined]
    get(app, "/readyz")
    assert seen == [app]


def test_hooks_of_every_sort() -> None:
    """Partials, callable objects and functions with or without the context are hooks, and see current_app."""
    app, lifecycle = serve()
    seen: list[Any] = []

    class Closes:
        def __call__(self, context: ShutdownContext) -> None:
            seen.append(("object", context.reason, current_app.name))

    def two(word: str, context: ShutdownContext) -> None:
        seen.append((word, context.reason))

    lifecycle.on_shutdown(Closes())
    lifecycle.on_shutdown(functools.partial(two, "partial"))
    lifecycle.on_shutdown(name="plain")(lambda: seen.append("plain"))
    lifecycle.shutdown("reason")
    assert seen == ["plain", ("partial", "reason"), ("object", "reason", app.name)]


# -- the start-up -------------------------------------------------------------------------------------------------


def test_ready_before_the_first_request_is_served() -> None:
    """Without run() the start-up runs before the first request is served, once and in order."""
    app, lifecycle = serve()
    ran: list[str] = []
    for name in ("one", "two"):
        lifecycle.on_startup(name=name)(functools.partial(ran.append, name))
    assert lifecycle.state is State.STARTING
    assert (get(app).status_code, ran, lifecycle.state) == (200, ["one", "two"], State.READY)
    get(app)
    assert ran == ["one", "two"]


def test_a_probe_begins_the_start_up_but_does_not_wait(free: threading.Event) -> None:
    """A probe that comes first begins the start-up and tells the truth meanwhile: starting."""
    app, lifecycle = serve()
    ended = threading.Event()

    @lifecycle.on_startup
    def slow() -> None:
        assert free.wait(BOUND)
        ended.set()

    assert get(app, "/readyz").status_code == 503
    assert get(app, "/startupz").status_code == 503
    assert get(app, "/livez").status_code == 200
    free.set()
    assert ended.wait(BOUND)
    until(lambda: get(app, "/readyz").status_code == 200)


@pytest.fixture
def free() -> Iterator[threading.Event]:
    """What hanging functions of a test wait for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_failing_start_up_shuts_down(caplog: pytest.LogCaptureFixture) -> None:
    """An on_startup function that raises shuts the process down with exit code 1, and the work is refused."""
    app, lifecycle = serve()
    torn_down: list[str] = []

    @lifecycle.on_startup
    def connect() -> None:
        raise ConnectionError("no database")

    lifecycle.on_shutdown(name="hook")(lambda: torn_down.append("hook"))
    assert get(app).status_code == 503
    report = lifecycle.shutdown()
    assert report.reason == "start-up failed: on_startup 'connect'"
    assert [(hook.name, hook.kind, hook.outcome) for hook in report.hooks] == [
        ("connect", "startup", "failed"),
        ("hook", "shutdown", "ok"),
    ]
    assert (report.exit_code, torn_down) == (1, ["hook"])
    assert get(app, "/readyz").status_code == 503


def test_a_second_request_waits_for_the_start_up(free: threading.Event) -> None:
    """A request that comes while another runs the start-up is held until it is over."""
    app, lifecycle = serve()
    entered, codes = threading.Event(), list[int]()

    @lifecycle.on_startup
    def slow() -> None:
        entered.set()
        assert free.wait(BOUND)

    with running(lambda: codes.append(get(app).status_code)):
        assert entered.wait(BOUND)
        with running(lambda: codes.append(get(app).status_code)):
            until(lambda: lifecycle.in_flight == 2)
            assert codes == []
            free.set()
    assert codes == [200, 200]


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


def test_a_shutdown_during_the_start_up() -> None:
    """A shutdown that is quicker than the start-up wins: the application never is ready, and the work is refused."""
    app, lifecycle = serve()

    @lifecycle.on_startup
    def stops() -> None:
        lifecycle.shutdown("impatient", wait=False)
        assert lifecycle.draining.wait(BOUND)

    changes: list[State] = []
    receive = functools.partial(note, changes)
    with state_changed.connected_to(receive, sender=app):
        assert get(app).status_code == 503
        assert lifecycle.shutdown().reason == "impatient"
        finish(state_of(app).process.shutdown)
    assert changes == [State.DRAINING, State.STOPPING, State.STOPPED]


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


def note(changes: list[State], sender: Flask, *, old: State, new: State, reason: str) -> None:
    changes.append(new)


# -- readiness by hand --------------------------------------------------------------------------------------------


def test_set_ready_before_the_start_is_remembered() -> None:
    """set_ready() and set_not_ready() before the start are no errors: the start leads to what was wished last."""
    app, lifecycle = serve(LIFECYCLE_READY="manual")
    lifecycle.set_ready()
    before = lifecycle.state
    get(app)
    assert (before, lifecycle.state) == (State.STARTING, State.READY)
    other, second = serve()
    second.set_not_ready("warming up")
    get(other)
    assert (second.state, get(other).status_code) == (State.NOT_READY, 200)


def test_manual_readiness() -> None:
    """With LIFECYCLE_READY manual the application is ready only after set_ready()."""
    app, lifecycle = serve(LIFECYCLE_READY="manual")
    assert get(app).status_code == 200
    assert (lifecycle.state, get(app, "/readyz").status_code) == (State.NOT_READY, 503)
    lifecycle.set_ready()
    assert (lifecycle.state, get(app, "/readyz").status_code) == (State.READY, 200)


def test_readiness_is_refused_once_draining() -> None:
    """From the drain on nothing leads back: readiness by hand is refused and changes nothing."""
    app, lifecycle = serve()
    get(app)
    lifecycle.shutdown()
    message = "'set_ready' cannot happen in state STOPPED; a drain is one-way, start a new process instead."
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.set_ready()
    message = (
        "'set_not_ready' cannot happen in state STOPPED;"
        " a drain is one-way and already answers readiness probes with 503."
    )
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.set_not_ready()
    assert lifecycle.state is State.STOPPED


def test_state_changed_is_sent_once_for_each_change() -> None:
    """Each change of state is sent once, with the application as its sender; a raising receiver stops nobody."""
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


# -- stopping -----------------------------------------------------------------------------------------------------


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


def test_shutdown_without_waiting() -> None:
    """shutdown(wait=False) returns None at once; the shutdown goes on beside."""
    app, lifecycle = serve()
    entered, go_on = threading.Event(), threading.Event()

    @lifecycle.on_shutdown
    def slow() -> None:
        entered.set()
        assert go_on.wait(BOUND)

    get(app)
    assert lifecycle.shutdown("beside", wait=False) is None
    assert entered.wait(BOUND)
    assert lifecycle.state is State.STOPPING
    go_on.set()
    assert lifecycle.shutdown().reason == "beside"


def test_shutdown_in_a_request() -> None:
    """Waiting for the shutdown in a request, which it waits for, is an error that names the cure; wait=False works."""
    app, lifecycle = serve()

    @app.get("/stop-and-wait")
    def stop_and_wait() -> str:
        lifecycle.shutdown()
        return "never"

    @app.get("/stop")
    def stop() -> str:
        assert lifecycle.shutdown("asked", wait=False) is None
        return "stopping"

    with pytest.raises(RuntimeError, match=whole(SELF_WAIT)):
        get(app, "/stop-and-wait")
    assert lifecycle.state is State.READY
    assert get(app, "/stop").text == "stopping"
    report = lifecycle.shutdown()
    assert (report.reason, report.clean) == ("asked", True)


@pytest.mark.parametrize("kind", ["startup", "drain", "shutdown"])
def test_shutdown_in_a_hook(kind: str) -> None:
    """Waiting for the shutdown in a hook, which it waits for, is the same error."""
    app, lifecycle = serve()
    errors: list[str] = []

    @getattr(lifecycle, f"on_{kind}")  # type: ignore[untyped-decorator]
    def hook() -> None:
        with pytest.raises(RuntimeError, match=whole(SELF_WAIT)) as caught:
            lifecycle.shutdown()
        errors.append(str(caught.value))

    get(app)
    lifecycle.shutdown()
    assert errors == [SELF_WAIT]


def test_draining_and_remaining() -> None:
    """``draining`` is set from the announcement on and wakes who waits; ``remaining`` is None before."""
    clock = ManualClock()
    app, lifecycle = serve(LIFECYCLE_GRACE_PERIOD=8.0)
    shutdown = use_clock(app, clock)
    draining = lifecycle.draining
    get(app)
    assert (draining.is_set(), draining.wait(0.0), lifecycle.remaining()) == (False, False, None)
    woken: list[bool] = []
    with running(lambda: woken.append(draining.wait())):
        shutdown.begin(StopRequest("test"))
    finish(shutdown)
    assert (woken, draining.is_set(), lifecycle.remaining()) == ([True], True, 8.0)
    clock.advance(3.0)
    assert lifecycle.remaining() == 5.0


def test_a_stream_ends_when_the_drain_begins() -> None:
    """A stream that waits on ``draining`` ends by itself, and the shutdown is clean."""
    app, lifecycle = serve()

    @app.get("/stream")
    def stream() -> Iterator[str]:
        draining = lifecycle.draining

        def chunks() -> Iterator[str]:
            yield "begun"
            assert draining.wait(BOUND)
            yield "ended"

        return chunks()

    got: list[str] = []
    with running(lambda: got.append(get(app, "/stream").text)):
        until(lambda: lifecycle.in_flight == 1)
        assert lifecycle.shutdown().clean
    assert got == ["begunended"]


def test_in_flight_and_requests() -> None:
    """A request sees itself in flight, with method, path and thread."""
    app, lifecycle = serve()
    seen: list[Any] = []

    @app.post("/seen")
    def see() -> str:
        seen.extend((lifecycle.in_flight, lifecycle.requests()))
        return ""

    get(app, "/seen?x=1", method="POST")
    assert seen[0] == 1
    [info] = seen[1]
    assert (info.method, info.path, info.thread, info.stage) == (
        "POST",
        "/seen",
        threading.current_thread().name,
        "running",
    )
    assert (lifecycle.in_flight, lifecycle.requests()) == (0, ())


def test_an_abandoned_request_is_in_the_report(free: threading.Event) -> None:
    """A request that is longer than the grace period is named in the report, and the exit code is 1."""
    app, lifecycle = serve(LIFECYCLE_GRACE_PERIOD=0.2, LIFECYCLE_HOOK_RESERVE=0.1)
    ran: list[str] = []
    lifecycle.on_shutdown(name="hook")(lambda: ran.append("hook"))

    @app.get("/slow")
    def slow() -> str:
        assert free.wait(BOUND)
        return "late"

    with running(lambda: get(app, "/slow")):
        until(lambda: lifecycle.in_flight == 1)
        report = lifecycle.shutdown()
        free.set()
    assert [(info.method, info.path) for info in report.abandoned] == [("GET", "/slow")]
    assert (report.exit_code, ran) == (1, ["hook"])


# -- several applications -----------------------------------------------------------------------------------------


def test_two_applications_with_one_lifecycle() -> None:
    """One Lifecycle may serve several applications; each is asked for inside its own context."""
    lifecycle = Lifecycle()
    apps = [make_app(), make_app(LIFECYCLE_READY="manual")]
    for app in apps:
        lifecycle.init_app(app)
        get(app)
    states = []
    for app in apps:
        with app.app_context():
            states.append(lifecycle.state)
    assert states == [State.READY, State.NOT_READY]
    message = "This Lifecycle has several applications; use it inside the application context of one."
    with pytest.raises(RuntimeError, match=whole(message)):
        _ = lifecycle.state
    with make_app().app_context(), pytest.raises(RuntimeError, match=whole(message)):
        _ = lifecycle.in_flight


def test_applications_with_one_lifecycle_start_and_stop_each() -> None:
    """Hooks of a Lifecycle that applications share run for each of them, in its context, and so do its resources."""
    lifecycle, ran = Lifecycle(), list[str]()
    lifecycle.on_startup(name="start")(lambda: ran.append(f"start {current_app.name}"))
    lifecycle.on_drain(name="drain")(lambda: ran.append(f"drain {current_app.name}"))
    lifecycle.on_shutdown(name="stop")(lambda: ran.append(f"stop {current_app.name}"))

    @lifecycle.resource
    def pool() -> Iterator[str]:
        yield f"pool of {current_app.name}"
        ran.append(f"close {current_app.name}")

    serving = Serving(Process(signals=False))
    apps = [Flask(name) for name in ("one", "two")]
    for app in apps:
        app.config["LIFECYCLE_GRACE_PERIOD"] = 20.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_extension, "this_serving", serving)
            lifecycle.init_app(app)
    for app in apps:
        app.test_client().get("/", buffered=True)
        with app.app_context():
            assert pool.value == f"pool of {app.name}"
    with pytest.raises(RuntimeError, match="is open for several applications; use it inside the application context"):
        _ = pool.value
    with apps[0].app_context():
        report = lifecycle.shutdown()
    assert ran[:2] == ["start one", "start two"]
    assert sorted(ran[2:4]) == ["drain one", "drain two"]
    assert ran[4:] == ["close two", "stop two", "close one", "stop one"]
    assert (report.clean, len(report.hooks)) == (True, 10)


def test_the_only_application_needs_no_context() -> None:
    """With one application its Lifecycle can be asked anywhere, also inside another application's context."""
    _app, lifecycle = serve()
    with make_app().app_context():
        assert lifecycle.state is State.STARTING


TWO_APPS = """
import signal
from flask import Flask
from flask_lifecycle import Lifecycle
lifecycle = Lifecycle()
ran = []
lifecycle.on_shutdown(name="hook")(lambda: ran.append("hook"))
lifecycle.on_startup(name="start")(lambda: ran.append("start"))
apps = [Flask("one"), Flask("two")]
for app in apps:
    app.config["LIFECYCLE_SHUTDOWN_DELAY"] = 0
    lifecycle.init_app(app)
    app.test_client().get("/", buffered=True)
    with app.app_context():
        assert lifecycle.state.name == "READY"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with apps[0].app_context():
    report = lifecycle.shutdown("both")
for app in apps:
    with app.app_context():
        assert lifecycle.state.name == "STOPPED", lifecycle.state
assert report.clean
assert ran == ["start", "start", "hook", "hook"], ran
print("ok")
"""


def test_two_applications_stop_together() -> None:
    """Two applications in one process with one Lifecycle: both are drained, and each has its hooks run."""
    done = run_python(TWO_APPS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


# -- signals ------------------------------------------------------------------------------------------------------


def in_thread() -> str:
    return """
import threading, logging, signal
from flask import Flask
from flask_lifecycle import Lifecycle
logging.basicConfig(format="%(levelname)s %(message)s")
before = signal.getsignal(signal.SIGTERM)
thread = threading.Thread(target=lambda: Lifecycle(Flask("x")))
thread.start()
thread.join()
assert signal.getsignal(signal.SIGTERM) == before
"""


def test_init_app_in_a_thread_warns_once() -> None:
    """Off the main thread no handler can be installed: one warning says what to call instead."""
    done = run_python(in_thread())
    assert (done.returncode, done.stderr) == (
        0,
        "WARNING init_app was called outside the main thread, where no signal handler can be installed;"
        " call lifecycle.shutdown() when the process is to stop.\n",
    )


def test_testing_in_a_thread_warns_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A testing application installs no handler anywhere, so there is nothing to warn of."""
    with running(lambda: Lifecycle(make_app())):
        pass
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        ("{}", ["SIGTERM", "SIGURG"]),
        ("{'LIFECYCLE_SIGNALS': ['SIGUSR1', 'HUP']}", ["SIGHUP", "SIGUSR1", "SIGURG"]),
        ("{'LIFECYCLE_SIGNALS': []}", []),
        ("{'TESTING': True}", []),
    ],
)
def test_which_signals_are_taken(config: str, taken: list[str]) -> None:
    """init_app takes SIGTERM, or what LIFECYCLE_SIGNALS says, and with them SIGURG; in testing mode none."""
    code = f"""
import signal
from flask import Flask
from flask_lifecycle import Lifecycle
numbers = sorted(set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}})
before = {{n: signal.getsignal(n) for n in numbers}}
app = Flask("x")
app.config.update({config})
Lifecycle(app)
print(*(n.name for n in numbers if signal.getsignal(n) != before[n]))
"""
    done = run_python(code)
    assert (done.stdout.split(), done.stderr) == (taken, "")


def test_a_context_manager_is_an_app_context() -> None:
    """What hooks and checks run in is the application's own context."""
    app, _lifecycle = serve()
    context: AbstractContextManager[Any] = state_of(app).context()
    with context:
        assert current_app.name == app.name


def test_a_probe_listener_on_a_port_of_a_thread(free: threading.Event) -> None:
    """Where no server runs, a probe that began the start-up is answered, whether the probe listener opens or not."""
    app, lifecycle = serve(LIFECYCLE_PROBE_HOST="192.0.2.1", LIFECYCLE_PROBE_PORT=0)
    assert get(app, "/livez").status_code == 200
    assert (lifecycle.state, lifecycle.probe_address) == (State.READY, None)


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

    state.features |= {"broken": Broken(), "sound": Sound()}
    state.startup.run()
    assert told == [State.READY]
    assert "broken failed" in caplog.messages
