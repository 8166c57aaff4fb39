"""One process: its applications, its signals, its server and the way it leaves.

What ends a process or touches its signals runs in a process of its own.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, RequestInfo, ServerInfo, ShutdownReport, State, _process, servers
from flask_lifecycle._process import Process
from tests._fakes import (
    BOUND,
    FakeMember,
    FakeServer,
    make_app,
    run_python,
    running,
    state_of,
    until,
    whole,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals are the subject")


class FakeRunner(FakeServer):
    """A server of ours that serves until it is stopped, and can be told what to do meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.serving = threading.Event()
        self.stopped = threading.Event()

    def addresses(self) -> list[str]:
        return ["http://fake:1", "unix:/fake"]

    def serve(self) -> None:
        self.serving.set()
        assert self.stopped.wait(BOUND)

    def stop(self) -> None:
        super().stop()
        self.stopped.set()

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunner]:
    """The server that run() gets, whatever it asks for."""
    made = FakeRunner()
    monkeypatch.setattr(servers, "create", lambda *arguments: made)
    yield made
    made.stopped.set()


def process_of(lifecycle: Lifecycle) -> Process:
    return lifecycle._state().process


# -- run, with a server that is none ------------------------------------------------------------------------------


def test_run_serves_until_stopped(runner: FakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    """run() says where it listens, starts the application, serves until a shutdown, and returns the report."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    lifecycle = Lifecycle(app := make_app())
    states: list[State] = []

    def stop() -> None:
        assert runner.serving.wait(BOUND)
        until(lambda: lifecycle.state is State.READY)
        states.append(lifecycle.state)
        lifecycle.shutdown("enough")

    with running(stop):
        report = lifecycle.run(app)
    assert (report.reason, report.clean, states) == ("enough", True, [State.READY])
    assert runner.verbs == ["announce", "stop_accepting", "wait_idle", "stop"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:4] == [
        "listening on http://fake:1 (fake)",
        "listening on unix:/fake (fake)",
        "server fake (made by a test): the full promise: whatever the kernel has accepted is answered",
        "probes at /healthcheck /livez /readyz /startupz",
    ]


def test_the_server_is_told(runner: FakeRunner) -> None:
    """``Lifecycle.server`` names what run() serves by, and nothing before."""
    lifecycle = Lifecycle(app := make_app())
    seen = [lifecycle.server]

    def stop() -> None:
        assert runner.serving.wait(BOUND)
        seen.append(lifecycle.server)
        lifecycle.shutdown("enough")

    with running(stop):
        lifecycle.run(app)
    assert seen == [None, ServerInfo("fake", "made by a test", "full", "")]


def test_an_unknown_server_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever serves the application without being known carries out what it has started, and one line says so."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    process = Process(signals=False)
    member = FakeMember()
    member.started = False
    process._members.append(weakref.ref(member))
    process.tell_server()
    assert process.server_info() is None
    member.started = True
    process.tell_server()
    process.tell_server()
    assert process.server_info() == ServerInfo("unknown", "none that is known was found", "started requests")
    assert [record.getMessage() for record in caplog.records] == [
        "server unknown (none that is known was found): requests that the application has started are answered"
    ]


def test_the_line_says_what_to_do_for_more() -> None:
    """Where more can be had, the line at the start says by what."""
    info = ServerInfo("waitress", "found", "accepted requests", "do this")
    assert str(info) == (
        "server waitress (found): accepted requests are answered, but not those in the kernel's queue at the exit;"
        " do this"
    )


def test_run_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets host, port and its options as they were given, and how a probe is told."""
    given: list[Any] = []

    def create(*arguments: Any) -> FakeRunner:
        given.extend(arguments)
        raise OSError("enough")

    monkeypatch.setattr(servers, "create", create)
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_URL_PREFIX="/ops"))
    with pytest.raises(OSError, match=whole("enough")):
        lifecycle.run(app, "::1", 0, "werkzeug", listen="x", threads=3)
    lane = given.pop(4)
    assert given == ["werkzeug", app, "::1", 0, {"listen": "x", "threads": 3}]
    lanes = {"livez": "live", "readyz": "ready", "startupz": "startup", "healthcheck": "healthcheck"}
    for path, name in lanes.items():
        assert [lane(at) for at in (f"/ops/{path}", f"/ops/{path}/", f"/{path}")] == [name, name, None]


