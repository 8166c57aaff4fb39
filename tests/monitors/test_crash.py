"""Crashes of threads that stop the process. Tests that end a process run it as a child."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle import HookRecord, ShutdownReport
from flask_lifecycle._core.shutdown import StopRequest
from flask_lifecycle._monitors.crash import CrashWatch
from tests._fakes import BOUND, FakeMember, coordinate, finish, raiser, running, until
from tests.core.test_process import program

RECORD = HookRecord("worker", "crash", "failed", 0.0, "ValueError: boom")


class FakeProcess:
    """Records the crashes."""

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns
        self.crashes: list[tuple[str, HookRecord, bool]] = []

    def applications(self) -> list[Any]:
        return [SimpleNamespace(settings=SimpleNamespace(stop_on_crash=self.patterns))]

    def crashed(self, reason: str, record: HookRecord, *, main: bool) -> None:
        self.crashes.append((reason, record, main))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The previous hooks that are called."""
    names: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: names.append("main"))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: names.append("thread"))
    return names


def crash(name: str, error: BaseException) -> None:
    """Let a thread crash."""
    thread = threading.Thread(target=raiser(error), name=name)
    thread.start()
    thread.join(BOUND)


def crash_main(error: BaseException) -> None:
    """What the interpreter does when the main thread crashes."""
    sys.excepthook(type(error), error, None)


def watch(*patterns: str) -> tuple[FakeProcess, CrashWatch]:
    process: Any = FakeProcess(*patterns)
    watch = CrashWatch(process)
    watch.install()
    return process, watch


def test_crashes(called: list[str]) -> None:
    """A thread whose name matches begins the shutdown, after the traceback was shown; so does the main thread."""
    process, watching = watch("other", "consumer-*", "MainThread")
    crash("consumer-1", ValueError("boom"))
    crash_main(ValueError())
    assert called == ["thread", "main"]
    assert process.crashes == [
        (f"thread '{name}' crashed: ValueError", HookRecord(name, "crash", "failed", 0.0, error), main)
        for name, error, main in (("consumer-1", "ValueError: boom", False), ("MainThread", "ValueError", True))
    ]
    watching.stop()


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (("Consumer", "consumer", "mainthread"), ValueError("boom")),
        (("*",), SystemExit(3)),
        (("*",), KeyboardInterrupt()),
    ],
)
def test_what_is_not_a_crash(called: list[str], patterns: tuple[str, ...], error: BaseException) -> None:
    """A name that matches no pattern, ``sys.exit()`` and Ctrl-C end a thread as usual."""
    process, watching = watch(*patterns)
    crash("consumer-1", error)
    crash_main(error)
    assert (called, process.crashes) == (["thread", "main"], [])
    watching.stop()


def test_an_error_without_a_text(called: list[str]) -> None:
    """An exception without a text, or of an unknown thread, is a crash too."""

    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    process, watching = watch("*")
    crash_main(Silent())
    unknown: Any = SimpleNamespace(exc_type=ValueError, exc_value=None, exc_traceback=None, thread=None)
    threading.excepthook(unknown)
    assert [record.error for _, record, _ in process.crashes] == ["Silent", "ValueError"]
    assert [record.name for _, record, _ in process.crashes] == ["MainThread", ""]
    watching.stop()


def test_a_previous_hook_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the previous hook fails the shutdown begins, and its error is raised."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no traceback")

    monkeypatch.setattr(sys, "excepthook", fail)
    monkeypatch.setattr(threading, "excepthook", fail)
    process, watching = watch("*")
    with pytest.raises(RuntimeError, match=r"^no traceback$"):
        crash_main(ValueError("boom"))
    with pytest.raises(RuntimeError, match=r"^no traceback$"):
        threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, threading.current_thread())))
    assert len(process.crashes) == 2
    watching.stop()


def test_a_previous_hook_that_hangs(monkeypatch: pytest.MonkeyPatch, free: threading.Event) -> None:
    """If the previous hook hangs the shutdown begins after a while, or after it if no thread can be started."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: free.wait(BOUND))
    process, watching = watch("consumer-*")
    with running(lambda: crash("consumer-1", ValueError("boom"))):
        until(lambda: bool(process.crashes))
        free.set()
    assert {reason for reason, _record, _main in process.crashes} == {"thread 'consumer-1' crashed: ValueError"}
    process.crashes.clear()

    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    crash("consumer-1", ValueError("boom"))
    assert len(process.crashes) == 1
    watching.stop()


def test_the_hooks_are_removed(called: list[str]) -> None:
    """The end restores the previous hooks, and the watch may begin again."""
    before = sys.excepthook, threading.excepthook
    process, watching = watch("*")
    assert (sys.excepthook, threading.excepthook) != before
    watching.stop()
    watching.stop()
    assert (sys.excepthook, threading.excepthook) == before
    watching.install()
    crash_main(ValueError("boom"))
    assert len(process.crashes) == 1
    watching.stop()
    assert (sys.excepthook, threading.excepthook) == before


def test_hooks_that_came_later_stay(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks over ours stay when we end; ours then only call the next one, and are not installed twice."""
    process, watching = watch("*")
    ours, ours_in_threads = sys.excepthook, threading.excepthook
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: ours(*arguments))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: ours_in_threads(arguments))
    later = sys.excepthook, threading.excepthook
    watching.stop()
    assert (sys.excepthook, threading.excepthook) == later
    crash_main(ValueError("boom"))
    crash("worker", ValueError("boom"))
    assert (called, process.crashes) == (["main", "thread"], [])
    watching.install()
    watching.install()
    assert (sys.excepthook, threading.excepthook) == later
    crash_main(ValueError("boom"))
    assert (called, len(process.crashes)) == (["main", "thread", "main"], 1)


