"""Work that is not a request: what an item counts, and what a drain makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, Work, WorkInfo
from flask_lifecycle._core.work import WorkLedger
from tests._fakes import BOUND, FakeMember, ManualClock, in_child, running, stop, until, whole


def names(lifecycle: Lifecycle) -> list[str]:
    return [item.name for item in lifecycle.work_items()]


def test_an_item_counts_inside_its_block(lifecycle: Lifecycle) -> None:
    """Work is under way inside the block, oldest first, with what it works on, as it is now, its age and its thread."""
    older, item = lifecycle.work("older"), lifecycle.work("import", name="x", self="y")
    for _ in range(2):
        with item:
            before = lifecycle.work_items()
            item.info["row"] = 2  # type: ignore[index]  # a plain dict
            after = lifecycle.work_items()
        assert names(lifecycle) == ["older"]
        assert not item.live
        del item.info["row"]  # type: ignore[attr-defined]
    older.done()
    older.done()
    with pytest.raises(ValueError, match=whole("boom")), item:
        raise ValueError("boom")
    assert lifecycle.work_items() == ()
    assert [info.name for info in before] == ["older", "import"]
    assert before[0].age >= before[1].age >= 0
    assert before[1].thread == threading.current_thread().name
    assert [infos[1].info for infos in (before, after)] == [
        {"name": "x", "self": "y"},
        {"name": "x", "self": "y", "row": 2},
    ]


class Renumbered(threading.Thread):
    """A thread that the system has given the number of the main one, as it does when that has ended."""

    @property
    def ident(self) -> int | None:
        return threading.main_thread().ident


@pytest.mark.parametrize("kind", [threading.Thread, Renumbered])
def test_an_item_of_a_thread_that_has_ended(lifecycle: Lifecycle, kind: type[threading.Thread]) -> None:
    """An item outlives the thread that began it, and then names none, nor the one that has its number now."""
    thread = kind(target=lambda: lifecycle.work("left behind"))
    thread.start()
    thread.join(BOUND)
    (info,) = lifecycle.work_items(stacks=True)
    assert (info.name, info.thread, info.stack) == ("left behind", "", "")


class Mute:
    """An object that fails to say what it is, and is told by its type."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (WorkInfo("a", 3.14, info={"file": "a\nb", "rows": 5}), "work 'a' (file='a\\nb', rows=5) after 3.1 s"),
        (WorkInfo("import", 1.0, info={"what": Mute()}), "work 'import' (what=<Mute>) after 1.0 s"),
        (WorkInfo("a\x1b[2J", 0.0), "work 'a\\x1b[2J' after 0.0 s"),
        (WorkInfo("x", 0.0, info={"a\nb": 1}), "work 'x' ('a\\nb'=1) after 0.0 s"),
        (WorkInfo("x", 0.0, info={"y": "z" * 300}), f"work 'x' (y='{'z' * 196}...) after 0.0 s"),
    ],
)
def test_work_reads_as_logged(info: WorkInfo, text: str) -> None:
    """What work says of itself stays on one line of the log, and is short."""
    assert str(info) == text


def test_each_call_of_a_decorated_function_is_work(lifecycle: Lifecycle) -> None:
    """A decorated function is no work, each of its calls is, and it keeps its name and its result."""

    @lifecycle.work("double", kind="sum")
    def double(number: int) -> int:
        told = [(item.name, item.info) for item in lifecycle.work_items()]
        assert told == [("double", {"kind": "sum"})] * number
        return 2 * number if number == 2 else double(number + 1)

    assert lifecycle.work_items() == ()
    assert double(1) == 4
    assert lifecycle.work_items() == ()
    assert double.__name__ == "double"


