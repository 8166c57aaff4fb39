"""The engine: what runs when, what it says, and what cannot hang it. Bad registrations are in test_bad_input."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from flask_lifecycle import Check, CheckContext, CheckResult, HealthCheckError, State
from flask_lifecycle._scheduler import Scheduler
from flask_lifecycle.checks import CheckReport, _engine
from flask_lifecycle.checks._damping import Damper
from flask_lifecycle.checks._engine import JITTER, Engine, overall
from tests._fakes import BOUND, running, until, whole

# So short that a probe gives up at once, and never reached by a check that answers.
SHORT = 0.001


class FakeApp:
    """An application as the engine sees it."""

    def __init__(self) -> None:
        self.context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def ensure_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import asyncio

        return lambda *arguments: asyncio.run(function(*arguments))

    def check_context(self) -> CheckContext:
        return CheckContext(State.READY, "started", 3, None)


class Engineered:
    """An engine with a clock of the test's own, which stands still unless it is moved, and the changes it told."""

    def __init__(self, *checks: Check) -> None:
        self.app = FakeApp()
        self.checks = list(checks)
        self.changes: list[tuple[str, str, str, str]] = []
        self.clock = 1000.0
        self.engine = Engine(self.app, lambda: self.checks, self.changed, now=lambda: self.clock)

    def changed(self, check: Check, old: str, new: str, reason: str) -> None:
        self.changes.append((check.name, old, new, reason))

    def probe(self, timeout: float = BOUND) -> tuple[CheckReport, ...]:
        return self.engine.run(lambda check: True, timeout)

    def one(self) -> CheckReport:
        """Probe the only check."""
        [report] = self.probe()
        return report

    def settled(self) -> CheckReport:
        """Probe the only check, and wait until its change is told as well: the probe does not wait for that."""
        report = self.one()
        until(lambda: not lifecycle_threads())
        return report

    def later(self, seconds: float) -> Engineered:
        self.clock += seconds
        return self


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