def test_several_applications_have_their_lanes() -> None:
    """The probes of each application of a process are told from work, wherever it is mounted."""
    members = [FakeMember(), FakeMember()]
    for member, path in zip(members, ("/livez", "/second/livez"), strict=True):
        member.lane = {path: "livez"}.get  # type: ignore[method-assign,assignment]
    lane = _process._lane_finder(members)
    assert [lane(path) for path in ("/livez", "/second/livez", "/third/livez")] == ["livez", "livez", None]


def test_run_of_a_containing_application(runner: FakeRunner) -> None:
    """A WSGI application that contains the Flask one is served, under the only application's settings."""
    lifecycle = Lifecycle(app := make_app())

    def outer(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    with running(lambda: runner.serving.wait(BOUND) and lifecycle.shutdown("enough")):
        assert lifecycle.run(outer).reason == "enough"


def test_shutdown_in_the_servers_loop(runner: FakeRunner) -> None:
    """Waiting for the shutdown in the thread that must serve meanwhile is an error; wait=False works."""
    lifecycle = Lifecycle(app := make_app())
    message = (
        "shutdown() was called in a thread that the shutdown itself waits for (a request, a hook, a piece of"
        " work or the server's loop); call shutdown(wait=False) there."
    )

    def serve() -> None:
        with pytest.raises(RuntimeError, match=whole(message)):
            lifecycle.shutdown()
        lifecycle.shutdown("in the loop", wait=False)
        assert runner.stopped.wait(BOUND)

    runner.serve = serve  # type: ignore[method-assign]
    assert lifecycle.run(app).reason == "in the loop"
    assert lifecycle.shutdown().reason == "in the loop"


def test_a_shutdown_before_the_server_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown that begins while the server is being made: it is let go without serving, and run() reports."""
    lifecycle = Lifecycle(app := make_app())
    runner = FakeRunner()

    def create(*arguments: Any) -> FakeRunner:
        lifecycle.shutdown("early", wait=False)
        return runner

    monkeypatch.setattr(servers, "create", create)
    assert lifecycle.run(app).reason == "early"
    assert (runner.verbs, runner.serving.is_set()) == (["close"], False)


def test_a_server_that_fails(runner: FakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that raises ends run() with its exception, and the hooks have run."""
    lifecycle, ran = Lifecycle(app := make_app()), list[str]()
    lifecycle.on_shutdown(name="hook")(lambda: ran.append("hook"))

    def serve() -> None:
        raise ValueError("loop")

    runner.serve = serve  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=whole("loop")):
        lifecycle.run(app)
    assert ran == ["hook"]
    assert lifecycle.shutdown().reason == "server failed: ValueError"
    assert "the server failed" in [record.getMessage() for record in caplog.records]


def test_a_probe_port_that_is_taken(runner: FakeRunner) -> None:
    """A probe listener that cannot be opened lets the server go, and run() can be called again."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_PROBE_HOST="192.0.2.1", LIFECYCLE_PROBE_PORT=0))
    for _ in range(2):
        with pytest.raises(OSError, match=r"The probe listener cannot listen on 192\.0\.2\.1:0"):
            lifecycle.run(app)
    assert runner.verbs == ["close", "close"]


def test_start_up_that_fails_under_run(runner: FakeRunner) -> None:
    """An on_startup function that raises under run() ends it with exit code 1."""
    lifecycle = Lifecycle(app := make_app())

    @lifecycle.on_startup
    def connect() -> None:
        raise ConnectionError("no database")

    report = lifecycle.run(app)
    assert (report.reason, report.exit_code) == ("start-up failed: on_startup 'connect'", 1)


def test_probe_listener_under_run(runner: FakeRunner) -> None:
    """Under run() the probe listener is open from before the server serves until the hooks have run."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=0))
    state = state_of(app)
    seen: list[bool] = []
    lifecycle.on_shutdown(name="hook")(lambda: seen.append(state._probe_server is not None))
    with running(lambda: runner.serving.wait(BOUND) and lifecycle.shutdown("enough")):
        lifecycle.run(app)
    assert (seen, state._probe_server) == ([True], None)


# -- members ------------------------------------------------------------------------------------------------------


def test_members_in_order_and_no_longer_than_they_live() -> None:
    """The applications are kept in order of registration, and none is kept alive."""
    process = Process(signals=False)
    members = [FakeMember() for _ in range(3)]
    for member in members:
        process.join(member, ())
    assert list(process.members()) == members
    del members[1], member
    gc.collect()
    assert list(process.members()) == members


