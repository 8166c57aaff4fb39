"""One process: its signals and the way it leaves. What ends it or touches its signals runs in one of its own."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle._core import exit as exit_module
from flask_lifecycle._core import process as process_module
from flask_lifecycle._core.process import Process
from flask_lifecycle._servers.serving import this_process
from tests._fakes import BOUND, FakeMember, finish, in_child, run_python, running, whole


def test_an_application_after_a_shutdown_begins_anew() -> None:
    """After a shutdown is over a new application gets a new shutdown."""
    process = Process(signals=False)
    first, second = FakeMember(), FakeMember()
    process.join(first, ())
    process.stop("over", True)
    over = process.shutdown
    finish(over)
    process.join(second, ())
    assert process.shutdown is not over
    assert not process.shutdown.begun


def test_a_signal_that_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes by another process, or again within 0.1 s, is no second one; the next forces. Others' goes on."""
    process, member, free = Process(signals=False), FakeMember(grace_period=2.0), threading.Event()
    codes: list[int] = []

    def leave(code: int, *_lines: str, **_how: Any) -> None:
        codes.append(code)
        raise SystemExit(code)

    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    process.relay._saved[signal.SIGTERM] = signal.SIG_DFL
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(exit_module, "exit_now", leave)
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    process.forwarded(signal.SIGUSR1)
    assert (sent, process.shutdown.begun) == ([(os.getpid(), signal.SIGUSR1)], False)
    now = [100.0]
    monkeypatch.setattr(process_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    process.forwarded(signal.SIGTERM)
    process.forwarded(signal.SIGTERM)
    now[0] += 0.09
    process.receive(signal.SIGTERM)
    assert (process.shutdown.request.reason, codes) == ("SIGTERM", [])
    now[0] += 0.02
    with pytest.raises(SystemExit, match=whole("143")):
        process.receive(signal.SIGTERM)
    free.set()
    process.shutdown.wait()
    assert codes == [128 + signal.SIGTERM]


EXIT = """
import sys, threading
from flask_lifecycle._core.exit import exit_now
def refuse(thread):
    raise RuntimeError("can't start new thread")
"""


@pytest.mark.parametrize(
    ("code", "leaves", "output"),
    [
        ("print('kept', end=''); sys.stderr.close(); exit_now(7)", 7, "kept"),
        ("sys.stdout = None; exit_now(6)", 6, ""),
        ("threading.Thread.start = refuse; print('kept', end=''); exit_now(5, 'last words')", 5, "kept"),
        ("exit_now(4, 'last words', keep=threading.Event().wait, limit=4.0)", 4, ""),
    ],
)
def test_exit_now_keeps_what_was_printed(code: str, leaves: int, output: str) -> None:
    """Leaving at once flushes the streams and says its last words, though streams or the report's disk hang."""
    done = run_python(EXIT + code)
    assert (done.returncode, done.stdout) == (leaves, output)
    assert done.stderr == ("last words\n" if "last words" in code else "")


HEAD = """
import logging, os, signal, sys, threading
from flask import Flask
from flask_lifecycle import Lifecycle
from flask_lifecycle._core import exit as _exit
from flask_lifecycle._servers import serving as _serving
logging.basicConfig(format="%(message)s")  # from WARNING on
def say(*words):
    print(*words, flush=True)
def unhurried():
    # The last words have at most 125 ms of what is left of the grace period, and a busy machine takes longer.
    def exit_now(*arguments, limit, **more):
        assert 0.0 <= limit <= 0.125
        leave(*arguments, limit=20.0, **more)
    leave, _exit.exit_now = _exit.exit_now, exit_now
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


def program(code: str, *, covered: bool = True) -> tuple[int, list[str], str]:
    """Run a program behind HEAD; return code, lines and stderr. Coverage crashes in a thread that ends it."""
    environ = {} if covered else {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    done = run_python(HEAD + textwrap.dedent(code), environ=environ)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("theirs", [True, False])
def test_shutdown_in_a_thread_without_our_handler(theirs: bool) -> None:
    """Where no handler is ours (init_app in a thread), whoever has the signal gets it after the hooks, and decides."""
    code, said, _errors = program(
        f"""
        heard = threading.Event()
        if {theirs}:
            signal.signal(signal.SIGTERM, lambda number, frame: heard.set())
        apps = []
        def main():
            apps.append(make())
            lifecycle = Lifecycle(apps[0])
            @lifecycle.on_shutdown
            def hook():
                say("hook")
                raise ValueError("broken")
            serve(apps[0])
            lifecycle.shutdown(wait=False)
        threading.Thread(target=main).start()
        say(heard.wait(20))
        """
    )
    assert (code, said) == ((0, ["hook", "True"]) if theirs else (-signal.SIGTERM, ["hook"]))


OVER = "grace period over, leaving at once:"
# What does not end by itself, what it says, and the last lines of its log.
HANGING: dict[str, tuple[str, list[str], list[str]]] = {
    "a main thread that does not leave although it was told to": (
        """
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
        """,
        ["hook", "no"],
        [f"{OVER} the shutdown or the main thread has not ended"],
    ),
    "what is closed when the server's loop has ended": (
        """
        from flask_lifecycle._core.feature import Feature
        class Hanging(Feature):
            def stop(self): rest()
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=2.0))
        state = app.extensions["lifecycle"]
        state.features["hanging"] = Hanging(state)
        def stop():
            lifecycle.wait_ready(10)
            kill()
        threading.Thread(target=stop, daemon=True).start()
        lifecycle.run(app, port=0)
        """,
        [],
        [f"{OVER} the shutdown or the main thread has not ended"],
    ),
    "non-daemon threads that hold the interpreter open": (
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=3.0))
        threading.Thread(target=rest, name="stubborn").start()
        lifecycle.on_startup(name="stop")(lambda: lifecycle.shutdown(wait=False))
        sys.exit(lifecycle.run(app, port=0).exit_code)
        """,
        [],
        ["non-daemon threads still run: stubborn", f"{OVER} threads still run: stubborn"],
    ),
    "a shutdown that hangs past its deadline as the interpreter ends": (
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=0.5))
        serve(app)
        _serving.this_process.shutdown._finish = lambda *a: threading.Event().wait(20)
        """,
        [],
        [f"{OVER} the shutdown has not ended"],
    ),
}


@pytest.mark.parametrize("hanging", HANGING)
def test_what_hangs_is_left_behind(hanging: str) -> None:
    """Whatever hangs, the process is gone within its grace period, with 1 and the reason."""
    code, expected, last_lines = HANGING[hanging]
    exit_code, said, errors = program("unhurried()\n" + textwrap.dedent(code))
    assert (exit_code, said) == (1, expected)
    assert errors.splitlines()[-len(last_lines) :] == last_lines


def test_a_signal_while_the_interpreter_waits_for_its_threads() -> None:
    """A shutdown that ends when the main thread has returned leaves the interpreter its way, with our exit code."""
    code, said, errors = program(
        """
        from flask_lifecycle._servers.serving import this_process
        lifecycle = Lifecycle(app := make())
        @lifecycle.on_shutdown
        def hook():
            say("hook")
            raise ValueError("boom")
        serve(app)
        def stop():
            threading.main_thread().join()
            while not this_process.shutdown.begun:  # one that comes just before the wait is not heeded
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                threading.Event().wait(0.02)
            this_process.shutdown.wait()
            say("over")
        threading.Thread(target=stop).start()
        """
    )
    assert (code, said) == (1, ["hook", "over"])
    assert "SystemExit" not in errors


# What leaves as it would, its exit code, and what it says.
LEAVING: dict[str, tuple[str, int, list[str]]] = {
    "an interpreter that leaves while a shutdown is under way waits for it": (
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
        """,
        0,
        ["hook"],
    ),
    "a process that has imported us and serves another application": (
        """
        import warnings
        warnings.simplefilter("ignore")
        from waitress.server import create_server
        server = create_server(lambda environ, start_response: [], host="127.0.0.1", port=0)
        sys.exit(3)
        """,
        3,
        [],
    ),
    "once run() has returned, its caller may go on for longer than the grace period": (
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=2))
        lifecycle.on_startup(name="stop")(lambda: lifecycle.shutdown(wait=False))
        lifecycle.run(app, port=0)
        [watchdog] = [thread for thread in threading.enumerate() if thread.name == "lifecycle-watchdog"]
        watchdog.join(10)
        say("still here" if not watchdog.is_alive() else "watched")
        """,
        0,
        ["still here"],
    ),
}


@pytest.mark.parametrize("leaving", LEAVING)
def test_what_leaves_as_it_would(leaving: str) -> None:
    """Nothing is forced, nothing said."""
    code, *expected = LEAVING[leaving]
    assert program(code) == (*expected, "")


def test_pid_1_under_a_foreign_server_leaves_by_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 that somebody else serves, and that nobody's handler ends, leaves with that code as well."""
    died: list[int] = []
    monkeypatch.setattr(exit_module, "die_by", died.append)
    process = Process(signals=False)
    with pytest.raises(SystemExit, match=whole("143")):
        process.exit.give_back(signal.SIGTERM, 128 + signal.SIGTERM)
    assert died == [signal.SIGTERM]


