"""The health checks: registry and runner. Texts of bad registrations are in test_bad_input."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from flask_lifecycle import Check
from flask_lifecycle.checks import CheckReport, Registry, overall
from tests._fakes import BOUND, running, until

# So short that a probe gives up at once, and never reached by a check that answers.
SHORT = 0.001


def no_context() -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


def registry(*checks: Check) -> Registry:
    """A registry of these."""
    made = Registry()
    for check in checks:
        made.add(check)
    return made


def passes() -> None:
    """Nothing is wrong."""


def fails() -> None:
    raise ValueError("broken")


class Hanging:
    """A check that hangs until the test frees it, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Event()
        self.free = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.entered.set()
        assert self.free.wait(BOUND)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A hanging check, freed when the test is over."""
    check = Hanging()
    yield check
    check.free.set()


def lifecycle_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lifecycle-check")]


# -- what a check says --------------------------------------------------------------------------------------------


def test_nothing_returned_passes() -> None:
    """A check that returns nothing passes."""
    [report] = registry(Check("one", passes)).run(None, no_context)
    assert (report.name, report.status, report.observed, report.error, report.hanging) == (
        "one",
        "pass",
        {},
        None,
        False,
    )
    assert 0 <= report.duration < BOUND


def test_a_mapping_is_what_it_saw() -> None:
    """A check that returns a mapping passes and has observed that."""
    [report] = registry(Check("one", lambda: {"connections": 3})).run(None, no_context)
    assert (report.status, report.observed) == ("pass", {"connections": 3})


@pytest.mark.parametrize("returned", [True, False, 0, "text"])
def test_other_results_pass(returned: Any) -> None:
    """Whatever else a check returns is no failure: only raising is."""
    [report] = registry(Check("one", lambda: returned)).run(None, no_context)
    assert (report.status, report.observed) == ("pass", {})


@pytest.mark.parametrize(("critical", "status"), [(True, "fail"), (False, "warn")])
def test_raising_fails_or_warns(critical: bool, status: str) -> None:
    """A check that raises fails the probe, or warns if it is not critical; the exception is kept for the log."""
    [report] = registry(Check("one", fails, critical=critical)).run(None, no_context)
    assert report.status == status
    assert isinstance(report.error, ValueError)
    assert not report.hanging


def test_system_exit_fails() -> None:
    """A check that exits fails; it does not end its thread unheard."""

    def leaves() -> None:
        raise SystemExit(1)

    [report] = registry(Check("one", leaves)).run(None, no_context)
    assert report.status == "fail"
    assert isinstance(report.error, SystemExit)


def test_check_runs_in_the_context() -> None:
    """A check runs inside the application context, in its own thread; a context that fails is the check's failure."""
    inside: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        inside.append("in")
        yield
        inside.append("out")

    def check() -> None:
        inside.append(threading.current_thread().name)

    registry(Check("db", check)).run(None, context)
    assert inside == ["in", "lifecycle-check-db", "out"]

    def broken() -> AbstractContextManager[Any]:
        raise LookupError("no context")

    [report] = registry(Check("db", check)).run(None, broken)
    assert report.status == "fail"


def test_overall_is_the_worst() -> None:
    """The worst of the statuses decides; without any check it is pass."""

    def reports(*statuses: str) -> list[CheckReport]:
        return [CheckReport("x", status, 0.0) for status in statuses]

    assert overall(reports()) == "pass"
    assert overall(reports("pass", "pass")) == "pass"
    assert overall(reports("pass", "warn", "pass")) == "warn"
    assert overall(reports("warn", "fail", "pass")) == "fail"


# -- registering --------------------------------------------------------------------------------------------------


def test_checks_of_a_group_in_order() -> None:
    """A probe asks the checks of its group in the order of registration; no group asks all."""
    made = registry(
        Check("a", passes, groups=("live", "ready")), Check("b", passes), Check("c", passes, groups=("startup",))
    )
    assert [report.name for report in made.run(None, no_context)] == ["a", "b", "c"]
    assert [report.name for report in made.run("ready", no_context)] == ["a", "b"]
    assert [report.name for report in made.run("live", no_context)] == ["a"]
    assert [report.name for report in made.run("startup", no_context)] == ["c"]