def test_a_forked_child(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's crash does not concern the parent; a child that begins to serve is watched."""
    process, watching = watch("*")
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    crash_main(ValueError("boom"))
    assert (called, process.crashes) == (["main"], [])
    watching.begin()
    crash_main(ValueError("boom"))
    assert len(process.crashes) == 1
    watching.stop()


def test_a_crash_makes_the_report_unclean() -> None:
    """The crash is the first record of the report, which counts it apart from hooks."""
    shutdown = coordinate(None, FakeMember())
    assert shutdown.begin(StopRequest("thread 'worker' crashed: ValueError", crash=RECORD))
    assert not shutdown.begin(StopRequest("another", crash=RECORD))
    report = finish(shutdown)
    assert (report.hooks, report.clean, report.exit_code) == ((RECORD,), False, 1)
    assert str(report) == "a thread crashed, exit 1"
    report = ShutdownReport("x", None, (), (), (RECORD, HookRecord("pool", "shutdown", "hung", 1.0)), 0.0)
    assert str(report) == "a thread crashed, 1 hook hung, exit 1"


def test_a_shell_is_left_alone() -> None:
    """If nothing is served, errors of the main thread stop nothing: a console goes on, and no hook runs."""
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


def test_the_wait_of_the_main_thread_is_bounded() -> None:
    """A main thread that has crashed waits no longer than the grace period for a shutdown that hangs."""
    code, said, errors = program(
        """
        unhurried()
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"], LIFECYCLE_GRACE_PERIOD=0.5))
        serve(app)
        from flask_lifecycle._servers.serving import this_process
        this_process.shutdown._finish = lambda *a: threading.Event().wait(20)
        raise ValueError("boom")
        """,
        covered=False,
    )
    assert (code, said) == (1, [])
    assert "grace period over, leaving at once" in errors


@pytest.mark.parametrize(
    ("before", "in_main"),
    [("threading.Thread.start = refuse", True), ("lifecycle.shutdown('enough', wait=False)", False)],
    ids=["without threads", "in a drain"],
)
def test_a_main_thread_that_crashes(before: str, in_main: bool) -> None:
    """It waits for a shutdown that has begun already, and runs it itself if no thread can be started."""
    code, said, errors = program(
        f"""
        lifecycle = Lifecycle(app := make(LIFECYCLE_STOP_ON_CRASH=["MainThread"]))
        @lifecycle.on_shutdown
        def hook():
            threading.Event().wait(0.2)
            say(threading.current_thread() is threading.main_thread())
        serve(app)
        def refuse(thread):
            raise RuntimeError("can't start new thread")
        {before}
        raise ValueError("boom")
        """
    )
    assert (code, said, errors.count("Traceback")) == (1, [str(in_main)], 1)
    assert "ValueError: boom\n" in errors


def test_testing_mode_has_no_such_hooks() -> None:
    """Without the setting, and in testing mode, there are no hooks."""
    code, said, errors = program(
        """
        before = sys.excepthook, threading.excepthook
        Lifecycle(make(TESTING=True, LIFECYCLE_STOP_ON_CRASH=["*"]))
        Lifecycle(make())
        say((sys.excepthook, threading.excepthook) == before, "flask_lifecycle._monitors.crash" in sys.modules)
        one, two = make("one", LIFECYCLE_STOP_ON_CRASH=["a"]), make("two", LIFECYCLE_STOP_ON_CRASH=["b"])
        lifecycle = Lifecycle(one)
        lifecycle.init_app(two)
        from flask_lifecycle._servers.serving import this_process
        import gc; gc.collect()
        say(len(this_process.applications()), sys.excepthook == before[0])
        this_process.stop("enough", wait=True)
        say((sys.excepthook, threading.excepthook) == before)
        """
    )
    assert (code, said, errors) == (0, ["True False", "2 False", "True"], "")
