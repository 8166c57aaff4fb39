"""Crashes of threads that stop the process: the hooks of the interpreter, and what they leave alone.

What ends a process runs in a process of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle import HookRecord, ShutdownReport, _crash
from flask_lifecycle._crash import CrashWatch
from flask_lifecycle._process import Process
from tests._fakes import BOUND, FakeMember, coordinate, finish, running, until
from tests.test_process import program

RECORD = HookRecord("worker", "crash", "failed", 0.0, "ValueError: boom")


class FakeProcess:
    """Writes down what it is told."""

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns
        self.told: list[tuple[str, HookRecord, bool]] = []

    def patterns_of_crashes(self) -> tuple[str, ...]:
        return self.patterns

    def crashed(self, reason: str, record: HookRecord, *, main: bool) -> None:
        self.told.append((reason, record, main))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who of those that were there before is called."""
    names: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: names.append("main"))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: names.append("thread"))
    return names


def crash(name: str, error: BaseException) -> None:
    """Let a thread die."""

    def die() -> None:
        raise error

    thread = threading.Thread(target=die, name=name)
    thread.start()
    thread.join(BOUND)


def crash_main(error: BaseException) -> None:
    """Do what the interpreter does when the main thread dies."""
    sys.excepthook(type(error), error, None)


def watch(*patterns: str) -> tuple[FakeProcess, CrashWatch]:
    process = FakeProcess(*patterns)
    watch = CrashWatch(process)
    watch.install()
    return process, watch


def test_a_crash_of_a_named_thread(called: list[str]) -> None:
    """A thread whose name matches begins the shutdown, after whoever shows the traceback."""
    process, watching = watch("other", "consumer-*")
    crash("consumer-1", ValueError("boom"))
    record = HookRecord("consumer-1", "crash", "failed", 0.0, "ValueError: boom")
    assert (called, process.told) == (["thread"], [("thread 'consumer-1' crashed: ValueError", record, False)])
    watching.end()


def test_a_crash_of_the_main_thread(called: list[str]) -> None:
    """The main thread is matched by its name as well."""
    process, watching = watch("MainThread")
    crash_main(ValueError())
    record = HookRecord("MainThread", "crash", "failed", 0.0, "ValueError")
    assert (called, process.told) == (["main"], [("thread 'MainThread' crashed: ValueError", record, True)])
    watching.end()


def test_patterns_mind_the_case(called: list[str]) -> None:
    """A thread that matches no pattern dies as ever."""
    process, watching = watch("Consumer", "consumer", "mainthread")
    crash("consumer-1", ValueError("boom"))
    crash_main(ValueError("boom"))
    assert (called, process.told) == (["thread", "main"], [])
    watching.end()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_ends_on_purpose_are_no_crashes(called: list[str], error: BaseException) -> None:
    """Neither sys.exit() nor Ctrl-C is a crash, in whichever thread."""
    process, watching = watch("*")
    crash("worker", error)
    crash_main(error)
    assert (called, process.told) == (["thread", "main"], [])
    watching.end()


def test_an_error_without_a_text(called: list[str]) -> None:
    """An exception that cannot be written, or a thread that is unknown, is a crash all the same."""

    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    process, watching = watch("*")
    crash_main(Silent())
    unknown: Any = SimpleNamespace(exc_type=ValueError, exc_value=None, exc_traceback=None, thread=None)
    threading.excepthook(unknown)
    assert [record.error for _, record, _ in process.told] == ["Silent", "ValueError"]
    assert [record.name for _, record, _ in process.told] == ["MainThread", ""]
    watching.end()


def test_a_predecessor_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whoever shows the traceback fails, the shutdown begins, and the failure goes where it would have gone."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no traceback")

    monkeypatch.setattr(sys, "excepthook", fail)
    monkeypatch.setattr(threading, "excepthook", fail)
    process, watching = watch("*")
    with pytest.raises(RuntimeError, match=r"^no traceback$"):
        crash_main(ValueError("boom"))
    with pytest.raises(RuntimeError, match=r"^no traceback$"):
        threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, threading.current_thread())))
    assert len(process.told) == 2
    watching.end()