def test_a_decorated_coroutine_function_is_work_until_it_ends(lifecycle: Lifecycle) -> None:
    """An async function, or object, is work while it is awaited, not only while its coroutine is made."""

    async def fetch() -> list[str]:
        await asyncio.sleep(0)
        return names(lifecycle)

    class Fetches:
        async def __call__(self) -> list[str]:
            return names(lifecycle)

    for function in (fetch, Fetches()):
        coroutine: Any = lifecycle.work("fetch")(function)()
        assert lifecycle.work_items() == ()
        assert asyncio.run(coroutine) == ["fetch"]
        assert lifecycle.work_items() == ()


def test_a_decorated_generator_is_work_until_it_is_closed(lifecycle: Lifecycle) -> None:
    """A generator is work from its first step until it ends or is closed."""

    @lifecycle.work("rows")
    def rows() -> Generator[list[str], None, None]:
        yield names(lifecycle)
        yield names(lifecycle)

    assert list(rows()) == [["rows"], ["rows"]]
    assert lifecycle.work_items() == ()
    half = rows()
    assert next(half) == ["rows"]
    half.close()
    assert lifecycle.work_items() == ()


def test_submitted_work_counts_until_its_future_is_done(lifecycle: Lifecycle) -> None:
    """A call given to an executor is work from the submission on, named for its function and with its thread."""
    begun, free = threading.Event(), threading.Event()

    def crunch(number: int, *, factor: int) -> int:
        begun.set()
        assert free.wait(BOUND)
        return number * factor

    with ThreadPoolExecutor(1, thread_name_prefix="crunchers") as pool:
        future: Future[int] = lifecycle.submit(pool, crunch, 3, factor=2)
        queued = lifecycle.submit(pool, crunch, 4, factor=2)
        assert begun.wait(BOUND)
        first, second = lifecycle.work_items()
        assert (first.name, first.thread, second.name) == ("crunch", "crunchers_0", "crunch")
        assert queued.cancel()
        assert names(lifecycle) == ["crunch"]
        free.set()
        assert future.result(BOUND) == 6
    until(lambda: lifecycle.work_items() == ())


def test_how_submitted_work_may_end(lifecycle: Lifecycle) -> None:
    """It is over when it fails, when another process has done it, and when the executor takes no more."""
    keywords = {"executor": 1, "function": 2, "ledger": 3, "self": 4}
    with ThreadPoolExecutor(1) as threads, ProcessPoolExecutor(1) as processes:
        assert isinstance(lifecycle.submit(threads, int, "x").exception(BOUND), ValueError)
        assert lifecycle.submit(threads, dict, **keywords).result(BOUND) == keywords
        assert lifecycle.submit(processes, abs, -3).result(3 * BOUND) == 3
    with pytest.raises(RuntimeError, match=whole("cannot schedule new futures after shutdown")):
        lifecycle.submit(threads, print)
    until(lambda: lifecycle.work_items() == ())


def test_work_that_does_not_end_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    """At the deadline work is logged with its age and its stack, once for each name, and the exit code is 1."""
    clock = ManualClock()
    member = FakeMember(clock, grace_period=10.0, hook_reserve=2.0)

    def wait_idle(timeout: float) -> bool:
        if member.work.active:
            clock.advance(timeout)
        return not member.work.active

    vars(member.work)["wait_idle"] = wait_idle  # it never ends
    Work(member.work, "import", {"file": "a.csv"}).__enter__()
    for number in range(50):
        Work(member.work, "mail", {"id": number}).__enter__()
    report = stop(member, clock=clock)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0].splitlines()[0] == (
        "halfway through the drain, waiting for work 'import' (file='a.csv') after 3.9 s; its thread 'MainThread' is at"
    )
    error, mail = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.getMessage().startswith("abandoned work 'import' (file='a.csv') after 7.8 s; its thread 'MainThread'")
    assert "in test_work_that_does_not_end_is_abandoned" in error.getMessage()
    assert (error.__dict__["lifecycle_work"], error.__dict__["lifecycle_age"]) == ("import", 7.75)
    assert mail.getMessage().startswith("abandoned work 'mail' (id=0) after 7.8 s and 49 more of this name;")
    assert {info.age for info in report.work} == {7.75}
    assert (report.exit_code, str(report)) == (1, "51 abandoned, exit 1")


