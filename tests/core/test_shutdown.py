"""One shutdown: deadline, phases, hooks, report. No process, no Flask, and mostly no real time."""

from __future__ import annotations

import faulthandler
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle import HookRecord, RequestInfo, ShutdownContext, ShutdownReport, State
from flask_lifecycle._core import shutdown as shutdown_module
from flask_lifecycle._core.process import Process
from flask_lifecycle._core.shutdown import StopRequest
from flask_lifecycle._core.startup import Startup
from flask_lifecycle._core.state import Event
from tests._fakes import (
    BOUND,
    FakeMember,
    FakeServer,
    ManualClock,
    StuckLedger,
    begin,
    coordinate,
    enter,
    finish,
    raiser,
    running,
    stop,
    until,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """A clock on which nothing passes by itself; nothing of the grace period is kept for the way out."""
    monkeypatch.setattr(shutdown_module, "WAY_OUT", 0.0)
    return ManualClock()


def ready(clock: ManualClock, **settings: Any) -> FakeMember:
    """An application that was ready once."""
    member = FakeMember(clock, **settings)
    member.machine.apply(Event.STARTED)
    return member


def test_phases_in_order(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A shutdown walks down the phases, asks the server for its verbs in order, and reports on each phase."""
    # What goes well is two lines of the log; the phases and hooks are for debugging. Time that has passed before it
    # begins is a part of the grace period. The hooks run when every policy refuses. The process leaves at the very end,
    # in the shutdown's own thread, when every caller has the report.
    caplog.set_level(logging.DEBUG, "flask_lifecycle")
    member = ready(clock, grace_period=11.0, hook_reserve=2.0, keepalive_linger=0.3, drain_policy="serve")
    server = FakeServer()
    seen: list[Any] = []

    def leave(report: ShutdownReport) -> None:
        seen.extend((shutdown.report is report, shutdown.done.is_set(), shutdown.would_wait_for_itself()))

    member.hooks.add("drain", lambda: None, "d", None)
    member.hooks.add("shutdown", lambda: seen.append((member.refused, member.machine.state)), "s", None)
    shutdown = coordinate(clock, member, leave=leave)
    shutdown.attach(server)
    shutdown.begin(StopRequest("test", late=1.0))
    result = finish(shutdown)
    assert seen == [(1, State.STOPPING), True, True, True]
    assert [phase.name for phase in result.phases] == ["announce", "delay", "stop accepting", "drain", "hooks"]
    assert server.calls == [("announce",), ("stop_accepting", 8.0), ("wait_idle", 4.0, 0.3)]
    assert result.hooks == (HookRecord("d", "drain", "ok", 0.0), HookRecord("s", "shutdown", "ok", 0.0))
    assert (result.reason, result.signal, result.clean, result.duration) == ("test", None, True, 0.0)
    assert [(new, reason) for _old, new, reason in member.changes[1:]] == [
        (state, "test") for state in (State.DRAINING, State.STOPPING, State.STOPPED)
    ]
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == [
        "shutdown begins: test (grace period 10.0 s, delay 0.0 s)",
        "shutdown complete in 0.0 s: clean, exit 0 (test; at once; 0 served, 1 refused)",
    ]
    assert {"phase 'drain' ended after 0.0 s", "on_shutdown 's' done after 0.0 s"} <= set(caplog.messages)


def test_a_shutdown_in_the_middle_of_its_beginning() -> None:
    """A handler or a finalizer that shuts down in the middle of ``begin`` neither blocks nor begins another one."""
    begun: list[bool] = []
    shutdown = coordinate(None, member := FakeMember())

    def members() -> list[FakeMember]:
        if not begun:
            begun.append(True)  # once
            begun.append(shutdown.begin(StopRequest("handler")))
        return [member]

    shutdown.applications = members
    assert shutdown.begin(StopRequest("first"))
    report = finish(shutdown)
    assert (begun, report.reason, len(member.reports)) == ([True, False], "first", 1)


def test_what_fails_does_not_end_the_shutdown(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A phase that raises, or an application that cannot be drained or stopped, is logged, and the shutdown goes on."""
    broken, well, server, ran = FakeMember(clock), FakeMember(clock), FakeServer(), list[str]()
    broken.begin_drain = raiser(ValueError("deaf"))  # type: ignore[method-assign]
    server.stop_accepting = raiser(OSError("broken"))  # type: ignore[method-assign]
    well.hooks.add("shutdown", lambda: ran.append("hook"), "hook", None)
    result = stop(broken, well, clock=clock, server=server)
    assert (ran, len(result.phases)) == (["hook"], 5)
    assert (well.machine.draining.is_set(), well.machine.state) == (True, State.STOPPED)
    [record] = [record for record in caplog.records if record.getMessage().startswith("phase")]
    assert record.getMessage() == "phase 'stop accepting' failed; the shutdown continues"
    assert record.exc_info is not None
    assert (record.__dict__["lifecycle_phase"], record.__dict__["lifecycle_seconds"]) == ("stop accepting", 0.0)
    assert "an application could not be made to drain" in caplog.messages
    assert "an application could not be marked as stopped" in caplog.messages


def test_the_delay_leaves_the_reserve_alone(clock: ManualClock) -> None:
    """The delay counts into the grace period and ends where the reserve of the hooks begins."""
    first, second = ready(clock, grace_period=30.0, shutdown_delay=20.0), ready(clock, grace_period=8.0)
    shutdown = begin(clock, first, second, server=FakeServer())
    assert clock.pass_wait() == 3.0
    finish(shutdown)


@pytest.mark.parametrize("delay", [5.0, "auto"])
@pytest.mark.parametrize("lacks", ["readiness", "server", "need"])
def test_no_delay_for_what_nobody_misses(clock: ManualClock, delay: Any, lacks: str) -> None:
    """There is none for what never was ready, for what is not served, and where others go on with the listener."""
    member = FakeMember(clock, shutdown_delay=delay)
    member.adaptive_delay = FakeDelay(5.0)
    if lacks != "readiness":
        member.machine.apply(Event.STARTED)
    shutdown = coordinate(clock, member)
    if lacks != "server":
        shutdown.attach(FakeServer())
    shutdown.begin(StopRequest("test", delay=lacks != "need"))
    assert finish(shutdown).duration == 0.0


def test_a_delay_for_requests_of_an_unknown_server(clock: ManualClock) -> None:
    """A server that nobody can find is there all the same if requests are in flight."""
    member = ready(clock, shutdown_delay=5.0)
    body = enter(member.ledger)
    shutdown = begin(clock, member)
    assert clock.pass_wait() == 5.0
    body.close()
    finish(shutdown)


class FakeDelay:
    """Says when the delay may end; ``pauses`` are its answers, the last one for good."""

    def __init__(self, *pauses: float) -> None:
        self.pauses = list(pauses)
        self.latest = 0.0
        self.queued = 0
        self.ask_again = threading.Event()

    def start(self, now: float, latest: float, ask_again: threading.Event) -> None:
        self.latest = latest - now
        self.ask_again = ask_again

    def pause(self, now: float, queued: Callable[[], int]) -> float:
        self.queued = queued()
        return self.pauses.pop(0) if len(self.pauses) > 1 else self.pauses[0]

    def __str__(self) -> str:
        return "in a fake way"


def automatic(clock: ManualClock, notice: FakeDelay, **settings: Any) -> FakeMember:
    """An application whose delay ends when it may."""
    member = ready(clock, shutdown_delay="auto", **settings)
    member.adaptive_delay = notice
    return member


def test_an_automatic_delay_ends_when_it_may(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked after each pause, all kinds are waited for, and the log says how long it may take and its end."""
    # What sets the event that it was given ends a pause at once. The event is cleared before it is asked, so that one
    # which is set while it answers is not lost. Of what the server holds, it is told the number of queued requests.
    server = FakeServer()
    server.left = [RequestInfo("GET", "/", 0.0, stage=stage) for stage in ("queued", "sending", "queued")]
    notice = FakeDelay(0.5, 0.25, 0.25, 5.0, 3.0, 0.0)
    members = [automatic(clock, notice, delay_max=15.0), automatic(clock, FakeDelay(0.0))]
    members.append(ready(clock, shutdown_delay=2.0))
    with caplog.at_level(logging.INFO, "flask_lifecycle"):
        shutdown = begin(clock, *members, server=server)
        assert [clock.pass_wait() for _ in range(3)] == [0.5, 0.25, 0.25]
        for pause in (5.0, 3.0):
            assert clock.waits.get(timeout=BOUND) == pause
            notice.ask_again.set()
        assert clock.waits.get(timeout=BOUND) == 1.0
        server.left = []
        clock.advance(1.0)
        result = finish(shutdown)
    assert (notice.latest, notice.queued) == (15.0, 2)
    assert {phase.name: phase.duration for phase in result.phases}["delay"] == 2.0
    assert caplog.messages[0] == "shutdown begins: test (grace period 25.0 s, delay auto, at most 15.0 s)"
    (record,) = [record for record in caplog.records if record.getMessage().startswith("delay")]
    assert record.getMessage() == "delay ended in a fake way; in a fake way"
    assert record.__dict__["lifecycle_delay"] == 2.0


def test_one_deadline_the_shortest(clock: ManualClock) -> None:
    """Of several applications the shortest grace period, the longest delay and the longest linger hold."""
    server = FakeServer()
    members = ready(clock, grace_period=20.0, keepalive_linger=0.1), ready(clock, grace_period=9.0, shutdown_delay=2.0)
    shutdown = begin(clock, *members, server=server)
    assert shutdown.remaining() == 9.0
    assert clock.pass_wait() == 2.0
    finish(shutdown)
    assert server.calls[1:] == [("stop_accepting", 2.0), ("wait_idle", 1.0, 0.25)]


@pytest.mark.parametrize(("grace", "kept"), [(25.0, 0.25), (2.0, 0.1)])
def test_the_way_out_is_kept(free: threading.Event, grace: float, kept: float) -> None:
    """The phases keep a little of the grace period for the way out, so that the process is gone within it."""
    clock = ManualClock()
    member = FakeMember(clock, grace_period=grace, hook_reserve=0.1)
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "hangs", None)
    shutdown = begin(clock, member)
    assert clock.pass_wait() == pytest.approx(grace - kept)
    finish(shutdown)
    assert shutdown.remaining() == pytest.approx(kept)


@pytest.mark.parametrize("policy", ["auto", "serve", "reject"])
@pytest.mark.parametrize("server", ["ours", "foreign", None])
def test_policies(clock: ManualClock, policy: str, server: str | None) -> None:
    """After the delay: auto serves where the listener is ours and closed, reject refuses, serve serves."""
    refuses = policy == "reject" or (policy == "auto" and server != "ours")
    member = ready(clock, drain_policy=policy)
    seen: list[int] = []

    def look(*_arguments: float) -> bool:
        seen.append(member.refused)
        return True

    served_by = FakeServer(ours=server == "ours")
    vars(member.ledger)["wait_idle"] = vars(served_by)["wait_idle"] = look
    stop(member, clock=clock, server=served_by if server else None)
    assert seen[-1] == int(refuses)


def test_two_stuck_applications_share_the_deadline(clock: ManualClock) -> None:
    """The second application is not given the time again that the first has taken."""
    members = [ready(clock, grace_period=10.0, hook_reserve=3.0) for _ in range(2)]
    for member in members:
        member.ledger = StuckLedger(clock)
        enter(member.ledger)
    result = stop(*members, clock=clock)
    assert result.duration == 7.0
    assert len(result.abandoned) == 2


def test_order_of_hooks(clock: ManualClock) -> None:
    """on_drain functions run as registered, on_shutdown functions last in first out, those of a process group last."""
    members, ran = (FakeMember(clock), FakeMember(clock)), list[str]()
    members[1].hooks.add("shutdown", lambda: ran.append("once"), "once", None, group=True)
    for number, member in enumerate(members):
        for kind in ("drain", "shutdown"):
            for name in (f"{number}a", f"{number}b"):
                member.hooks.add(kind, functools.partial(ran.append, name), name, None)
    result = stop(*members, clock=clock)
    assert [[name for name in ran[:4] if name[0] == number] for number in "01"] == [["0a", "0b"], ["1a", "1b"]]
    assert ran[4:] == ["1b", "1a", "0b", "0a", "once"]
    assert sorted(hook.name for hook in result.hooks) == sorted(ran)
    assert [hook.name for hook in result.hooks if hook.name[0] == "0"] == ["0a", "0b", "0b", "0a"]


class Speechless(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no words")


def test_hooks_that_raise_or_hang_are_named_and_the_rest_run(
    clock: ManualClock, free: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that raises, or exits, is logged with its traceback; one that hangs is left behind after its timeout."""
    member, ran = FakeMember(clock, grace_period=10.0), list[str]()
    member.hooks.add("shutdown", lambda: ran.append("pool"), "pool", None)
    member.hooks.add("shutdown", lambda: free.wait(BOUND), "hangs", 1.5)
    for error in (ValueError("boom"), SystemExit(7), Speechless()):
        member.hooks.add("shutdown", raiser(error), type(error).__name__, None)
    shutdown = begin(clock, member)
    assert clock.pass_wait() == 1.5
    result = finish(shutdown)
    assert ran == ["pool"]
    failed = [
        HookRecord("Speechless", "shutdown", "failed", 0.0, "Speechless: (its __str__ fails)"),
        HookRecord("SystemExit", "shutdown", "failed", 0.0, "SystemExit: 7"),
        HookRecord("ValueError", "shutdown", "failed", 0.0, "ValueError: boom"),
    ]
    hung = HookRecord("hangs", "shutdown", "hung", 1.5, "")
    assert result.hooks == (*failed, hung, HookRecord("pool", "shutdown", "ok", 0.0, ""))
    assert (result.clean, result.exit_code) == (False, 1)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        *(f"on_shutdown '{hook.name}' failed after 0.0 s: {hook.error}" for hook in failed),
        "on_shutdown 'hangs' hung: it did not return within 1.5 s",
    ]
    assert [bool(record.exc_info) for record in warnings] == [True, True, True, False]
    assert warnings[0].__dict__["lifecycle_hook"] == "Speechless"


@pytest.mark.parametrize("timeout", [None, 100.0])
def test_share_of_the_remaining_time(clock: ManualClock, free: threading.Event, timeout: float | None) -> None:
    """A hook gets half of what is left, and the last one all of it; a longer timeout takes nothing from the others."""
    member = FakeMember(clock, grace_period=16.0)
    for name in ("last", "third", "second", "first"):
        member.hooks.add("shutdown", lambda: free.wait(BOUND), name, timeout)
    shutdown = begin(clock, member)
    assert [clock.pass_wait() for _ in range(4)] == [8.0, 4.0, 2.0, 2.0]
    result = finish(shutdown)
    assert [hook.name for hook in result.hooks if hook.outcome == "hung"] == ["first", "second", "third", "last"]
    assert result.duration == 16.0


def test_a_delay_that_is_cut_short(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Once nobody is let in any more no delay goes on: neither one of seconds, nor one that ends when it may."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    auto = automatic(clock, FakeDelay(5.0), delay_max=9.0)
    shutdown = begin(clock, ready(clock, shutdown_delay=7.0, grace_period=25.0), auto, server=FakeServer())
    until(lambda: clock.waits.qsize() == 1)
    shutdown.delay.cut()
    assert finish(shutdown).phases[1].duration == 0.0
    assert not any(message.startswith("delay") for message in caplog.messages)


@pytest.mark.parametrize("way", ["returns", "returns last", "cut"])
def test_an_on_drain_that_holds(
    clock: ManualClock, free: threading.Event, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """The listener stays open until the last function that holds it has returned, or until it is closed anyway."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    member, server, later = FakeMember(clock, grace_period=10.0, hook_reserve=2.0), FakeServer(), threading.Event()
    member.hooks.add("drain", lambda: None, "quick", None, hold=True)
    member.hooks.add("drain", lambda: free.wait(2 * BOUND), "holds", None, hold=True)
    if way != "returns last":
        member.hooks.add("drain", lambda: later.wait(BOUND), "slow", None)
    shutdown = begin(clock, member, server=server)
    until(lambda: shutdown.phase == "delay" and clock.waits.qsize() == 2)
    assert server.verbs == ["announce"]
    if way == "cut":
        shutdown.delay.cut()
    else:
        free.set()
    until(lambda: "stop_accepting" in server.verbs)
    assert way == "returns last" or not shutdown.done.is_set()
    free.set()
    later.set()
    assert finish(shutdown).clean
    assert caplog.messages.count("delay continues because an on_drain function keeps the listener open") == 1
    assert "phase 'delay' failed; the shutdown continues" not in caplog.messages


@pytest.mark.parametrize("hold", [True, False])
def test_a_hanging_on_drain_leaves_the_reserve(clock: ManualClock, free: threading.Event, hold: bool) -> None:
    """One that hangs is bounded by the drain, also if it holds the listener; the hooks behind it have their reserve."""
    member, server = FakeMember(clock, grace_period=10.0, hook_reserve=2.0), FakeServer()
    left: list[float | None] = []
    member.hooks.add("drain", lambda: free.wait(BOUND), "hangs", None, hold=hold)
    member.hooks.add("shutdown", lambda context: left.append(context.remaining()), "s", None)
    shutdown = begin(clock, member, server=server)
    until(lambda: shutdown.phase == ("delay" if hold else "drain") and clock.waits.qsize() == 2)
    assert (left, "stop_accepting" in server.verbs) == ([], not hold)
    clock.advance(8.0)
    result = finish(shutdown)
    assert left == [2.0]
    assert [(hook.name, hook.outcome) for hook in result.hooks] == [("hangs", "hung"), ("s", "ok")]
    assert "stop_accepting" in server.verbs


def test_the_context_argument_is_optional(clock: ManualClock) -> None:
    """A hook of any sort may take the context or nothing; one that has a name is called by it."""
    given: list[Any] = []

    class Takes:
        def __call__(self, context: Any) -> None:
            given.append(context)

    class WithoutSignature:
        __name__ = "silent"
        __signature__ = "none"

        def __call__(self) -> None:
            given.append(None)

    def takes_two(word: str, context: Any) -> None:
        given.append(context)

    hooks: list[tuple[str | None, Any, bool]] = [
        ("nothing", lambda: given.append(None), False),
        ("context", lambda context: given.append(context), True),
        ("optional", lambda context=None: given.append(context), False),
        ("starred", lambda *arguments, **_keywords: given.append(arguments), False),
        ("positional", lambda context, /, other=3: given.append(context), True),
        ("partial", functools.partial(takes_two, "word"), True),
        (None, Takes(), True),
        (None, WithoutSignature(), False),
    ]
    member = FakeMember(clock)
    for name, hook, _takes in reversed(hooks):
        member.hooks.add("shutdown", hook, name, None)
    records = stop(member, clock=clock).hooks
    assert {record.outcome for record in records} == {"ok"}
    assert [record.name for record in records][-2:] == ["Takes", "silent"]
    assert [isinstance(each, ShutdownContext) for each in given] == [takes for _name, _hook, takes in hooks]


def test_what_the_context_says(clock: ManualClock) -> None:
    """The context tells reason, signal, seconds left and what is in flight over all applications."""
    members = [FakeMember(clock, grace_period=10.0, hook_reserve=2.0) for _ in range(2)]
    bodies = [enter(member.ledger) for member in members]
    seen: list[Any] = []

    def hook(context: ShutdownContext) -> None:
        seen.append((context.reason, context.signal, context.remaining(), context.in_flight))
        for body in bodies:
            body.close()
        seen.append(context.in_flight)
        assert "shutdown" not in repr(context)

    members[0].hooks.add("drain", hook, None, None)
    shutdown = coordinate(clock, *members)
    shutdown.begin(StopRequest("SIGTERM", 15))
    assert finish(shutdown).clean
    assert seen == [("SIGTERM", 15, 10.0, 2), 0]


def test_the_drain_waits_for_a_startup_under_way(clock: ManualClock, free: threading.Event) -> None:
    """A shutdown that comes during the start-up lets it end before the hooks tear down what it builds."""
    member, order = FakeMember(clock, grace_period=10.0, hook_reserve=2.0), list[str]()
    entered = threading.Event()

    def build() -> None:
        entered.set()
        free.wait(BOUND)
        order.append("built")

    member.hooks.add("startup", build, None, None)
    member.hooks.add("shutdown", lambda: order.append("torn down"), "down", None)
    shutdown = coordinate(clock, member)
    process = Process(signals=False)
    process.shutdown, member.startup = shutdown, Startup(member, process)
    with running(member.startup.run):
        assert entered.wait(BOUND)
        shutdown.begin(StopRequest("test"))
        assert clock.waits.get(timeout=BOUND) == 8.0
        assert order == []
        free.set()
        finish(shutdown)
    assert order == ["built", "torn down"]


@pytest.mark.parametrize("second", ["begin", "attach"])
def test_what_comes_while_a_shutdown_begins(clock: ManualClock, second: str) -> None:
    """Another stop, or a server, that comes while the first stop is being begun waits for it, and is too late."""
    # first: takes the lock, asks for the members | second: wants the lock | first: sets the deadline, lets go.
    asked, go_on, answers = threading.Event(), threading.Event(), list[tuple[str, bool]]()

    def members() -> list[FakeMember]:
        if not go_on.is_set():
            asked.set()
            assert go_on.wait(BOUND)
        return []

    shutdown, server = coordinate(clock), FakeServer()
    shutdown.applications = members

    def come() -> None:
        answer = shutdown.attach(server) if second == "attach" else shutdown.begin(StopRequest("second"))
        answers.append(("second", answer))

    with running(lambda: answers.append(("first", shutdown.begin(StopRequest("first"))))):
        assert asked.wait(BOUND)
        with running(come):
            assert answers == []
            go_on.set()
    finish(shutdown)
    assert sorted(answers) == [("first", True), ("second", False)]
    assert (shutdown.request.reason, server.calls, shutdown.server) == ("first", [], None)


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What faulthandler's watchdog is told where no thread can be started any more, as at exit on Python 3.12."""
    told: list[Any] = []

    def dump_later(seconds: float, **options: bool) -> None:
        told.append((seconds, options["exit"]))

    monkeypatch.setattr(threading.Thread, "start", raiser(RuntimeError("can't create new thread")))
    monkeypatch.setattr(faulthandler, "dump_traceback_later", dump_later)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("cancelled"))
    return told


def test_shutdown_without_threads(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, watchdog: list[Any]) -> None:
    """Where no thread can be started, shutdown and hooks run in the calling thread, under a watchdog; nothing waits."""
    member, ran, waited = FakeMember(clock, grace_period=10.0, hook_reserve=2.0), list[Any](), list[float]()

    def wait(event: threading.Event, timeout: float) -> bool:
        if not event.is_set():
            waited.append(timeout)
        return event.is_set()

    monkeypatch.setattr(clock, "wait", wait)
    for kind in ("drain", "shutdown"):
        member.hooks.add(kind, lambda: ran.append(threading.current_thread()), "first", None)
    member.hooks.add("shutdown", raiser(ValueError("boom")), None, 2.0)
    shutdown = coordinate(clock, member)
    assert shutdown.begin(StopRequest("interpreter exit"))
    result = shutdown.wait()
    assert ran == [threading.current_thread()] * 2
    assert [hook.outcome for hook in result.hooks] == ["ok", "failed", "ok"]
    assert [told for told in watchdog if told != "cancelled"] == [(8.0, True), (2.0, True), (10.0, True)]
    assert watchdog[1::2] == ["cancelled"] * 3
    assert max(waited, default=0.0) == 0.0


def test_a_hook_without_limit_and_without_threads(watchdog: list[Any]) -> None:
    """Where no thread can be started, no watchdog ends a hook that has no limit."""
    member = FakeMember()
    member.hooks.add("startup", lambda: None, "h", None)
    Startup(member, Process(signals=False)).run()
    assert (member.machine.state, watchdog) == (State.READY, ["cancelled"])