def test_a_check_added_later_is_seen() -> None:
    """The next probe sees a check that was just registered."""
    made = registry(Check("a", passes))
    made.run(None, no_context)
    made.add(Check("b", passes))
    assert [report.name for report in made.run(None, no_context)] == ["a", "b"]


def test_two_registrations_of_one_name_at_once() -> None:
    """Of two threads that register one name at the same moment exactly one is refused."""
    for _ in range(20):
        made, barrier = Registry(), threading.Barrier(2, timeout=BOUND)
        refused: list[str] = []

        def add(made: Registry = made, barrier: threading.Barrier = barrier, refused: list[str] = refused) -> None:
            barrier.wait()
            try:
                made.add(Check("db", passes))
            except ValueError as error:
                refused.append(str(error))

        with running(add), running(add):
            pass
        assert refused == ["There is a check 'db' already; give this one another name."]


def test_groups_become_a_tuple() -> None:
    """Groups may come as any collection and are kept as a tuple."""
    assert Check("a", passes, groups=["live"]).groups == ("live",)  # type: ignore[arg-type]


def test_check_of_a_check_is_itself() -> None:
    """A Check is taken as it is."""
    check = Check("a", passes)
    assert Check.of(check) is check


def test_check_of_an_object() -> None:
    """A callable object brings (some of) a check's attributes, and defaults for the rest."""

    class Ping:
        name = "ping"
        timeout = 0.5
        critical = False

        def __call__(self) -> None: ...

    ping = Ping()
    check = Check.of(ping)
    assert check == Check("ping", ping, timeout=0.5, critical=False)


def test_check_of_a_function_an_object_and_a_partial() -> None:
    """The name is that of the function, or of the object's class."""

    class Ping:
        def __call__(self) -> None: ...

    assert Check.of(passes).name == "passes"
    assert Check.of(Ping()).name == "Ping"
    assert Check.of(functools.partial(passes)).name == "partial"


# -- side by side, one thread each --------------------------------------------------------------------------------


def test_checks_run_side_by_side() -> None:
    """All the checks that a probe asks for run at the same time: they meet at a barrier."""
    barrier = threading.Barrier(3, timeout=BOUND)

    def meet() -> None:
        barrier.wait()

    reports = registry(*(Check(name, meet, timeout=BOUND) for name in "abc")).run(None, no_context)
    assert [report.status for report in reports] == ["pass"] * 3


def test_a_hanging_check_does_not_hold_the_others(hanging: Hanging) -> None:
    """A check past its timeout fails with what it is, and those beside it have answered."""
    reports = registry(Check("hung", hanging, timeout=SHORT), Check("well", passes, timeout=BOUND)).run(
        None, no_context
    )
    assert [(report.status, report.hanging) for report in reports] == [("fail", True), ("pass", False)]
    assert str(reports[0].error).startswith("no answer within 0.001 s, hanging since 0.0 s")
    assert isinstance(reports[0].error, TimeoutError)


def test_a_hung_check_has_one_thread_over_a_thousand_probes(hanging: Hanging) -> None:
    """A hung check costs one thread however often it is asked, and it is asked once."""
    made = registry(Check("hung", hanging, timeout=SHORT))
    before = threading.active_count()
    for _ in range(1000):
        [report] = made.run(None, no_context)
        assert report.hanging
    assert threading.active_count() == before + 1
    assert lifecycle_threads() == ["lifecycle-check-hung"]
    assert hanging.calls == 1


def test_hanging_since_grows(hanging: Hanging) -> None:
    """A check that hangs is reported as hanging since its one run began."""
    made = registry(Check("hung", hanging, timeout=SHORT))
    first = made.run(None, no_context)[0].duration
    until(lambda: made.run(None, no_context)[0].duration > first)