def test_a_member_after_a_shutdown_begins_anew() -> None:
    """After a shutdown is over a new application gets a new coordinator."""
    process = Process(signals=False)
    first, second = FakeMember(), FakeMember()
    process.join(first, ())
    report = process.shutdown("over", True)
    assert report is not None
    over = process.coordinator
    assert over.thread is not None
    over.thread.join(BOUND)
    process.join(second, ())
    assert process.coordinator is not over
    assert not process.coordinator.begun


# -- signals as they are received, in a process that touches none -------------------------------------------------


class Left(Exception):
    """The process has left."""


def receiving(monkeypatch: pytest.MonkeyPatch) -> tuple[Process, list[Any]]:
    """A process, and the exit codes with which it leaves, each before its last words."""
    process, codes = Process(signals=False), list[Any]()

    def leave(code: int, *lines: str, words: Callable[[], Iterable[str]] = tuple, **_how: Any) -> None:
        codes.extend((code, *lines, *words()))
        raise Left

    monkeypatch.setattr(_process, "_exit_now", leave)
    return process, codes


def test_a_signal_begins_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal begins the shutdown and is in its report."""
    process, _codes = receiving(monkeypatch)
    process.join(member := FakeMember(), ())
    process.receive(signal.SIGTERM)
    report = process.coordinator.wait()
    assert (report.reason, report.signal, member.machine.state) == ("SIGTERM", signal.SIGTERM, State.STOPPED)


def test_a_signal_that_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes by another process as well is no second one; the next one forces. What is none of ours goes on."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(grace_period=2.0), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    process.relay._saved[signal.SIGTERM] = signal.SIG_DFL
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    process.passed_on(signal.SIGUSR1)
    assert (sent, process.coordinator.begun) == ([(os.getpid(), signal.SIGUSR1)], False)
    monkeypatch.setattr(_process, "_SAME_SIGNAL", 0.0)
    process.passed_on(signal.SIGTERM)
    process.passed_on(signal.SIGTERM)
    assert (process.coordinator.reason, codes) == ("SIGTERM", [])
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGTERM)
    free.set()
    process.coordinator.wait()


def test_a_second_signal_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal leaves at once with 128 + its number, and says what was abandoned."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(grace_period=2.0), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    member.ledger.requests = lambda stacks=False: (RequestInfo("GET", "/slow", 1.0),)  # type: ignore[method-assign]
    process.receive(signal.SIGTERM)
    monkeypatch.setattr(_process, "_SAME_SIGNAL", 0.0)
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGINT)
    free.set()
    process.coordinator.wait()
    assert codes == [
        128 + signal.SIGINT,
        "forced by SIGINT: abandoned 1",
        "abandoned GET /slow after 1.0 s (running)",
    ]


def test_the_first_signal_after_shutdown_joins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal after shutdown() joins it, as shutdown() joins a signal's; only a second one forces."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    monkeypatch.setattr(_process, "_SAME_SIGNAL", 0.0)
    process.shutdown("by hand", False)
    process.receive(signal.SIGTERM)
    assert codes == []
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGTERM)
    free.set()
    report = process.coordinator.wait()
    assert (report.reason, report.signal, codes[0]) == ("by hand", signal.SIGTERM, 128 + signal.SIGTERM)


def test_the_same_signal_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeat within microseconds (GNU timeout signals the child and its group) does not force."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    monkeypatch.setattr(_process, "_SAME_SIGNAL", BOUND)
    process.receive(signal.SIGTERM)
    process.receive(signal.SIGTERM)
    free.set()
    assert process.coordinator.wait().clean
    assert codes == []


def test_a_signal_after_the_end_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal after the shutdown is over changes nothing: the process is leaving."""
    process, codes = receiving(monkeypatch)
    process.join(member := FakeMember(), ())
    process.receive(signal.SIGTERM)
    report = process.coordinator.wait()
    monkeypatch.setattr(_process, "_SAME_SIGNAL", 0.0)
    process.receive(signal.SIGTERM)
    assert (codes, process.coordinator.wait() is report, member.machine.state) == ([], True, State.STOPPED)