def test_a_predecessor_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shows the traceback may hang, on a stderr that nobody reads, and the shutdown begins all the same."""
    assert _crash._PATIENCE == 1.0
    monkeypatch.setattr(_crash, "_PATIENCE", 0.01)
    free = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: free.wait(BOUND))
    process, watching = watch("consumer-*")
    with running(lambda: crash("consumer-1", ValueError("boom"))):
        until(lambda: bool(process.told))
        free.set()
    assert {reason for reason, _record, _main in process.told} == {"thread 'consumer-1' crashed: ValueError"}
    watching.end()


def test_a_crash_without_a_thread_to_be_had(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started nobody waits for the traceback, and the shutdown begins after it."""

    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    process, watching = watch("*")
    crash("consumer-1", ValueError("boom"))
    assert (called, len(process.told)) == (["thread"], 1)
    watching.end()


def test_the_hooks_are_given_back(called: list[str]) -> None:
    """The end puts back what was there before, and the watch may begin again."""
    before = sys.excepthook, threading.excepthook
    process, watching = watch("*")
    assert (sys.excepthook, threading.excepthook) != before
    watching.end()
    watching.end()
    assert (sys.excepthook, threading.excepthook) == before
    watching.install()
    crash_main(ValueError("boom"))
    assert len(process.told) == 1
    watching.end()
    assert (sys.excepthook, threading.excepthook) == before


def test_hooks_that_came_later_stay(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who put hooks over ours keeps them when we end; ours then pass on, and are not put in twice."""
    process, watching = watch("*")
    ours, ours_in_threads = sys.excepthook, threading.excepthook
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: ours(*arguments))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: ours_in_threads(arguments))
    later = sys.excepthook, threading.excepthook
    watching.end()
    assert (sys.excepthook, threading.excepthook) == later
    crash_main(ValueError("boom"))
    crash("worker", ValueError("boom"))
    assert (called, process.told) == (["main", "thread"], [])
    watching.install()
    watching.install()
    assert (sys.excepthook, threading.excepthook) == later
    crash_main(ValueError("boom"))
    assert (called, len(process.told)) == (["main", "thread", "main"], 1)


def test_a_forked_child_crashes_for_itself(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's crash is no matter of the parent's; one that begins to serve is looked after."""
    process, watching = watch("*")
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    crash_main(ValueError("boom"))
    assert (called, process.told) == (["main"], [])
    watching.begin()
    crash_main(ValueError("boom"))
    assert len(process.told) == 1
    watching.end()


# -- the shutdown that it begins ----------------------------------------------------------------------------------


def test_a_crash_makes_the_report_unclean() -> None:
    """The crash is the first record of the report, which says so in words and by its exit code."""
    coordinator = coordinate(None, FakeMember())
    assert coordinator.begin("thread 'worker' crashed: ValueError", crash=RECORD)
    assert not coordinator.begin("another", crash=RECORD)
    report = finish(coordinator)
    assert (report.hooks, report.clean, report.exit_code) == ((RECORD,), False, 1)
    assert str(report) == "a thread crashed, exit 1"


def test_a_crash_changes_no_shutdown_that_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that crashes while a shutdown is on leaves its report clean, and is not logged by us."""
    process = Process(signals=False)
    member = FakeMember()
    process.join(member, ())
    process.shutdown("enough", wait=True)
    process.crashed("crashed", RECORD, main=False)
    report = process.coordinator.wait()
    assert (report.reason, report.clean) == ("enough", True)
    assert "crashed" not in caplog.text


def test_a_report_counts_crashes_apart() -> None:
    """What is said of the hooks does not count the crash among them."""
    hook = HookRecord("pool", "shutdown", "hung", 1.0)
    report = ShutdownReport("x", None, (), (), (RECORD, hook), 0.0)
    assert str(report) == "a thread crashed, 1 hook hung, exit 1"


# -- real interpreters --------------------------------------------------------------------------------------------


def test_the_main_thread_waits_for_the_shutdown() -> None:
    """A crash of the main thread is shown, runs the hooks with the interpreter whole, and exits 1."""
    code, said, errors = program(
        """
        from concurrent.futures import ThreadPoolExecutor
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"]))
        @lifecycle.on_shutdown
        def hook():
            threading.Event().wait(0.2)  # long after an interpreter that does not wait has begun to end
            with ThreadPoolExecutor(1) as pool:
                say(pool.submit(lambda: "from the pool").result(5))
        serve(app)
        raise ValueError("boom")
        """
    )
    assert (code, said) == (1, ["from the pool"])
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.endswith("ValueError: boom\nthread 'MainThread' crashed: ValueError: boom; the process stops\n")


def test_a_thread_stops_a_main_thread_that_waits() -> None:
    """A crash of a named thread ends a main thread that knows nothing of it, with exit code 1."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH="consumer-*"))
        lifecycle.on_shutdown(name="hook")(lambda context: say(context.reason))
        def consume():
            raise ValueError("boom")
        threading.Thread(target=consume, name="consumer-1").start()
        rest()
        """
    )
    assert (code, said) == (1, ["thread 'consumer-1' crashed: ValueError"])
    assert errors.count("Traceback") == 1


def test_a_shell_is_left_alone() -> None:
    """Where nothing is served the main thread's errors are its own: a console goes on, and no hook runs."""
    code, said, errors = program(
        """
        import code
        lifecycle = Lifecycle(make(LIFECYCLE_STOP_ON_CRASH=["*"]))
        lifecycle.on_shutdown(name="hook")(lambda: say("hook"))
        code.InteractiveInterpreter().runcode(compile("1 / 0", "typed", "exec"))
        say("still there")
        raise ValueError("boom")
        """
    )
    assert (code, said) == (1, ["still there"])
    assert "ZeroDivisionError" in errors
    assert errors.endswith("ValueError: boom\n")


def test_ctrl_c_while_the_main_thread_waits() -> None:
    """Ctrl-C forces the end of a shutdown that a crash of the main thread has begun."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"]))
        @lifecycle.on_shutdown
        def hook():
            say("hook")
            kill(signal.SIGINT)
            threading.Event().wait(20)
        serve(app)
        raise ValueError("boom")
        """
    )
    assert (code, said) == (130, ["hook"])
    assert errors.endswith("forced by SIGINT: abandoned 0\n")