def test_a_check_past_its_timeout_is_not_waited_for(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that finds a run past its timeout reports it without waiting."""
    made = registry(Check("hung", hanging, timeout=SHORT))
    made.run(None, no_context)
    waited: list[float] = []
    run = made._slots["hung"]._run
    assert run is not None
    monkeypatch.setattr(run.hurried, "wait", lambda timeout: waited.append(timeout))
    assert made.run(None, no_context)[0].hanging
    assert waited == [0.0]


def test_back_again_after_it_returned(hanging: Hanging) -> None:
    """A check that hung is asked anew once it has returned, and passes again."""
    made = registry(Check("hung", hanging, timeout=SHORT))
    made.run(None, no_context)
    hanging.free.set()
    until(lambda: not lifecycle_threads())
    made._slots["hung"].check.__dict__["timeout"] = BOUND
    [report] = made.run(None, no_context)
    assert (report.status, report.hanging, hanging.calls) == ("pass", False, 2)


def test_single_flight(hanging: Hanging) -> None:
    """Probes that come while a check runs join that run and get its answer."""
    made = registry(Check("slow", hanging, timeout=BOUND))
    answers: list[str] = []

    def probe() -> None:
        answers.append(made.run(None, no_context)[0].status)

    with running(probe):
        assert hanging.entered.wait(BOUND)
        run = made._slots["slow"]._run
        with running(probe), running(probe):
            assert made._slots["slow"].join_or_start(no_context) is run
            hanging.free.set()
    assert answers == ["pass"] * 3
    assert hanging.calls == 1


def test_every_probe_asks_anew() -> None:
    """A run that has ended is not reused: a check that recovers is seen at the next probe."""
    answers: Iterator[Exception | None] = iter([ValueError("down"), None])

    def check() -> None:
        if (error := next(answers)) is not None:
            raise error

    made = registry(Check("db", check))
    assert [made.run(None, no_context)[0].status for _ in range(2)] == ["fail", "pass"]


def test_no_lock_is_held_while_a_check_runs(hanging: Hanging) -> None:
    """While a check runs others can be registered, and its own slot be looked at."""
    made = registry(Check("slow", hanging, timeout=BOUND))
    with running(lambda: made.run(None, no_context)):
        assert hanging.entered.wait(BOUND)
        made.add(Check("other", passes))
        assert not made._slots["slow"]._lock.locked()
        assert not made._lock.locked()
        hanging.free.set()


def test_a_check_may_ask_the_checks(hanging: Hanging) -> None:
    """A check that itself registers another one does not deadlock."""
    made = Registry()
    made.add(Check("adds", lambda: made.add(Check("added", passes)), timeout=BOUND))
    assert made.run(None, no_context)[0].status == "pass"


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the check fails, and the probe is answered; the next one tries again."""
    made = registry(Check("db", passes))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        [report] = made.run(None, no_context)
    assert (report.status, str(report.error)) == ("fail", "can't start new thread")
    assert made.run(None, no_context)[0].status == "pass"


# -- the log ------------------------------------------------------------------------------------------------------


def test_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A check's failure is logged when it begins and when it ends, and not at every probe."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    down = [True]

    def check() -> None:
        if down[0]:
            raise ValueError("secret")

    made = registry(Check("db", check))
    for state in (False, True, True, True, False, False):
        down[0] = state
        made.run(None, no_context)
    assert [(r.levelname, r.getMessage().split(" after ")[0]) for r in caplog.records] == [
        ("WARNING", "check 'db' fails"),
        ("INFO", "check 'db' passes again"),
    ]
    assert caplog.records[0].exc_info is not None
    assert str(caplog.records[0].exc_info[1]) == "secret"
    assert caplog.records[0].__dict__["lifecycle_check"] == "db"


def test_a_registered_check_is_frozen() -> None:
    """A check cannot be changed once it was made."""
    with pytest.raises(AttributeError, match=r"^(cannot assign to field|can't set attribute)"):
        Check("a", passes).timeout = 3.0  # type: ignore[misc]


def test_a_drain_hurries_every_probe_but_liveness(hanging: Hanging) -> None:
    """When a drain begins nobody waits for a hung check any more, but for liveness; the check itself goes on."""
    made = registry(Check("hung", hanging, timeout=BOUND, groups=("live", "ready")))
    answers: list[tuple[str, bool]] = []

    def probe(group: str) -> None:
        answers.append((group, made.run(group, no_context)[0].hanging))

    with running(lambda: probe("live")):
        with running(lambda: probe("ready")):
            assert hanging.entered.wait(BOUND)
            made.hurry()
        assert answers == [("ready", True)]
        hanging.free.set()
    assert answers == [("ready", True), ("live", False)]