class Switch:
    """A check that fails while it is told to, and counts its calls."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.down:
            raise HealthCheckError("down")


def lifecycle_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lifecycle-check")]


# -- what a check says --------------------------------------------------------------------------------------------


def test_nothing_returned_passes() -> None:
    """A check that returns nothing passes."""
    report = Engineered(Check("one", passes)).one()
    assert (report.name, report.status, report.result, report.error) == ("one", "pass", CheckResult(), None)
    assert (report.hanging, report.output, report.causes, report.damped) == (False, "", {}, 0)


def test_a_mapping_is_what_it_saw() -> None:
    """A check that returns a mapping passes and has observed that."""
    report = Engineered(Check("one", lambda: {"connections": 3})).one()
    assert (report.status, report.result.observed) == ("pass", {"connections": 3})


@pytest.mark.parametrize("returned", [False, (False, "postgres://admin@db")])
def test_false_is_a_failure(returned: Any) -> None:
    """A check that returns False fails, also with a text behind it as other packages have it, which is not told."""
    report = Engineered(Check("one", lambda: returned)).one()
    assert (report.status, report.output) == ("fail", "the check returned False")


@pytest.mark.parametrize("returned", [True, 0, "text", (True, "fine"), ()])
def test_other_results_pass(returned: Any) -> None:
    """Whatever else a check returns is no failure, as the answer of a client that it has asked."""
    report = Engineered(Check("one", lambda: returned)).one()
    assert (report.status, report.result) == ("pass", CheckResult())


@pytest.mark.parametrize("status", ["pass", "warn", "fail"])
def test_a_result_says_its_status(status: str) -> None:
    """A check may return its status, a public text and the figure that matters."""
    result = CheckResult(status, "nearly full", {"free": 3}, 97, "%")
    report = Engineered(Check("one", lambda: result)).one()
    assert (report.status, report.output, report.result) == (status, "nearly full", result)


def test_a_result_of_no_known_status_fails() -> None:
    """A status that there is not is the check's failure, and the log's matter."""
    report = Engineered(Check("one", lambda: CheckResult("ok"))).one()
    assert (report.status, report.output) == ("fail", "ValueError")
    assert str(report.error) == "A check's status must be one of pass, warn, fail, not 'ok'."


@pytest.mark.parametrize(("critical", "status"), [(True, "fail"), (False, "warn")])
def test_raising_fails_or_warns(critical: bool, status: str) -> None:
    """A check that raises fails the probe, or warns if it is not critical; the exception is kept for the log."""
    report = Engineered(Check("one", fails, critical=critical)).one()
    assert report.status == status
    assert isinstance(report.error, ValueError)
    assert report.output == "ValueError"


def test_system_exit_fails() -> None:
    """A check that exits fails; it does not end its thread unheard."""

    def leaves() -> None:
        raise SystemExit(1)

    report = Engineered(Check("one", leaves)).one()
    assert report.status == "fail"
    assert isinstance(report.error, SystemExit)


def test_the_authors_words_are_public() -> None:
    """Of a HealthCheckError the message and its causes are told, of what else is among them no more than the type."""
    inner = HealthCheckError("the replica lags", ["by 9 s", LookupError("db-7.internal")])

    def check() -> None:
        raise HealthCheckError("no database", {"primary": "gone", "replica": inner, "both": KeyError("x")})

    report = Engineered(Check("db", check)).one()
    assert report.output == "no database"
    assert report.causes == {
        "primary": "gone",
        "replica": "the replica lags",
        "replica.1": "by 9 s",
        "replica.2": "LookupError",
        "both": "KeyError",
    }


def test_what_has_not_run_does_not_pass() -> None:
    """A check that returns a coroutine or a generator has found out nothing, and fails."""

    async def coroutine() -> None:
        """What would fail if it ran."""

    def generator() -> Iterator[None]:
        yield

    made = Engineered(Check("coroutine", lambda: coroutine()), Check("generator", generator))
    assert [(report.status, str(report.error)) for report in made.probe()] == [
        ("fail", f"The check returned a {kind}, of which nothing has run; register an 'async def' itself.")
        for kind in ("coroutine", "generator")
    ]


@pytest.mark.parametrize("code", [99, 600, "500", True])
def test_a_status_that_there_is_not(code: Any) -> None:
    """A HealthCheckError refuses what is no status of HTTP, before a client has to make sense of it."""
    message = f"The status_code of a HealthCheckError must be an HTTP status from 200 to 599, not {code!r}."
    with pytest.raises(ValueError, match=whole(message)):
        HealthCheckError("down", status_code=code)


@pytest.mark.parametrize("causes", ["a text", {"a", "set"}, None, 3])
def test_causes_that_are_no_list(causes: Any) -> None:
    """Causes that have neither names nor an order are not told, and the failure is all the same."""

    def check() -> None:
        raise HealthCheckError("no database", causes)

    report = Engineered(Check("db", check)).one()
    assert (report.status, report.output, report.causes) == ("fail", "no database", {})


def test_a_cause_that_is_its_own() -> None:
    """Causes that go round in circles are told a few times, and no more."""
    error = HealthCheckError("round")
    error.causes = [error]

    def check() -> None:
        raise error

    assert len(Engineered(Check("db", check)).one().causes) == 5


class Secretive(dict[str, str]):
    """A mapping that does not tell what is in it, as one that is written to meanwhile."""

    def items(self) -> Any:
        raise RuntimeError("dictionary changed size during iteration")


class Broken(ValueError):
    """What looks like an exception group and is none."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("not yet")


@pytest.mark.parametrize("error", [HealthCheckError("down", Secretive(db="gone")), Broken("down")])
def test_causes_that_cannot_be_told(error: Exception) -> None:
    """A failure that fails to tell its causes is told without them, and the probe is answered."""

    def check() -> None:
        raise error

    report = Engineered(Check("db", check)).one()
    assert (report.status, report.causes) == ("fail", {})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups before Python 3.11")
def test_exception_groups_are_unfolded() -> None:
    """The members of an exception group are told one by one, as causes are."""
    group = __builtins__["ExceptionGroup"]  # type: ignore[index]  # its name is unknown to 3.10

    def check() -> None:
        raise group("several", [HealthCheckError("one is down"), ValueError("secret")])

    assert Engineered(Check("db", check)).one().causes == {"1": "one is down", "2": "ValueError"}


def test_check_runs_in_the_context() -> None:
    """A check runs inside the application context, in its own thread; a context that fails is the check's failure."""
    inside: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        inside.append("in")
        yield
        inside.append("out")

    made = Engineered(Check("db", lambda: inside.append(threading.current_thread().name), ttl=0))
    made.app.context = context
    made.one()
    assert inside == ["in", "lifecycle-check-db", "out"]

    def broken() -> AbstractContextManager[Any]:
        raise LookupError("no context")

    made.app.context = broken
    assert made.one().status == "fail"


