"""POSIX signals: saved, installed, handed over, restored. The signals here are SIGUSR1 and SIGUSR2."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flask_lifecycle._core.signals import SignalRelay
from tests._fakes import BOUND, in_child, run_python, running, until

ONE, TWO = signal.SIGUSR1, signal.SIGUSR2


class Recorded:
    """A relay and what it received."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[int, str]] = queue.Queue()
        self.relay = SignalRelay(lambda signum: self.got.put((signum, threading.current_thread().name)))

    def next(self) -> tuple[int, str]:
        return self.got.get(timeout=BOUND)


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """A relay that gives everything back when the test is over."""
    made = Recorded()
    yield made
    made.relay.restore()


@pytest.fixture
def restored() -> Iterator[None]:
    """The test's own handlers are given back."""
    before = {number: signal.getsignal(number) for number in (ONE, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def theirs(signum: int, frame: Any) -> None:
    """A handler that somebody else had installed."""


def handlers() -> tuple[Any, Any]:
    return signal.getsignal(ONE), signal.getsignal(TWO)


def kill(signum: int = ONE) -> None:
    os.kill(os.getpid(), signum)


def watchers() -> int:
    return sum(thread.name == "lifecycle-signals" for thread in threading.enumerate())


def test_a_signal_reaches_the_relays_thread(recorded: Recorded) -> None:
    """A signal's number arrives in the relay's own thread, not in the main one; also after a restore."""
    for _ in range(2):
        recorded.relay.install([ONE, TWO])
        for number in (ONE, TWO):
            kill(number)
            assert recorded.next() == (number, "lifecycle-signals")
        recorded.relay.restore()


def test_a_full_pipe_blocks_nobody() -> None:
    """With 64 KiB unread a further signal adds nothing and does not block the thread that it interrupts."""
    entered, free, got = threading.Event(), threading.Event(), list[int]()

    def receive(signum: int) -> None:
        got.append(signum)
        entered.set()
        assert free.wait(BOUND)

    relay = SignalRelay(receive)
    relay.install([ONE])
    try:
        kill()
        assert entered.wait(BOUND)
        for _ in range(70_000):
            relay._handle(ONE, None)
        assert len(got) == 1
    finally:
        # Read what is there, as the pipe must take the zero that ends the watcher.
        assert relay._pipe is not None
        relay._receive = lambda signum: got.append(signum)
        free.set()
        until(lambda: len(got) > 60_000)
        relay.restore()


def test_a_receiver_that_raises_does_not_deafen(caplog: pytest.LogCaptureFixture) -> None:
    """What the receiver raises is logged, and the next signal arrives as well."""
    got: queue.Queue[int] = queue.Queue()

    def receive(signum: int) -> None:
        got.put(signum)
        raise ValueError("cannot")

    relay = SignalRelay(receive)
    relay.install([ONE])
    for _ in range(2):
        kill()
        assert got.get(timeout=BOUND) == ONE
    relay.restore()
    until(lambda: len(caplog.records) == 2)
    assert {record.getMessage() for record in caplog.records} == {f"signal {int(ONE)} could not be handled"}


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, theirs])
@pytest.mark.usefixtures("restored")
def test_saved_and_restored(recorded: Recorded, before: Any) -> None:
    """What was there before is known while ours is installed, and is there again after."""
    signal.signal(ONE, before)
    assert recorded.relay.install([ONE]) == {ONE: before}
    assert recorded.relay.previous(ONE) == before
    assert recorded.relay.installed == {ONE}
    assert signal.getsignal(ONE) == recorded.relay._handle
    recorded.relay.restore()
    assert signal.getsignal(ONE) == before
    assert recorded.relay.installed == frozenset()


