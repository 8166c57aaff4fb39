"""One process: its applications, its signals, its server and the way it leaves.

What ends a process or touches its signals runs in a process of its own.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from flask_lifecycle import RequestInfo
from flask_lifecycle._core import exit as exit_module
from flask_lifecycle._core import process as process_module
from flask_lifecycle._core.process import Process
from tests._fakes import (
    BOUND,
    FakeMember,
    run_python,
    whole,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals are the subject")


# -- members ------------------------------------------------------------------------------------------------------


def test_members_in_order_and_no_longer_than_they_live() -> None:
    """The applications are kept in order of registration, and none is kept alive."""
    process = Process(signals=False)
    members = [FakeMember() for _ in range(3)]
    for member in members:
        process.join(member, ())
    assert list(process.applications()) == members
    del members[1], member
    gc.collect()
    assert list(process.applications()) == members


def test_a_member_after_a_shutdown_begins_anew() -> None:
    """After a shutdown is over a new application gets a new shutdown."""
    process = Process(signals=False)
    first, second = FakeMember(), FakeMember()
    process.join(first, ())
    report = process.stop("over", True)
    assert report is not None
    over = process.shutdown
    assert over.thread is not None
    over.thread.join(BOUND)
    process.join(second, ())
    assert process.shutdown is not over
    assert not process.shutdown.begun


# -- signals as they are received, in a process that touches none -------------------------------------------------


class Left(Exception):
    """The process has left."""


def receiving(monkeypatch: pytest.MonkeyPatch) -> tuple[Process, list[Any]]:
    """A process, and the exit codes with which it leaves, each before its last words."""
    process, codes = Process(signals=False), list[Any]()

    def leave(code: int, *lines: str, more: Callable[[], Iterable[str]] = tuple, **_how: Any) -> None:
        codes.extend((code, *lines, *more()))
        raise Left

    monkeypatch.setattr(exit_module, "exit_now", leave)
    return process, codes


def test_a_signal_that_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes by another process as well is no second one; the next one forces. What is none of ours goes on."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(grace_period=2.0), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    process.relay._saved[signal.SIGTERM] = signal.SIG_DFL
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    process.forwarded(signal.SIGUSR1)
    assert (sent, process.shutdown.begun) == ([(os.getpid(), signal.SIGUSR1)], False)
    monkeypatch.setattr(process_module, "_SAME_SIGNAL", 0.0)
    process.forwarded(signal.SIGTERM)
    process.forwarded(signal.SIGTERM)
    assert (process.shutdown.reason, codes) == ("SIGTERM", [])
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGTERM)
    free.set()
    process.shutdown.wait()


def test_a_second_signal_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal leaves at once with 128 + its number, and says what was abandoned."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(grace_period=2.0), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    member.ledger.requests = lambda stacks=False: (RequestInfo("GET", "/slow", 1.0),)  # type: ignore[method-assign]
    process.receive(signal.SIGTERM)
    monkeypatch.setattr(process_module, "_SAME_SIGNAL", 0.0)
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGINT)
    free.set()
    process.shutdown.wait()
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
    monkeypatch.setattr(process_module, "_SAME_SIGNAL", 0.0)
    process.stop("by hand", False)
    process.receive(signal.SIGTERM)
    assert codes == []
    with pytest.raises(Left, match=whole("")):
        process.receive(signal.SIGTERM)
    free.set()
    report = process.shutdown.wait()
    assert (report.reason, report.signal, codes[0]) == ("by hand", signal.SIGTERM, 128 + signal.SIGTERM)


def test_the_same_signal_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeat within microseconds (GNU timeout signals the child and its group) does not force."""
    process, codes = receiving(monkeypatch)
    member, free = FakeMember(), threading.Event()
    process.join(member, ())
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "slow", None)
    monkeypatch.setattr(process_module, "_SAME_SIGNAL", BOUND)
    process.receive(signal.SIGTERM)
    process.receive(signal.SIGTERM)
    free.set()
    assert process.shutdown.wait().clean
    assert codes == []