def test_a_forked_child_has_a_lock_of_its_own() -> None:
    """A thread that the child does not have may hold the lock of the applications at the fork."""
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with this_process._lock:
            held.set()
            assert free.wait(BOUND)

    with running(hold):
        assert held.wait(BOUND)
        assert in_child(lambda: not isinstance(this_process.applications(), list)) == 0
        free.set()


FORKED = """
import os, sys
from flask import Flask
from flask_lifecycle import Lifecycle
import waitress.server

app = Flask(__name__)
lifecycle = Lifecycle(app)
here = lambda: "parent" if os.getpid() == parent else "child"
parent = os.getpid()
lifecycle.on_startup(name="pool")(lambda: print("open in", here(), flush=True))
lifecycle.on_shutdown(name="pool")(lambda: print("close in", here(), flush=True))
app.test_client().get("/").close()
server = waitress.server.create_server(app, listen="127.0.0.1:0")
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    assert "gevent" not in sys.modules  # what a fork has to do again for gevent, it does only where gevent is
    print(lifecycle.state.name, flush=True)
    if sys.argv[1]:
        while app.test_client().get(sys.argv[1], buffered=True).status_code == 503:
            pass  # a probe does not wait for the start-up that it begins
        print(lifecycle.state.name, flush=True)
"""


@pytest.mark.parametrize("asks", ["/work", "/readyz", ""])
def test_a_forked_child_starts_for_itself(asks: str) -> None:
    """A child of a served application runs start-up and hooks if it is asked, and else none: the server is not its."""
    done = run_python(FORKED, asks)
    own = ["open in child", "READY", "close in child"] if asks else []
    assert done.stdout.splitlines() == ["open in parent", "STARTING", *own, "close in parent"], done.stderr