def test_exit_now_keeps_what_was_printed() -> None:
    """Leaving at once flushes the streams and the log, and survives streams that are closed or missing."""
    code = (
        "import sys; from flask_lifecycle._process import _exit_now; print('kept', end='');"
        "sys.stderr.close(); _exit_now(7)"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout) == (7, "kept")
    done = run_python("import sys; from flask_lifecycle._process import _exit_now; sys.stdout = None; _exit_now(6)")
    assert done.returncode == 6


def test_exit_now_without_a_thread_to_be_had() -> None:
    """Leaving at once says its last words also where no thread can be started to say them."""
    code = """
import threading
from flask_lifecycle._process import _exit_now
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
print("kept", end="")
_exit_now(5, "last words")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (5, "kept", "last words\n")


# -- real signals, in processes of their own ----------------------------------------------------------------------

HEAD = """
import logging, os, signal, sys, threading
from flask import Flask
from flask_lifecycle import Lifecycle, _process
def say(*words):
    print(*words, flush=True)
def unhurried():
    # The last words have at most 125 ms of what is left of the grace period, and a busy machine takes longer.
    def exit_now(*arguments, limit, **more):
        assert 0.0 <= limit <= 0.125
        leave(*arguments, limit=20.0, **more)
    leave, _process._exit_now = _process._exit_now, exit_now
def make(name="app", **config):
    app = Flask(name)
    app.config.update({"LIFECYCLE_GRACE_PERIOD": 5, "LIFECYCLE_SHUTDOWN_DELAY": 0} | config)
    return app
def kill(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
def serve(app):
    app.test_client().get("/", buffered=True)
def rest():
    threading.Event().wait(20)
    say("nobody ended it")
"""


def program(code: str, *, warnings: Sequence[str] = ()) -> tuple[int, list[str], str]:
    """Run a program behind HEAD; return its exit code, the lines it said and its stderr."""
    done = run_python(HEAD + textwrap.dedent(code), python=warnings)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_an_importing_process_is_left_alone() -> None:
    """A process that serves nothing dies by SIGTERM as if we were not there: no delay and no hook."""
    assert program(
        """
        lifecycle = Lifecycle(make(LIFECYCLE_GRACE_PERIOD=90, LIFECYCLE_SHUTDOWN_DELAY=60))
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        kill()
        rest()
        """
    ) == (-signal.SIGTERM, [], "")


def test_an_importing_process_keeps_its_handler() -> None:
    """In a process that serves nothing whoever had the signal before gets it, as if we were not there."""
    code, said, errors = program(
        """
        heard = threading.Event()
        def theirs(number, frame):
            say("theirs", number)
            heard.set()
        signal.signal(signal.SIGTERM, theirs)
        lifecycle = Lifecycle(make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        kill()
        say(heard.wait(10))
        """
    )
    assert (code, said, errors) == (0, ["theirs 15", "True"], "")


def test_an_importing_process_that_ignores_the_signal() -> None:
    """In a process that serves nothing and ignored the signal, it goes on being ignored."""
    code, said, errors = program(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lifecycle = Lifecycle(make())
        kill()
        while signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            pass
        kill()
        say("alive")
        """
    )
    assert (code, said, errors) == (0, ["alive"], "")


def test_a_foreign_server_without_a_handler() -> None:
    """Served by somebody who had no handler: drained, hooks once, SystemExit in the main thread with our code."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        try:
            kill()
            rest()
        except SystemExit as error:
            say("exit", error.code, threading.current_thread() is threading.main_thread())
            raise
        """
    )
    assert (code, said, errors) == (0, ["hook", "exit 0 True"], "")


def test_an_exit_code_that_a_server_swallows() -> None:
    """A server that swallows SystemExit (waitress does) does not swallow our exit code."""
    code, said, _errors = program(
        """
        lifecycle = Lifecycle(app := make())
        @lifecycle.on_shutdown
        def hook():
            raise ValueError("boom")
        serve(app)
        try:
            kill()
            rest()
        except SystemExit:
            say("swallowed")
        """
    )
    assert (code, said) == (1, ["swallowed"])


def test_a_foreign_server_with_a_handler() -> None:
    """Served by somebody with a handler: drained, hooks once, and then the handler gets the signal."""
    code, said, errors = program(
        """
        heard = threading.Event()
        def theirs(number, frame):
            say("theirs", number)
            heard.set()
        signal.signal(signal.SIGTERM, theirs)
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        kill()
        heard.wait(10)
        """
    )
    assert (code, said, errors) == (0, ["hook", "theirs 15"], "")