def test_exit_now_keeps_what_was_printed() -> None:
    """Leaving at once flushes the streams and the log, and survives streams that are closed or missing."""
    code = (
        "import sys; from flask_lifecycle._core.exit import exit_now; print('kept', end='');"
        "sys.stderr.close(); exit_now(7)"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout) == (7, "kept")
    done = run_python("import sys; from flask_lifecycle._core.exit import exit_now; sys.stdout = None; exit_now(6)")
    assert done.returncode == 6


def test_exit_now_without_a_thread_to_be_had() -> None:
    """Leaving at once says its last words also where no thread can be started to say them."""
    code = """
import threading
from flask_lifecycle._core.exit import exit_now
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
print("kept", end="")
exit_now(5, "last words")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (5, "kept", "last words\n")


# -- real signals, in processes of their own ----------------------------------------------------------------------

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


def program(code: str, *, warnings: Sequence[str] = (), covered: bool = True) -> tuple[int, list[str], str]:
    """Run a program behind HEAD; return its exit code, the lines it said and its stderr.

    :param covered: with coverage, which saves its data in ``os._exit``. In a thread that ends the process while the
        interpreter ends as well, that crashes.
    """
    environ = {} if covered else {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    done = run_python(HEAD + textwrap.dedent(code), python=warnings, environ=environ)
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
        logging.basicConfig(format="%(message)s", level=logging.ERROR, force=True)
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
        from flask_lifecycle._core.feature import Feature
        class Hanging(Feature):
            def stop(self): rest()
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=2.0))
        app.extensions["lifecycle"].features["hanging"] = Hanging()
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
        logging.basicConfig(format="%(message)s", level=logging.ERROR, force=True)
        lifecycle = Lifecycle(app := make(LIFECYCLE_GRACE_PERIOD=0.5))
        serve(app)
        _serving.this_process.shutdown._finish = lambda *a: threading.Event().wait(20)
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
        logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
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


def test_pid_1_under_a_foreign_server_leaves_by_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 that somebody else serves, and that nobody's handler ends, leaves with that code as well."""
    died: list[int] = []
    monkeypatch.setattr(exit_module, "die_by", died.append)
    process = Process(signals=False)
    with pytest.raises(SystemExit, match=whole("143")):
        process.exit.give_back(signal.SIGTERM, 128 + signal.SIGTERM)
    assert died == [signal.SIGTERM]


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


SHOWN = """
import logging, sys, threading
from flask import Flask
from flask_lifecycle import Lifecycle
app = Flask(__name__)
app.config["LIFECYCLE_SHUTDOWN_DELAY"] = 0
lifecycle = Lifecycle(app)
"""
RUN = """
lifecycle.on_startup(name="stop")(lambda: lifecycle.shutdown("enough", wait=False))
sys.exit(lifecycle.run(app, port=0).exit_code)
"""
BY_ITSELF = """
app.test_client().get("/").close()
lifecycle.shutdown("enough")
"""


def test_run_shows_its_log() -> None:
    """Where logging is not configured run() shows the address, the process, the probes and the report on stderr."""
    done = run_python(SHOWN + RUN)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"flask_lifecycle: listening on http://127\.0\.0\.1:\d+ \(waitress, pid \d+\)", lines[0])
    assert "flask_lifecycle: probes at /healthcheck /livez /readyz /startupz" in lines
    assert lines[-1].startswith("flask_lifecycle: shutdown complete in ")


@pytest.mark.parametrize("code", [BY_ITSELF, f"logging.basicConfig(){RUN}"], ids=["init_app alone", "configured"])
def test_elsewhere_the_log_is_the_applications(code: str) -> None:
    """Without run() nothing is shown, and under run() what the application's own logging shows and nothing else."""
    done = run_python(SHOWN + code)
    assert (done.returncode, done.stderr) == (0, "")


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