def test_the_wait_of_the_main_thread_is_bounded() -> None:
    """A main thread that has crashed waits no longer than the grace period for a shutdown that hangs."""
    code, said, errors = program(
        """
        unhurried()
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"], LIFECYCLE_GRACE_PERIOD=0.5))
        serve(app)
        _process.this_process.coordinator._finish = lambda *a: threading.Event().wait(20)
        raise ValueError("boom")
        """
    )
    assert (code, said) == (1, [])
    assert "grace period over, leaving at once" in errors


def test_without_threads_the_main_thread_does_it_all() -> None:
    """Where no thread can be started any more the shutdown runs in the main thread that has crashed."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"]))
        lifecycle.on_shutdown(name="hook")(lambda: say(threading.current_thread().name))
        serve(app)
        def refuse(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        raise ValueError("boom")
        """
    )
    assert (code, said) == (1, ["MainThread"])
    assert errors.count("Traceback") == 1


def test_a_crash_of_the_main_thread_in_a_drain() -> None:
    """A main thread that crashes when a shutdown is on is held until that is over, and changes nothing else."""
    code, said, errors = program(
        """
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"]))
        begun = threading.Event()
        @lifecycle.on_shutdown
        def hook():
            begun.set()
            threading.Event().wait(0.2)
            say("hook")
        serve(app)
        lifecycle.shutdown("enough", wait=False)
        begun.wait(10)
        raise ValueError("boom")
        """
    )
    assert (code, said) == (1, ["hook"])
    assert errors.endswith("ValueError: boom\n")


def test_testing_mode_has_no_such_hooks() -> None:
    """An application in testing mode leaves the interpreter's hooks alone, and so does one that wants none."""
    code, said, errors = program(
        """
        before = sys.excepthook, threading.excepthook
        Lifecycle(make(TESTING=True, LIFECYCLE_STOP_ON_CRASH=["*"]))
        Lifecycle(make())
        say((sys.excepthook, threading.excepthook) == before, "flask_lifecycle._crash" in sys.modules)
        one, two = make("one", LIFECYCLE_STOP_ON_CRASH=["a"]), make("two", LIFECYCLE_STOP_ON_CRASH=["b"])
        lifecycle = Lifecycle(one)
        lifecycle.init_app(two)
        from flask_lifecycle._process import this_process
        say(this_process.patterns_of_crashes(), sys.excepthook == before[0])
        this_process.shutdown("enough", wait=True)
        say((sys.excepthook, threading.excepthook) == before)
        """
    )
    assert (code, said, errors) == (0, ["True False", "['a', 'b'] False", "True"], "")