def test_death_by_the_signal() -> None:
    """With LIFECYCLE_EXIT signal the process dies by the signal that came, after the hooks."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_EXIT="signal"))
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        kill()
        rest()
        """
    )
    assert (code, said, errors) == (-signal.SIGTERM, ["hook"], "")


def test_shutdown_by_hand_ends_the_process() -> None:
    """shutdown() in a served process ends it like a signal, with the report's exit code."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        threading.Thread(target=lifecycle.shutdown).start()
        rest()
        """
    )
    assert (code, said, errors) == (0, ["hook"], "")


def test_shutdown_in_a_thread_without_our_handler() -> None:
    """Where no handler is ours (init_app in a thread), whoever has the signal gets it after the hooks."""
    code, said, _errors = program(
        """
        apps = []
        def main():
            app = make()
            apps.append(app)
            lifecycle = Lifecycle(app)
            lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
            serve(app)
            lifecycle.shutdown(wait=False)
        thread = threading.Thread(target=main)
        thread.start()
        rest()
        """
    )
    assert (code, said) == (-signal.SIGTERM, ["hook"])


def test_shutdown_in_a_thread_reaches_a_handler_of_theirs() -> None:
    """Where no handler is ours, the one that somebody has installed gets the signal after the hooks."""
    code, said, _errors = program(
        """
        heard = threading.Event()
        def theirs(number, frame):
            say("theirs", number)
            heard.set()
        signal.signal(signal.SIGTERM, theirs)
        apps = []
        def main():
            apps.append(make())
            lifecycle = Lifecycle(apps[0])
            lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
            serve(apps[0])
            lifecycle.shutdown(wait=False)
        threading.Thread(target=main).start()
        say(heard.wait(10))
        """
    )
    assert (code, said) == (0, ["hook", "theirs 15", "True"])


def test_a_handler_of_theirs_decides_the_exit_code() -> None:
    """Where a handler that is not ours gets the last signal, it decides how the process leaves, whatever failed."""
    code, said, _errors = program(
        """
        heard = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: heard.set())
        apps = []
        def main():
            apps.append(make())
            lifecycle = Lifecycle(apps[0])
            @lifecycle.on_shutdown
            def hook():
                raise ValueError("broken")
            serve(apps[0])
            lifecycle.shutdown(wait=False)
        threading.Thread(target=main).start()
        say(heard.wait(10))
        """
    )
    assert (code, said) == (0, ["True"])


def test_a_main_thread_that_does_not_leave() -> None:
    """A main thread that does not leave although it was told to is left behind at the deadline."""
    code, said, errors = program(
        """
        unhurried()
        logging.basicConfig(format="%(message)s", level=logging.ERROR)
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=3.0))
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        while True:
            try:
                kill()
                rest()
            except SystemExit:
                say("no")
                rest()
        """
    )
    assert (code, said) == (1, ["hook", "no"])
    assert errors == "grace period over, leaving at once: the shutdown or the main thread has not ended\n"


def test_what_hangs_after_the_loop_is_left_behind() -> None:
    """What is closed when the server's loop has ended may hang, and the process is gone within its grace period."""
    code, _said, errors = program(
        """
        unhurried()
        class Hanging:
            def begin(self): pass
            def state_changed(self, new, reason): pass
            def end(self): rest()
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=2.0))
        app.extensions["lifecycle"].companions.append(Hanging())
        def stop():
            lifecycle.wait_ready(10)
            kill()
        threading.Thread(target=stop, daemon=True).start()
        lifecycle.run(app, port=0)
        """
    )
    assert code == 1
    assert errors == "grace period over, leaving at once: the shutdown or the main thread has not ended\n"


def test_a_signal_while_the_interpreter_waits_for_its_threads() -> None:
    """A shutdown that ends when the main thread has returned leaves the interpreter its way, with our exit code."""
    code, said, errors = program(
        """
        from flask_lifecycle._process import this_process
        lifecycle = Lifecycle(app := make())
        @lifecycle.on_shutdown
        def hook():
            say("hook")
            raise ValueError("boom")
        serve(app)
        def stop():
            threading.main_thread().join()
            while not this_process.coordinator.begun:  # one that comes just before the wait is not heeded
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                threading.Event().wait(0.02)
            this_process.coordinator.wait()
            say("over")
        threading.Thread(target=stop).start()
        """
    )
    assert (code, said) == (1, ["hook", "over"])
    assert "SystemExit" not in errors