def test_a_check_may_take_the_context() -> None:
    """A check that takes an argument gets what it may ask about the application."""
    given: list[CheckContext] = []
    Engineered(Check("one", given.append), Check("two", lambda context: given.append(context))).probe()
    assert given[-1] == CheckContext(State.READY, "started", 3, None)


def test_async_checks() -> None:
    """A coroutine function is awaited, as a function and as the method of an object, with and without the context."""

    async def function() -> dict[str, int]:
        return {"seen": 1}

    class Object:
        async def __call__(self, context: CheckContext) -> dict[str, int]:
            return {"seen": context.in_flight}

    reports = Engineered(Check("function", function), Check("object", Object())).probe()
    assert [report.result.observed for report in reports] == [{"seen": 1}, {"seen": 3}]


def test_overall_is_the_worst() -> None:
    """The worst of the statuses decides; without any it is pass."""
    assert overall([]) == "pass"
    assert overall(["pass", "pass"]) == "pass"
    assert overall(["pass", "warn", "pass"]) == "warn"
    assert overall(["warn", "fail", "pass"]) == "fail"


# -- making checks ------------------------------------------------------------------------------------------------


def test_groups_become_a_tuple() -> None:
    """Groups may come as any collection and are kept as a tuple."""
    assert Check("a", passes, groups=["live"]).groups == ("live",)  # type: ignore[arg-type]


def test_check_of_a_check() -> None:
    """A Check is taken as it is, but for what is said otherwise."""
    check = Check("a", passes, timeout=3.0)
    assert Check.of(check) == check
    assert Check.of(check, name="b", critical=False) == Check("b", passes, timeout=3.0, critical=False)


def test_check_of_an_object() -> None:
    """A callable object brings (some of) a check's attributes; options go over them, and defaults under."""

    class Ping:
        name = "ping"
        timeout = 0.5
        critical = False

        def __call__(self) -> None: ...

    ping = Ping()
    assert Check.of(ping) == Check("ping", ping, timeout=0.5, critical=False)
    assert Check.of(ping, timeout=1.0, ttl=5) == Check("ping", ping, timeout=1.0, critical=False, ttl=5)


def test_check_of_a_function_an_object_and_a_partial() -> None:
    """The name is that of the function, or of the object's class."""

    class Ping:
        def __call__(self) -> None: ...

    assert Check.of(passes).name == "passes"
    assert Check.of(Ping()).name == "Ping"
    assert Check.of(functools.partial(passes)).name == "partial"


def test_a_registered_check_is_frozen() -> None:
    """A check cannot be changed once it was made."""
    with pytest.raises(AttributeError, match=r"^(cannot assign to field|can't set attribute)"):
        Check("a", passes).timeout = 3.0  # type: ignore[misc]


def test_a_check_added_later_is_seen() -> None:
    """The next probe sees a check that was just registered."""
    made = Engineered(Check("a", passes))
    made.probe()
    made.checks.append(Check("b", passes))
    assert [report.name for report in made.probe()] == ["a", "b"]


# -- side by side, one thread each --------------------------------------------------------------------------------


def test_checks_run_side_by_side() -> None:
    """All the checks that a probe asks for run at the same time: they meet at a barrier."""
    barrier = threading.Barrier(3, timeout=BOUND)

    def meet() -> None:
        barrier.wait()

    reports = Engineered(*(Check(name, meet, timeout=BOUND) for name in "abc")).probe()
    assert [report.status for report in reports] == ["pass"] * 3


def real_time(*checks: Check) -> Engineered:
    """An engine on the system's clock, for what really waits."""
    import time

    made = Engineered(*checks)
    made.engine.now = time.monotonic
    return made


def test_a_hanging_check_does_not_hold_the_others(hanging: Hanging) -> None:
    """A check past its timeout fails with what it is, and those beside it have answered."""
    reports = real_time(Check("hung", hanging, timeout=SHORT), Check("well", passes, timeout=BOUND)).probe()
    assert [(report.status, report.hanging) for report in reports] == [("fail", True), ("pass", False)]
    assert reports[0].output.startswith("hanging since 0.")


def test_a_hung_check_has_one_thread_over_a_thousand_probes(hanging: Hanging) -> None:
    """A hung check costs one thread however often it is asked, and it is asked once."""
    made = real_time(Check("hung", hanging, timeout=SHORT))
    before = threading.active_count()
    for _ in range(1000):
        assert made.one().hanging
    until(lambda: lifecycle_threads() == ["lifecycle-check-hung"])  # the thread that told of the hang is gone
    assert threading.active_count() == before + 1
    assert hanging.calls == 1