def test_work_that_begins_after_the_drain_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that does not look at the drain has lost what it begins, once for all applications of one Lifecycle."""
    members = FakeMember(), FakeMember()
    members[1].work = work = members[0].work
    members[0].hooks.add("shutdown", lambda: Work(work, "late", {}), "starts work", None)
    report = stop(*members)
    assert [info.name for info in report.work] == ["late"]
    assert sum(message.startswith("abandoned work 'late'") for message in caplog.messages) == 1


def test_a_forked_child_has_no_work(lifecycle: Lifecycle) -> None:
    """The items of a process are no work of its children."""
    with lifecycle.work("parent's"):
        assert in_child(lambda: len(lifecycle.work_items()) + lifecycle._registered.work.working) == 0
        assert names(lifecycle) == ["parent's"]


def test_an_item_tells_the_thread_that_has_entered_it(lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item entered in another thread has its name and stack, which is looked at once; until then it has no stack."""
    items, entered, end = [lifecycle.work("job") for _ in range(100)], threading.Event(), threading.Event()
    assert {(info.thread, info.stack) for info in lifecycle.work_items(stacks=True)} == {("MainThread", "")}
    looks, format_stack = list[Any](), traceback.format_stack

    def look(*arguments: Any) -> list[str]:
        looks.append(arguments)
        return format_stack(*arguments)

    def carry_out() -> None:
        with contextlib.ExitStack() as stack:
            for item in items:
                stack.enter_context(item)
            entered.set()
            end.wait(BOUND)

    monkeypatch.setattr("traceback.format_stack", look)
    with running(carry_out, "worker"):
        assert entered.wait(BOUND)
        infos = lifecycle.work_items(stacks=True)
        end.set()
    assert {info.thread for info in infos} == {"worker"}
    assert all("in carry_out" in info.stack for info in infos)
    assert len(looks) == 1


def test_work_that_begins_other_work_is_waited_for_to_its_end() -> None:
    """However often work goes over from one application to the other, the drain waits for the last of it."""
    # The first ledger is waited for and found idle, then the second; what ends there begins work in the first.
    left = list(range(12))

    class Passing(WorkLedger):
        other: WorkLedger

        def wait_idle(self, timeout: float) -> bool:
            for item in list(self.active):
                if left:
                    left.pop()
                    Work(self.other, "job", {})
                item.done()
            return super().wait_idle(timeout)

    members = FakeMember(), FakeMember()
    ledgers = Passing(), Passing()
    for member, ledger, other in zip(members, ledgers, reversed(ledgers), strict=True):
        member.work, ledger.other = ledger, other
    Work(ledgers[0], "job", {})
    report = stop(*members)
    assert (left, report.work, report.clean) == ([], (), True)


class LeavingWhenLookedAt(dict[Any, None]):
    """The entries of a tally, of which the last leaves when somebody has looked whether there is one."""

    leave: Any = None

    def __bool__(self) -> bool:
        there = len(self) > 0
        if there:
            self.leave()
        return there


def test_an_item_that_ends_in_the_thread_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer that ends the last item in the waiting thread blocks it neither with the lock nor unheard."""
    # waiter: looks, one is there | finalizer in its thread: leaves, nobody sleeps yet | waiter: sleeps.
    monkeypatch.setattr("flask_lifecycle._core.tally.LOOK", 0.001)
    ledger = WorkLedger()
    ledger.active = active = LeavingWhenLookedAt()
    item = Work(ledger, "job", {})
    active.leave = item.done
    with running(lambda: ledger.wait_idle(3600.0)):
        pass
    assert not item.live
    active.leave = lambda: None
    item = Work(ledger, "job", {})
    assert not ledger.wait_idle(0.01), "the wait is over when its time is"
    item.done()