def test_interpreter_exit_runs_the_hooks_once() -> None:
    """A plain interpreter exit runs the hooks once, and the exit code stays."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda context: say("hook", context.reason))
        serve(app)
        sys.exit(3)
        """
    )
    assert (code, said, errors) == (3, ["hook interpreter exit"], "")


def test_keyboard_interrupt_runs_the_hooks_once() -> None:
    """SIGINT, which is not ours without run(), raises KeyboardInterrupt as ever; the hooks run at exit, once."""
    code, said, _errors = program(
        """
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        serve(app)
        try:
            kill(signal.SIGINT)
            rest()
        except KeyboardInterrupt:
            say("interrupted")
        """
    )
    assert (code, said) == (0, ["interrupted", "hook"])


def test_interpreter_exit_waits_for_a_shutdown_under_way() -> None:
    """An interpreter that leaves while a shutdown is under way waits for it."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make())
        begun = threading.Event()
        @lifecycle.on_shutdown
        def hook():
            begun.set()
            threading.main_thread().join(0.2)
            say("hook")
        serve(app)
        lifecycle.shutdown(wait=False)
        begun.wait(10)
        """
    )
    assert (code, said, errors) == (0, ["hook"], "")


def test_interpreter_exit_is_bounded() -> None:
    """A shutdown that hangs past its deadline does not hold the interpreter open."""
    code, said, errors = program(
        """
        unhurried()
        logging.basicConfig(format="%(message)s", level=logging.ERROR)
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=0.5))
        serve(app)
        _process.this_process.coordinator._finish = lambda *a: threading.Event().wait(20)
        """
    )
    assert (code, said) == (1, [])
    assert errors == "grace period over, leaving at once: the shutdown has not ended\n"


def test_interpreter_exit_of_what_served_nothing() -> None:
    """A process that served nothing leaves without running a hook."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        """
    )
    assert (code, said, errors) == (0, [], "")


def test_a_process_without_applications_is_left_alone() -> None:
    """A process that has imported us, has no application of ours and serves another leaves as it would."""
    code, said, errors = program(
        """
        from waitress.server import create_server
        server = create_server(lambda environ, start_response: [], host="127.0.0.1", port=0)
        sys.exit(3)
        """,
        warnings=["-W", "ignore"],
    )
    assert (code, said, errors) == (3, [], "")


def test_run_gives_the_handlers_back() -> None:
    """run() takes SIGTERM and SIGINT, stops on either, and gives back what was there before any of us."""
    for name in ("SIGTERM", "SIGINT"):
        code, said, errors = program(
            f"""
            from flask_lifecycle import State, state_changed
            before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
            lifecycle = Lifecycle(app := make())
            def ready(sender, old, new, reason):
                if new is State.READY:
                    kill(signal.{name})
            state_changed.connect(ready)
            report = lifecycle.run(app, port=0)
            assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
            say(report.reason, report.signal == signal.{name}, report.exit_code)
            """
        )
        assert (code, said, errors) == (0, [f"{name} True 0"], "")


def test_run_and_death_by_the_signal() -> None:
    """Under run() with LIFECYCLE_EXIT signal the process dies by the signal, hooks run."""
    code, said, errors = program(
        """
        from flask_lifecycle import State, state_changed
        lifecycle = Lifecycle(app := make(LIFECYCLE_EXIT="signal"))
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        lifecycle.on_startup(name="stop")(kill)
        lifecycle.run(app, port=0)
        say("never")
        """
    )
    assert (code, said, errors) == (-signal.SIGTERM, ["hook"], "")


def test_the_caller_of_run_may_go_on() -> None:
    """Once run() has returned, its caller may do other things for longer than the grace period."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=2))
        lifecycle.on_startup(name="stop")(lambda: lifecycle.shutdown(wait=False))
        lifecycle.run(app, port=0)
        [watchdog] = [thread for thread in threading.enumerate() if thread.name == "lifecycle-watchdog"]
        watchdog.join(10)
        say("still here" if not watchdog.is_alive() else "watched")
        """
    )
    assert (code, said, errors) == (0, ["still here"], "")