def test_hanging_since_grows(hanging: Hanging) -> None:
    """A check that hangs is reported as hanging since its one run began, and is not waited for again."""
    made = Engineered(Check("hung", hanging, timeout=2.0))

    def end_the_wait() -> None:
        assert hanging.entered.wait(BOUND)
        made.later(3.0).engine.hurry()

    with running(end_the_wait):
        assert made.one().duration == 3.0
    assert (made.later(4.0).one().duration, made.one().output) == (7.0, "hanging since 7.0 s")


def test_the_probe_has_its_own_bound(hanging: Hanging) -> None:
    """A probe waits no longer than its own timeout: what has not answered by then fails, without hanging yet."""
    report = Engineered(Check("slow", hanging, timeout=BOUND)).probe(timeout=0)[0]
    assert (report.status, report.hanging, report.output) == ("fail", False, "no answer yet after 0.0 s")


def test_a_check_that_is_still_well_stays_so_until_its_timeout() -> None:
    """A probe that gives up early tells what counted before, for as long as the check has not failed."""
    hang, free = [False], threading.Event()

    def check() -> None:
        assert not hang[0] or free.wait(BOUND)

    made = Engineered(Check("slow", check, timeout=5.0, ttl=0))
    assert made.one().status == "pass"
    hang[0] = True
    assert made.probe(timeout=0)[0].status == "pass"
    assert made.later(5.0).probe(timeout=0)[0].status == "fail"
    free.set()
    until(lambda: not lifecycle_threads())