def test_a_handler_of_c_code_becomes_the_default(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that C code installed can be neither named nor given back; the default takes its place."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda signum: None)
        before = recorded.relay.install([ONE])
    assert before == {ONE: None}
    assert recorded.relay.previous(ONE) == signal.SIG_DFL
    recorded.relay.restore(before)
    assert signal.getsignal(ONE) == signal.SIG_DFL


def test_the_inner_of_two_installs_gives_back_its_own(recorded: Recorded) -> None:
    """A second install starts no second thread, and restoring what it returned leaves what an earlier one has taken."""
    before = handlers()
    recorded.relay.install([ONE])
    inner = recorded.relay.install([ONE, TWO])
    assert inner == {ONE: recorded.relay._handle, TWO: before[1]}
    assert (watchers(), recorded.relay.previous(ONE)) == (1, before[0])
    recorded.relay.restore(inner)
    assert handlers() == (recorded.relay._handle, before[1])
    kill(ONE)
    assert recorded.next()[0] == ONE
    for _ in range(2):
        recorded.relay.restore()
        assert handlers() == before


@pytest.mark.usefixtures("restored")
def test_a_handler_that_replaced_ours_stays(recorded: Recorded) -> None:
    """Who took the signal over from us keeps it when we give it back; ours raises nothing if it is put back later."""
    recorded.relay.install([ONE])
    ours = signal.signal(ONE, theirs)
    recorded.relay.restore()
    assert signal.getsignal(ONE) is theirs
    signal.signal(ONE, ours)
    kill()
    assert recorded.got.empty()


def test_the_thread_and_the_pipe_are_given_back(recorded: Recorded) -> None:
    """When nothing is installed any more the watcher ends and both ends of its pipe are closed."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    recorded.relay.install([ONE])
    assert watchers() == 1
    recorded.relay.restore()
    until(lambda: watchers() == 0)
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("restored")
def test_a_signal_from_outside_fetches_the_errand(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between the errand's being left and being fetched runs it; the relay's own goes to whoever had it."""
    # relay: leaves the errand | outside: signal, the handler runs the errand, which restores | relay: its own signal
    heard: list[int] = []
    signal.signal(ONE, lambda signum, frame: heard.append(signum))
    ran: list[str] = []

    def errand() -> None:
        ran.append("errand")
        recorded.relay.restore()

    real = signal.pthread_kill

    def outside_first(thread: int, signum: int) -> None:
        kill()
        assert ran == ["errand"]
        real(thread, signum)

    recorded.relay.install([ONE])
    monkeypatch.setattr(signal, "pthread_kill", outside_first)
    assert recorded.relay.run_in_main(errand)
    until(lambda: bool(heard))
    assert (ran, heard) == (["errand"], [ONE])


def test_a_signal_that_interrupts_nothing_is_repeated(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """An errand runs although its first signal has not interrupted the main thread's wait."""
    # main: releases the interpreter's lock | relay: signal | main: begins its wait, which nothing ends
    recorded.relay.install([ONE])
    began = threading.Event()
    real = signal.pthread_kill
    sent: list[int] = []

    def lost(thread: int, signum: int) -> None:
        sent.append(signum)
        if len(sent) > 1:
            real(thread, signum)

    monkeypatch.setattr(signal, "pthread_kill", lost)
    with running(lambda: recorded.relay.run_in_main(began.set)):
        assert began.wait(BOUND)
    assert recorded.got.empty()


def test_an_errand_runs_once(recorded: Recorded) -> None:
    """An errand runs in the main thread, and is taken before: the kernel's next signal, merged or not, is a signal."""
    recorded.relay.install([ONE])
    ran: list[threading.Thread] = []

    def errand() -> None:
        ran.append(threading.current_thread())
        recorded.relay._handle(ONE, None)

    with running(lambda: recorded.relay.run_in_main(errand)):
        until(lambda: bool(ran))
    assert recorded.next()[0] == ONE
    assert ran == [threading.main_thread()]


@pytest.mark.usefixtures("restored")
def test_a_forked_child_has_the_handlers_from_before(recorded: Recorded) -> None:
    """A child gets back what was there before us, but for what has replaced ours, and writes no byte to its parent."""
    heard: list[int] = []
    signal.signal(ONE, lambda signum, frame: heard.append(signum))
    recorded.relay.install([ONE, TWO, signal.SIGHUP])
    signal.signal(signal.SIGHUP, theirs)

    def child() -> int:
        kill()
        assert heard == [ONE]
        assert signal.getsignal(TWO) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is theirs
        assert recorded.relay.installed == frozenset()
        return recorded.relay.run_in_main(lambda: None)

    assert in_child(child) == 0
    recorded.relay.restore()
    until(lambda: watchers() == 0)  # it has read all that was written
    assert recorded.got.empty()


def test_die_by_a_signal() -> None:
    """Dying by a signal looks to the parent as if nobody had ever handled it."""
    code = (
        "import signal; from flask_lifecycle._core.signals import die_by;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); die_by(signal.SIGTERM)"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