def test_threads_left_behind_are_named() -> None:
    """Non-daemon threads that hold the interpreter open are named, and the process leaves at the deadline."""
    code, said, errors = program(
        """
        unhurried()
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=3.0))
        threading.Thread(target=rest, name="stubborn").start()
        lifecycle.on_startup(name="stop")(lambda: lifecycle.shutdown(wait=False))
        report = lifecycle.run(app, port=0)
        say(report.exit_code)
        sys.exit(report.exit_code)
        """
    )
    assert (code, said) == (1, ["0"])
    assert errors.splitlines() == [
        "non-daemon threads still run: stubborn",
        "grace period over, leaving at once: threads still run: stubborn",
    ]


def test_a_forked_worker_stops_by_itself() -> None:
    """A child forked from a served parent is not served until it serves: it gets the signal as before us."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make())
        lifecycle.on_shutdown(name="hook")(lambda: say("hook", os.getpid() == parent))
        parent = os.getpid()
        serve(app)
        child = os.fork()
        if child == 0:
            kill()
            rest()
        _, status = os.waitpid(child, 0)
        say(os.waitstatus_to_exitcode(status))
        """,
        warnings=["-W", "ignore"],
    )
    assert (code, said, errors) == (0, ["-15", "hook True"], "")


def test_pid_1_leaves_by_the_code(monkeypatch: pytest.MonkeyPatch, runner: FakeRunner) -> None:
    """PID 1, which a signal does not kill, leaves with what a shell shows for death by it."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_EXIT="signal"))
    died: list[int] = []
    monkeypatch.setattr(_process, "die_by", died.append)

    def stop() -> None:
        assert runner.serving.wait(BOUND)
        process_of(lifecycle).receive(signal.SIGTERM)

    with running(stop), pytest.raises(SystemExit, match=whole("143")):
        lifecycle.run(app)
    assert died == [signal.SIGTERM]


def test_pid_1_under_a_foreign_server_leaves_by_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 that somebody else serves, and that nobody's handler ends, leaves with that code as well."""
    died: list[int] = []
    monkeypatch.setattr(_process, "die_by", died.append)
    process = Process(signals=False)
    with pytest.raises(SystemExit, match=whole("143")):
        process._give_back(signal.SIGTERM, None)
    assert died == [signal.SIGTERM]


def test_the_report_of_a_run_is_the_one_of_shutdown(runner: FakeRunner) -> None:
    """run() returns the very report that shutdown() returned."""
    lifecycle, reports = Lifecycle(app := make_app()), list[ShutdownReport]()

    def stop() -> None:
        assert runner.serving.wait(BOUND)
        reports.append(lifecycle.shutdown("enough"))

    with running(stop):
        report = lifecycle.run(app)
    assert reports[0] is report
    assert os.getpid() > 0


FORKED = """
import logging, os, socket, sys
from flask import Flask
from flask_lifecycle import Lifecycle
import waitress.server

app = Flask(__name__)
lifecycle = Lifecycle(app)
lifecycle.on_shutdown(name="tell")(lambda: print("hook of", "child" if child == 0 else "parent", flush=True))
app.test_client().get("/")
server = waitress.server.create_server(app, listen="127.0.0.1:0")
child = os.fork()
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_tear_down_what_its_parent_serves() -> None:
    """A child that ends by itself runs no hooks: the server among its objects is its parent's."""
    done = run_python(FORKED)
    assert (done.returncode, done.stdout) == (0, "hook of parent\n"), done.stderr


WARMED = """
import os, sys
from flask import Flask
from flask_lifecycle import Lifecycle

app = Flask(__name__)
lifecycle = Lifecycle(app)
here = lambda: "parent" if os.getpid() == parent else "child"
parent = os.getpid()
lifecycle.on_startup(name="pool")(lambda: print("open in", here(), flush=True))
lifecycle.on_shutdown(name="pool")(lambda: print("close in", here(), flush=True))
app.test_client().get("/").close()
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    print(lifecycle.state.name, flush=True)
    app.test_client().get("/").close()
    print(lifecycle.state.name, flush=True)
"""


def test_a_forked_child_starts_for_itself() -> None:
    """An application that was warmed up before the fork runs start-up and hooks in each process that serves it."""
    done = run_python(WARMED)
    expected = ["open in parent", "STARTING", "open in child", "READY", "close in child", "close in parent"]
    assert done.stdout.splitlines() == expected, done.stderr