def test_a_flood_of_probes_does_not_wait(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of probes that wait for a check, further ones are told at once what is known of it."""
    monkeypatch.setattr(_engine, "MOST_WAITING", 2)
    made = Engineered(Check("slow", hanging, timeout=BOUND))
    answers: list[str] = []
    with running(lambda: answers.append(made.one().status)), running(lambda: answers.append(made.one().status)):
        until(lambda: "slow" in made.engine._slots and made.engine._slots["slow"]._waiting == 2)
        assert (made.one().status, made.one().output) == ("fail", "no answer yet after 0.0 s")
        hanging.free.set()
    assert (answers, made.one().status) == (["pass", "pass"], "pass")
    assert made.engine._slots["slow"]._waiting == 0


def test_back_again_after_it_returned(hanging: Hanging) -> None:
    """A run that returns too late has failed; the next one decides anew."""
    made = Engineered(Check("hung", hanging, timeout=2.0))
    made.probe(timeout=0)
    made.later(9.0)
    hanging.free.set()
    until(lambda: not lifecycle_threads())
    report = made.one()
    assert (report.status, report.hanging, hanging.calls) == ("fail", False, 1)
    assert str(report.error) == "answered after 9.0 s, 2 s were allowed"
    assert (made.later(1.0).one().status, hanging.calls) == ("pass", 2)


def test_single_flight(hanging: Hanging) -> None:
    """Probes that come while a check runs join that run and get its answer."""
    made = Engineered(Check("slow", hanging, timeout=BOUND))
    answers: list[str] = []

    def probe() -> None:
        answers.append(made.one().status)

    with running(probe):
        assert hanging.entered.wait(BOUND)
        slot = made.engine._slots["slow"]
        run = slot._run
        with running(probe), running(probe):
            assert slot.begin(made.clock) is run
            hanging.free.set()
    assert answers == ["pass"] * 3
    assert hanging.calls == 1


def test_no_lock_is_held_while_a_check_runs(hanging: Hanging) -> None:
    """While a check runs others can be registered, and its own slot be looked at."""
    made = Engineered(Check("slow", hanging, timeout=BOUND))
    with running(made.one):
        assert hanging.entered.wait(BOUND)
        assert not made.engine._slots["slow"]._lock.locked()
        assert not made.engine._lock.locked()
        hanging.free.set()


def test_a_check_may_ask_the_checks() -> None:
    """A check that probes another one does not deadlock."""
    made = Engineered()
    made.checks.append(Check("b", passes))
    made.checks.append(Check("a", lambda: made.engine.run(lambda check: check.name == "b", BOUND), timeout=BOUND))
    assert [report.status for report in made.probe()] == ["pass", "pass"]


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the check fails, and the probe is answered; later it is tried again."""
    made = Engineered(Check("db", passes))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        report = made.one()
    assert (report.status, str(report.error)) == ("fail", "can't start new thread")
    assert made.later(1.0).one().status == "pass"


def test_nobody_waits_for_whoever_is_told_of_a_hang(hanging: Hanging) -> None:
    """A probe that finds a check hanging is answered, even if the log or a receiver that is told of it blocks."""
    made = Engineered(Check("db", hanging, timeout=2.0))
    told, free = threading.Event(), threading.Event()

    def changed(check: Check, old: str, new: str, reason: str) -> None:
        told.set()
        assert free.wait(BOUND)

    made.engine.changed = changed
    made.probe(timeout=0)
    assert made.later(2.0).probe(timeout=0)[0].hanging
    assert told.wait(BOUND)
    free.set()


def test_a_hang_is_told_where_no_thread_can_be_started(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread to tell it in, a hang is told all the same."""
    made = Engineered(Check("db", hanging, timeout=2.0))
    made.probe(timeout=0)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made.later(2.0).probe(timeout=0)
    assert made.changes == [("db", "", "fail", "TimeoutError")]


def test_who_blocks_when_told_costs_one_thread() -> None:
    """While whoever is told of a change blocks, further changes start no thread that waits; they are told in order."""
    switch = Switch()
    made = Engineered(Check("db", switch, ttl=0))
    free = threading.Event()

    def changed(check: Check, old: str, new: str, reason: str) -> None:
        assert free.wait(BOUND)
        made.changed(check, old, new, reason)

    made.engine.changed = changed
    for _ in range(5):
        made.one()
        switch.down = not switch.down
    until(lambda: lifecycle_threads() == ["lifecycle-check-db"])
    free.set()
    until(lambda: not lifecycle_threads())
    assert [(old, new) for _name, old, new, _reason in made.changes] == [
        ("", "pass"), *[("pass", "fail"), ("fail", "pass")] * 2
    ]  # fmt: skip


def test_a_drain_hurries_every_probe_but_liveness(hanging: Hanging) -> None:
    """When a drain begins nobody waits for a check any more, but for liveness; the check itself goes on."""
    made = Engineered(Check("hung", hanging, timeout=BOUND))
    answers: list[tuple[str, str]] = []

    def probe(group: str) -> None:
        [report] = made.engine.run(lambda check: True, BOUND, hurried=group != "live")
        answers.append((group, report.status))

    with running(lambda: probe("live")):
        with running(lambda: probe("ready")):
            assert hanging.entered.wait(BOUND)
            made.engine.hurry()
        assert answers == [("ready", "fail")]
        hanging.free.set()
    assert answers == [("ready", "fail"), ("live", "pass")]


def test_a_run_that_begins_in_a_drain_is_not_waited_for(hanging: Hanging) -> None:
    """A probe that looked at the state before the drain and begins a run after it does not wait for that run."""
    made = Engineered(Check("hung", hanging, timeout=BOUND))
    made.engine.hurry()
    assert made.one().output == "no answer yet after 0.0 s"
    hanging.free.set()
    [report] = made.engine.run(lambda check: True, BOUND, hurried=False)
    assert report.status == "pass"


def test_a_forked_child_begins_anew() -> None:
    """In a forked child no run is under way and no result is known: its own first probe runs the checks."""
    switch = Switch()
    made = Engineered(Check("db", switch))
    made.one()
    child = os.fork()
    if not child:
        made.one()
        os._exit(switch.calls)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert (made.one().status, switch.calls) == ("pass", 1)


@pytest.mark.parametrize(("started", "stopped"), [(False, False), (True, False), (True, True)])
def test_a_forked_child_goes_on_in_the_background(started: bool, stopped: bool) -> None:
    """A child of a process that runs background checks runs them from its first probe on, unless they were stopped."""
    made = real_time(Check("db", passes, interval=60.0))
    if started:
        made.engine.start()
    if stopped:
        made.engine.stop()
    child = os.fork()
    if not child:
        early = lifecycle_threads()
        made.one()
        os._exit(2 if early else "lifecycle-checks" in lifecycle_threads())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (started and not stopped)
    made.engine.stop()


# -- how long a result is good ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "seconds"), [(False, 10.0), (True, 3.0)])
def test_results_are_kept(down: bool, seconds: float) -> None:
    """A result is answered for its ttl without another run, a bad one for its fail_ttl."""
    switch = Switch()
    switch.down = down
    made = Engineered(Check("db", switch, ttl=10.0, fail_ttl=3.0))
    made.one()
    assert made.later(seconds - 0.1).one().status == ("fail" if down else "pass")
    assert switch.calls == 1
    made.later(0.1).one()
    assert switch.calls == 2


def test_a_bad_result_is_kept_as_long_as_a_good_one() -> None:
    """Without a fail_ttl the ttl holds for both; its default is a second."""
    switch = Switch()
    switch.down = True
    made = Engineered(Check("db", switch))
    made.one()
    assert (made.later(0.9).one().status, switch.calls) == ("fail", 1)
    assert (made.later(0.1).one().status, switch.calls) == ("fail", 2)


def test_no_ttl_at_all() -> None:
    """With a ttl of zero every probe asks anew."""
    switch = Switch()
    made = Engineered(Check("db", switch, ttl=0))
    for _ in range(3):
        made.one()
    assert switch.calls == 3


def test_fifty_probes_at_once_run_each_check_once() -> None:
    """Fifty probes of ten checks at the same moment are ten runs."""
    switches = [Switch() for _ in range(10)]
    made = Engineered(*(Check(str(number), switch) for number, switch in enumerate(switches)))
    barrier = threading.Barrier(50, timeout=BOUND)

    def probe() -> None:
        barrier.wait()
        assert [report.status for report in made.probe()] == ["pass"] * 10

    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(running(probe))
    assert [switch.calls for switch in switches] == [1] * 10


# -- what counts --------------------------------------------------------------------------------------------------


def test_damping() -> None:
    """So many failures in a row before it counts, reset by a success; so many good results before it counts as well."""
    damper = Damper(fail_after=3, recover_after=2)
    results = ["pass", "fail", "fail", "pass", "fail", "fail", "fail", "pass", "fail", "pass", "pass"]
    counting = ["pass", "pass", "pass", "pass", "pass", "pass", "fail", "fail", "fail", "fail", "pass"]
    assert [damper.feed(status, 0.0) for status in results] == counting


def test_the_first_result_counts_at_once() -> None:
    """Before the first result there is no good state that would deserve the benefit of the doubt."""
    assert Damper(fail_after=3, recover_after=2).feed("fail", 0.0) == "fail"
    assert Damper(fail_after=3, recover_after=2).feed("warn", 0.0) == "warn"


def test_a_minimum_time_in_failure() -> None:
    """With fail_for the failures must have lasted so long as well, counted from the first of them."""
    damper = Damper(fail_after=2, fail_for=10.0)
    told = [damper.feed(*result) for result in [("pass", 0.0), ("fail", 5.0), ("fail", 8.0), ("fail", 14.9)]]
    assert told == ["pass"] * 4
    assert damper.feed("fail", 15.0) == "fail"


def test_warnings_are_not_damped() -> None:
    """Between well and a warning every result counts."""
    damper = Damper(fail_after=3, recover_after=3)
    assert [damper.feed(status, 0.0) for status in ("pass", "warn", "pass")] == ["pass", "warn", "pass"]


def test_a_damped_failure_is_shown() -> None:
    """A failure that does not count yet is told in the details, with how many there have been."""
    switch = Switch()
    made = Engineered(Check("db", switch, fail_after=3))
    made.one()
    switch.down = True
    reports = [made.later(1.0).one() for _ in range(3)]
    assert [(report.status, report.damped, report.output) for report in reports] == [
        ("pass", 1, "down"),
        ("pass", 2, "down"),
        ("fail", 0, "down"),
    ]


def test_a_hang_counts_once_for_each_timeout() -> None:
    """A check that goes on hanging fails once more for each timeout that passes, however often it is asked."""
    hang, free = [False], threading.Event()

    def check() -> None:
        assert not hang[0] or free.wait(BOUND)

    made = Engineered(Check("db", check, timeout=2.0, ttl=0, fail_after=3))
    made.one()
    hang[0] = True
    made.probe(timeout=0)
    told = [made.later(pause).probe(timeout=0)[0] for pause in (2.0, 0.0, 1.9, 0.1, 2.0)]
    assert [report.status for report in told] == ["pass", "pass", "pass", "pass", "fail"]
    assert [report.damped for report in told] == [1, 1, 1, 2, 0]
    free.set()
    until(lambda: not lifecycle_threads())
    assert made.changes == [("db", "", "pass", ""), ("db", "pass", "fail", "TimeoutError")]


def test_a_hang_is_counted_before_its_late_return() -> None:
    """A run that was counted as hanging is not counted again when it returns.

    Interleaving: a probe counts the hang, then the run returns: two failures of one run would reach fail_after.
    """
    hang, free = [False], threading.Event()

    def check() -> None:
        assert not hang[0] or free.wait(BOUND)

    made = Engineered(Check("db", check, timeout=2.0, ttl=0, fail_after=2))
    made.one()
    hang[0] = True
    made.probe(timeout=0)
    assert made.later(2.0).probe(timeout=0)[0].hanging
    free.set()
    until(lambda: not lifecycle_threads())
    assert made.engine.standing() == [(made.checks[0], "pass")]


def test_changes_are_told_once() -> None:
    """Every change that counts is told once, with the public reason, weighed by whether the check is critical."""
    switch = Switch()
    made = Engineered(Check("db", switch, critical=False))
    for down in (False, True, True, False, False):
        switch.down = down
        made.later(1.0).settled()
    assert made.changes == [("db", "", "pass", ""), ("db", "pass", "warn", "down"), ("db", "warn", "pass", "")]


def test_a_warning_that_gets_worse_stays_one() -> None:
    """Where a check is not critical its warning and its failure are the same, and neither is a change."""
    results = iter([CheckResult("warn", "slow"), CheckResult("fail", "gone"), CheckResult("warn"), CheckResult()])
    made = Engineered(Check("db", lambda: next(results), critical=False, ttl=0))
    assert [made.settled().status for _ in range(4)] == ["warn", "warn", "warn", "pass"]
    assert made.changes == [("db", "", "warn", "slow"), ("db", "warn", "pass", "")]


# -- the log ------------------------------------------------------------------------------------------------------


def test_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A check's failure is logged when it begins, with its exception, and when it ends, and not at every probe."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    down = [True]

    def check() -> None:
        if down[0]:
            raise ValueError("secret")

    made = Engineered(Check("db", check))
    for state in (False, True, True, True, False, False):
        down[0] = state
        made.later(1.0).settled()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "check 'db' fails after 0.00 s"),
        ("INFO", "check 'db' passes again"),
    ]
    assert caplog.records[0].exc_info is not None
    assert str(caplog.records[0].exc_info[1]) == "secret"
    assert caplog.records[0].__dict__["lifecycle_check"] == "db"


def test_a_failing_result_is_told_with_its_words(caplog: pytest.LogCaptureFixture) -> None:
    """Of a check that fails by its result, and raises nothing, the log and the change have the words of the result."""
    made = Engineered(Check("disk", lambda: CheckResult("fail", "It is full,\n99.9 %.")))
    made.settled()
    assert caplog.messages == ["check 'disk' fails after 0.00 s: It is full, 99.9 %."]
    assert made.changes == [("disk", "", "fail", "It is full,\n99.9 %.")]


def test_a_slow_check_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """A check that takes more than half of its timeout and passes is named in the log, once."""
    made = Engineered()

    def check() -> None:
        made.later(1.5)

    made.checks.append(Check("db", check, timeout=2.0, ttl=0))
    for _ in range(3):
        assert made.settled().status == "pass"
    assert [record.getMessage() for record in caplog.records] == [
        "check 'db' took 1.50 s, more than half of its timeout of 2 s"
    ]


# -- in the background --------------------------------------------------------------------------------------------


def background(switch: Switch, **options: Any) -> Engineered:
    """An engine with one background check, which the test ticks."""
    return Engineered(Check("db", switch, interval=10.0, timeout=2.0, **options))


def tick(made: Engineered) -> float | None:
    """One round of the scheduler, and the end of what it has started."""
    pause = made.engine.tick()
    until(lambda: not lifecycle_threads())
    return pause


def test_background_checks_run_at_their_interval() -> None:
    """A background check runs at once, then each interval, give or take the jitter; probes only read."""
    switch = Switch()
    made = background(switch)
    assert tick(made) == 2.0  # when it would hang
    pause = tick(made)
    assert pause is not None
    assert 10.0 * (1 - JITTER) <= pause <= 10.0 * (1 + JITTER)
    assert (made.one().status, switch.calls) == ("pass", 1)
    tick(made.later(pause - 0.1))
    made.one()
    assert switch.calls == 1
    tick(made.later(0.1))
    assert switch.calls == 2


def test_probes_do_not_wait_for_a_background_run(hanging: Hanging) -> None:
    """While a background check runs anew probes tell its last result at once, until the run is past its timeout."""
    hanging.free.set()
    made = Engineered(Check("db", hanging, interval=10.0, timeout=2.0))
    tick(made)
    hanging.free.clear()
    hanging.entered.clear()
    made.later(11.0).engine.tick()
    assert hanging.entered.wait(BOUND)
    report = made.one()
    assert (report.status, report.hanging, report.time, hanging.calls) == ("pass", False, made.one().time, 2)
    assert made.later(2.0).one().hanging


def test_results_are_good_until_the_slower_interval() -> None:
    """A check that is run less often while it fails is not run by probes in between."""
    switch = Switch()
    switch.down = True
    made = background(switch, fail_interval=60.0)
    tick(made)
    assert (made.later(59.0).one().status, switch.calls) == ("fail", 1)


def test_jitter_differs_and_is_repeatable() -> None:
    """Intervals differ from run to run, and the same seed gives the same ones."""
    check = Check("db", passes, interval=10.0)

    def pauses() -> list[float]:
        return [Engineered(check).engine.pause(check, "pass") for _ in range(2)]

    engine = Engineered(check).engine
    assert len({engine.pause(check, "pass") for _ in range(10)}) == 10
    assert len(set(pauses())) == 1


def test_faster_while_failing() -> None:
    """A background check that fails is run again after its fail_interval."""
    switch = Switch()
    switch.down = True
    made = background(switch, fail_interval=1.0)
    tick(made)
    pause = tick(made)
    assert pause is not None
    assert pause <= 1.0 * (1 + JITTER)
    switch.down = False
    tick(made.later(1.2))
    pause = tick(made)
    assert pause is not None
    assert pause > 8.0


def test_a_hung_background_check_is_seen_without_a_probe(hanging: Hanging) -> None:
    """The scheduler itself finds out that a background check hangs, and starts no second run of it."""
    made = Engineered(Check("db", hanging, interval=10.0, timeout=2.0))
    assert made.engine.tick() == 2.0
    assert made.later(2.0).engine.tick() == 2.0
    until(lambda: made.changes == [("db", "", "fail", "TimeoutError")])
    made.later(30.0).engine.tick()
    assert hanging.calls == 1


def test_probes_run_it_where_nobody_else_does() -> None:
    """Without a scheduler a probe runs a background check itself, once its result is overdue."""
    switch = Switch()
    made = background(switch)
    assert (made.one().status, switch.calls) == ("pass", 1)
    assert (made.later(10.0).one().status, switch.calls) == ("pass", 1)
    assert (made.later(3.0).one().status, switch.calls) == ("pass", 2)


def test_nothing_in_the_background() -> None:
    """Without background checks no scheduler's thread is started; the first one that is registered starts it."""
    made = real_time(Check("db", passes))
    made.engine.start()
    assert made.engine.tick() is None
    assert "lifecycle-checks" not in lifecycle_threads()
    switch = Switch()
    made.checks.append(Check("later", switch, interval=60.0))
    made.engine.wake()
    until(lambda: switch.calls == 1)
    made.engine.start()
    assert lifecycle_threads().count("lifecycle-checks") == 1
    made.engine.stop()
    assert "lifecycle-checks" not in lifecycle_threads()
    made.engine.wake()
    assert "lifecycle-checks" not in lifecycle_threads()


def test_stopping_what_never_began() -> None:
    """An engine that was never started can be stopped, and a scheduler twice."""
    Engineered().engine.stop()
    scheduler = Scheduler(lambda: None, "test", "test")
    scheduler.wake()
    scheduler.stop()
    scheduler.stop()


def test_a_stop_before_the_start_holds() -> None:
    """An engine that was stopped runs nothing in the background, also where its start comes later.

    The start-up has made the application ready; a whole shutdown happens; only then the start-up gets on.
    """
    switch = Switch()
    made = real_time(Check("db", switch, interval=60.0))
    made.engine.stop()
    made.engine.start()
    assert ("lifecycle-checks" in lifecycle_threads(), switch.calls) == (False, 0)


def test_a_scheduler_outlives_a_failing_round(caplog: pytest.LogCaptureFixture) -> None:
    """A round that fails is logged, and the next one comes all the same."""
    rounds: list[str] = []

    def tick() -> float | None:
        rounds.append("round")
        if len(rounds) == 1:
            raise LookupError("odd")
        return None

    scheduler = Scheduler(tick, "test", "background checks")
    scheduler.wake()
    until(lambda: len(caplog.records) == 1)
    scheduler.wake()
    until(lambda: len(rounds) > 1)
    scheduler.stop()
    assert caplog.records[0].getMessage() == "the background checks could not be looked after"
