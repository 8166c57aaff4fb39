"""The engine: what runs when, the results, and that no check blocks it. Bad registrations are in test_bad_input."""

from __future__ import annotations

import builtins
import contextlib
import functools
import http
import logging
import threading
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from flask import Response

from flask_lifecycle import Check, CheckContext, CheckResult, HealthCheckError, Lifecycle, State
from flask_lifecycle.checks import CheckReport
from tests._fakes import BOUND, in_child, make_app, raiser, running, state_of, until


class Engineered:
    """The engine of an application, with a manual clock, and the changes that it published."""

    def __init__(self, *checks: Check) -> None:
        self.lifecycle = Lifecycle(app := make_app())
        for check in checks:
            self.lifecycle.add_check(check)
        self.changes: list[tuple[str, str, str, str]] = []
        self.clock = 1000.0
        self.engine = state_of(app).health.engine
        self.engine.changed = self.changed
        self.engine.now = lambda: self.clock

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
    """A check that fails while it is down, and counts its calls."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.down:
            raise HealthCheckError("down")


def lifecycle_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lifecycle-check")]


# Give or take which share an interval lasts.
JITTER = 0.1


PAGE = Response("<p>down\nfor   repairs</p>" + 300 * "x", 500)
JSON = "application/json"
RESULT = CheckResult("warn", "nearly full", {"free": 3}, 97, "%")


@pytest.mark.parametrize(
    ("returned", "status", "output", "observed"),
    [
        # Passes.
        *((value, "pass", "", {}) for value in (None, True, (True, "fine"), ("fine", 200), ("fine", "204 NO CONTENT"))),
        ((["fine"], 200, {"X-From": "a view"}), "pass", "", {}),
        *((seen, "pass", "", seen) for seen in ({"status": "up"}, {"status": 200}, {"status": None}, {"down": 3})),
        # Warns.
        *(({"status": word}, "warn", word, {"status": word}) for word in ("warn", "Warning", "degraded")),
        # Fails. The text behind a boolean is not public.
        *((value, "fail", "the check returned False", {}) for value in (False, (False, "postgres://admin@db"))),
        (("down", 503), "fail", "down", {}),
        ((b"down", 503, {"Retry-After": "1"}), "fail", "down", {}),
        (("down", "503 Service Unavailable"), "fail", "down", {}),
        (("", http.HTTPStatus.BAD_GATEWAY), "fail", "status 502", {}),
        ((["down"], 400), "fail", "status 400", {}),
        (({"db": "down"}, 503), "fail", "status 503", {"db": "down"}),
        (({"status": "down"}, 200), "fail", "down", {"status": "down"}),
        (Response(status=503), "fail", "status 503", {}),
        (Response("no database", 503), "fail", "no database", {}),
        ((Response("no database"), 503), "fail", "no database", {}),
        ((Response("no database", 503), 200), "fail", "no database", {}),
        (Response(iter(["streamed"]), 503), "fail", "status 503", {}),
        (PAGE, "fail", ("<p>down for repairs</p>" + 300 * "x")[:200], {}),
        (Response('{"status": "down"}', mimetype=JSON), "fail", "down", {"status": "down"}),
        (Response('{"db": 3}', 503, mimetype=JSON), "fail", "status 503", {"db": 3}),
        (types.SimpleNamespace(status_code=503, text="of another server"), "fail", "status 503", {}),
        ({"status": " DOWN ", "db": 3}, "fail", "DOWN", {"status": " DOWN ", "db": 3}),
        ({"status": False}, "fail", "False", {"status": False}),
        ({"status": 503}, "fail", "503", {"status": 503}),
        # Results.
        (RESULT, "warn", "nearly full", {"free": 3}),
        (CheckResult("fail", "full"), "fail", "full", {}),
        (CheckResult(observed=[1]), "pass", "", {"observed": [1]}),  # type: ignore[arg-type]
        (CheckResult(observed=None), "pass", "", {}),  # type: ignore[arg-type]
        (CheckResult("ok"), "fail", "A check's status must be one of pass, warn, fail, not 'ok'.", {}),
    ],
)
def test_return_values(returned: Any, status: str, output: str, observed: Any) -> None:
    """Nothing, a mapping, what a view returns, a boolean and a result: each has a status and a text."""
    report = Engineered(Check("one", lambda: returned)).one()
    assert (report.name, report.status, report.output, report.result.observed) == ("one", status, output, observed)
    assert (report.hanging, report.causes, report.damped) == (False, {}, 0)


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (["error"], "list"), ("down", "str"), ("ok", "str"), (0, "int"), (503, "int"), (b"ok", "bytes"), ((), "tuple"),
        (("ok",), "tuple"), (("ok", {"X-From": "a view"}), "tuple"), (("ok", 3), "tuple"), (("ok", True), "tuple"),
        (object(), "object"), (ValueError("down"), "ValueError"), ((1, 2, 3, 503), "tuple"),
    ],
)  # fmt: skip
def test_a_value_that_means_nothing(returned: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Any other value is a mistake of the check. It fails, and the log says once what to return instead."""
    values = [returned, returned, None, returned]
    made = Engineered(Check("one", lambda: values.pop(0), ttl=0))
    reports = [made.settled() for _ in range(2)]
    mistake = (
        f"The check returned an object of type '{kind}', which means neither pass nor fail; return nothing, a mapping"
        " or a CheckResult, and raise HealthCheckError when it fails."
    )
    assert [(report.status, report.output) for report in reports] == [("fail", mistake)] * 2
    assert [(record.levelname, record.getMessage(), record.exc_info) for record in caplog.records] == [
        ("ERROR", f"check 'one': {mistake}", None), ("WARNING", "check 'one' fails after 0.00 s", None),
    ]  # fmt: skip
    assert [made.settled().status for _ in range(2)] == ["pass", "fail"]
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("function", "critical", "status", "output"),
    [
        (raiser(ValueError("broken")), True, "fail", "ValueError"),
        (raiser(ValueError("broken")), False, "warn", "ValueError"),
        (raiser(SystemExit(1)), True, "fail", "SystemExit"),  # it must not end its thread silently
    ],
)
def test_raising(function: Any, critical: bool, status: str, output: str) -> None:
    """A check that raises fails, or warns if it is not critical; only the type of the exception is public."""
    report = Engineered(Check("one", function, critical=critical)).one()
    assert (report.status, report.output, type(report.error).__name__) == (status, output, output)


def test_a_coroutine_that_has_not_run() -> None:
    """A check that returns a coroutine or a generator has checked nothing, and fails."""

    async def coroutine() -> None:
        """It would fail if it ran."""

    def generator() -> Iterator[None]:
        yield

    made = Engineered(Check("coroutine", lambda: coroutine()), Check("generator", generator))
    assert [(report.status, str(report.error)) for report in made.probe()] == [
        ("fail", f"The check returned a {kind}, which has not run; register an 'async def' itself.")
        for kind in ("coroutine", "generator")
    ]


class Secretive(dict[str, str]):
    """A mapping that fails to list its items, as one that another thread writes to."""

    def items(self) -> Any:
        raise RuntimeError("dictionary changed size during iteration")


class NoGroup(ValueError):
    """Looks like an exception group."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("not yet")


ROUND = HealthCheckError("down")
ROUND.causes = [ROUND]
INNER = HealthCheckError("the replica lags", ["by 9 s", LookupError("db-7.internal")])
# The members of an exception group, which there is from Python 3.11 on, are listed one by one, as causes are.
GROUP: Any = getattr(builtins, "ExceptionGroup", None)
MEMBERS = [HealthCheckError("one is down"), ValueError("secret")]
GROUPS = [(GROUP("several", MEMBERS), {"1": "one is down", "2": "ValueError"})] if GROUP else []


@pytest.mark.parametrize(
    ("error", "causes"),
    [
        # The message and the causes of a HealthCheckError are public, of any other exception only the type.
        (
            HealthCheckError("down", {"primary": "gone", "replica": INNER, "both": KeyError("x")}),
            {
                "primary": "gone",
                "replica": "the replica lags",
                "replica.1": "by 9 s",
                "replica.2": "LookupError",
                "both": "KeyError",
            },
        ),
        # Causes that cannot be listed are left out, and a cause that contains itself is listed a few times.
        *((HealthCheckError("down", causes), {}) for causes in ("a text", {"a", "set"}, None, 3)),  # type: ignore[arg-type]
        (HealthCheckError("down", Secretive(db="gone")), {}),
        (NoGroup("down"), {}),
        (ROUND, dict.fromkeys(("1", "1.1", "1.1.1", "1.1.1.1", "1.1.1.1.1"), "down")),
        *GROUPS,
    ],
)
def test_causes(error: Exception, causes: dict[str, str]) -> None:
    """A check that fails shows its causes by their names or numbers."""

    report = Engineered(Check("db", raiser(error))).one()
    public = "down" if isinstance(error, HealthCheckError) else type(error).__name__
    assert (report.status, report.output, report.causes) == ("fail", public, causes)


def test_checks_of_all_kinds() -> None:
    """A function and an object may take the context and be coroutine functions, which are awaited."""
    given: list[CheckContext] = []

    async def function() -> dict[str, Any]:
        return {"seen": 1}

    class Object:
        async def __call__(self, context: CheckContext) -> dict[str, Any]:
            return {"seen": context.reason}

    checks: dict[str, Any] = {"one": given.append, "two": lambda context: given.append(context)}
    checks |= {"function": function, "object": Object()}
    reports = Engineered(*(Check(name, check) for name, check in checks.items())).probe()
    assert given == [CheckContext(State.STARTING, "starting", 0, None)] * 2
    assert [report.result.observed for report in reports] == [{}, {}, {"seen": 1}, {"seen": "starting"}]


def test_a_context_that_fails() -> None:
    """A check whose application context cannot be made fails."""

    def broken() -> AbstractContextManager[Any]:
        raise LookupError("no context")

    made = Engineered(Check("db", passes))
    made.engine.app = types.SimpleNamespace(context=broken)
    assert (made.one().status, made.one().output) == ("fail", "LookupError")


def test_making_a_check() -> None:
    """A function, a callable object with attributes or a Check makes a check; options override its attributes."""

    class Ping:
        name = "ping"
        timeout = 0.5
        critical = False

        def __call__(self) -> None: ...

    ping = Ping()
    assert Check.of(ping) == Check("ping", ping, timeout=0.5, critical=False)
    made = Check.of(ping, timeout=1.0, groups=["live"])
    assert made == Check("ping", ping, timeout=1.0, critical=False, groups=("live",))
    assert Check.of(made) == made
    assert Check.of(made, name="b").name == "b"
    assert [Check.of(each).name for each in (passes, functools.partial(passes), Switch())] == [
        "passes", "partial", "Switch"
    ]  # fmt: skip


def real_time(*checks: Check) -> Engineered:
    """An engine on the system's clock, for what really waits."""
    import time

    made = Engineered(*checks)
    made.engine.now = time.monotonic
    return made


def test_hanging_since_grows(hanging: Hanging) -> None:
    """A check that hangs is reported as hanging since its one run began, and no probe waits for it again."""
    made = Engineered(Check("hung", hanging, timeout=2.0))

    def end_the_wait() -> None:
        assert hanging.entered.wait(BOUND)
        made.later(3.0).engine.release()

    with running(end_the_wait):
        assert made.one().duration == 3.0
    assert (made.later(4.0).one().duration, made.one().output) == (7.0, "hanging since 7.0 s")


def test_the_probe_has_its_own_bound(hanging: Hanging) -> None:
    """A probe waits no longer than its own timeout: a check without an answer then fails, but does not hang yet."""
    report = Engineered(Check("slow", hanging, timeout=2 * BOUND)).probe(timeout=0)[0]
    assert (report.status, report.hanging, report.output) == ("fail", False, "no answer yet after 0.0 s")


def test_a_check_that_is_still_well_stays_so_until_its_timeout(hanging: Hanging) -> None:
    """A probe that gives up early reports the last status, until the check has failed."""
    hanging.free.set()
    made = Engineered(Check("slow", hanging, timeout=5.0, ttl=0))
    assert made.one().status == "pass"
    hanging.free.clear()
    assert made.probe(timeout=0)[0].status == "pass"
    assert made.later(5.0).probe(timeout=0)[0].status == "fail"


def test_a_flood_of_probes_does_not_wait(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of waiting probes, here none, further ones get the last known status at once."""
    monkeypatch.setattr("flask_lifecycle.checks._engine.MOST_WAITING", 0)
    made = Engineered(Check("slow", hanging, timeout=BOUND))
    assert (made.one().status, made.one().output) == ("fail", "no answer yet after 0.0 s")
    hanging.free.set()
    until(lambda: made.one().status == "pass")


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


def test_a_check_may_ask_the_checks() -> None:
    """A check may probe another one: no lock is held while it runs."""
    made = Engineered()
    made.lifecycle.add_check(Check("b", passes))
    made.lifecycle.add_check(
        Check("a", lambda: {"b": made.engine.run(lambda check: check.name == "b", BOUND)}, timeout=BOUND)
    )
    assert [report.status for report in made.probe()] == ["pass", "pass"]


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started the check fails, and the probe is answered; the next one tries again."""
    made = Engineered(Check("db", passes))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        report = made.one()
    assert (report.status, str(report.error)) == ("fail", "can't start new thread")
    assert made.later(1.0).one().status == "pass"


def test_a_hang_is_published_without_a_thread(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the probe itself publishes a hang."""
    made = Engineered(Check("db", hanging, timeout=2.0))
    made.probe(timeout=0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made.later(2.0).probe(timeout=0)
    assert made.changes == [("db", "", "fail", "TimeoutError")]


def test_a_receiver_that_blocks(hanging: Hanging) -> None:
    """A receiver that blocks delays no probe and costs one thread; later changes are published in order."""
    switch = Switch()
    made = Engineered(Check("db", switch, ttl=0), Check("hung", hanging, timeout=2.0))
    free = threading.Event()

    def changed(check: Check, old: str, new: str, reason: str) -> None:
        assert free.wait(BOUND)
        made.changed(check, old, new, reason)

    made.engine.changed = changed
    made.probe(timeout=0)
    for _ in range(5):
        [_db, hung] = made.later(2.0).probe()
        assert hung.hanging
        switch.down = not switch.down
    hanging.free.set()
    until(lambda: lifecycle_threads() == ["lifecycle-check-db", "lifecycle-check-hung-hangs"])
    free.set()
    until(lambda: not lifecycle_threads())
    changes = [(name, old, new) for name, old, new, _reason in made.changes]
    assert [change for change in changes if change[0] == "db"] == [
        ("db", "", "pass"), *[("db", "pass", "fail"), ("db", "fail", "pass")] * 2
    ]  # fmt: skip
    assert ("hung", "", "fail") in changes


def test_a_drain_releases_every_probe_but_liveness(hanging: Hanging) -> None:
    """When a drain begins no probe waits for a check, but for liveness; the check itself goes on."""
    made = Engineered(Check("hung", hanging, timeout=BOUND))
    answers: list[tuple[str, str]] = []

    def probe(group: str) -> None:
        [report] = made.engine.run(lambda check: True, BOUND, releasable=group != "live")
        answers.append((group, report.status))

    with running(lambda: probe("live")):
        with running(lambda: probe("ready")):
            assert hanging.entered.wait(BOUND)
            made.engine.release()
        assert answers == [("ready", "fail")]
        made.lifecycle.check("late", timeout=2 * BOUND)(hanging)  # nor for one that is run only now
        assert [report.output for report in made.probe()] == ["no answer yet after 0.0 s"] * 2
        hanging.free.set()
    assert answers == [("ready", "fail"), ("live", "pass")]


def test_a_forked_child_begins_anew() -> None:
    """A forked child has no run and no result: its own first probe runs the checks."""
    switch = Switch()
    made = Engineered(Check("db", switch))
    made.one()

    def child() -> int:
        made.one()
        return switch.calls

    assert in_child(child) == 2
    assert (made.one().status, switch.calls) == ("pass", 1)


@pytest.mark.parametrize(("started", "stopped"), [(False, False), (True, False), (True, True)])
def test_a_forked_child_goes_on_in_the_background(started: bool, stopped: bool) -> None:
    """A child of a process that runs background checks runs them from its first probe on, unless they were stopped."""
    made = real_time(Check("db", passes, interval=60.0))
    if started:
        made.engine.start()
    if stopped:
        made.engine.stop()

    def child() -> int:
        early = lifecycle_threads()
        made.one()
        return 2 if early else "lifecycle-checks" in lifecycle_threads()

    assert in_child(child) == (started and not stopped)
    made.engine.stop()


@pytest.mark.parametrize(
    ("down", "options", "seconds"),
    [
        (False, {"ttl": 10.0, "fail_ttl": 3.0}, 10.0),
        (True, {"ttl": 10.0, "fail_ttl": 3.0}, 3.0),
        (True, {}, 1.0),
        (False, {"ttl": 0}, 0.0),
    ],
)
def test_results_are_cached(down: bool, options: dict[str, Any], seconds: float) -> None:
    """A result is cached for its ttl, a failure for its fail_ttl, which is the ttl by default; that is a second."""
    switch = Switch()
    switch.down = down
    made = Engineered(Check("db", switch, **options))
    made.one()
    if seconds:
        assert made.later(seconds - 0.1).one().status == ("fail" if down else "pass")
        assert switch.calls == 1
    made.later(0.1).one()
    assert switch.calls == 2


def test_fifty_probes_at_once_run_each_check_once() -> None:
    """Fifty probes of ten checks at the same moment are ten runs, side by side: the checks meet at a barrier."""
    checks, probes, runs = threading.Barrier(10, timeout=BOUND), threading.Barrier(50, timeout=BOUND), list[int]()

    def check() -> None:
        runs.append(checks.wait())

    made = Engineered(*(Check(str(number), check, timeout=BOUND) for number in range(10)))

    def probe() -> None:
        probes.wait()
        assert [report.status for report in made.probe()] == ["pass"] * 10

    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(running(probe))
    assert len(runs) == 10


@pytest.mark.parametrize(
    ("options", "results", "counted"),
    [
        # Several failures in a row, reset by a success; several good results in a row to recover.
        ((3, 2, 0.0), "pass fail fail pass fail fail fail pass fail pass pass", "6*pass 4*fail 1*pass"),
        # Before the first result there is no good state to protect.
        ((3, 2, 0.0), "fail", "1*fail"),
        ((3, 2, 0.0), "warn", "1*warn"),
        # A minimum time since the first failure; each result is five seconds after the one before.
        ((2, 1, 10.0), "pass fail fail fail", "3*pass 1*fail"),
        # A warning counts at once.
        ((3, 3, 0.0), "pass warn pass", "1*pass 1*warn 1*pass"),
    ],
)
def test_debouncing(options: tuple[int, int, float], results: str, counted: str) -> None:
    """A check fails and recovers only after the results that it needs for it."""
    left = results.split()
    needs = dict(zip(("fail_after", "recover_after", "fail_for"), options, strict=True))
    made = Engineered(Check("db", lambda: CheckResult(left.pop(0)), ttl=0, **needs))  # type: ignore[arg-type]
    found = [made.later(5.0).one().status for _ in results.split()]
    runs = (run.split("*") for run in counted.split())
    assert found == [status for count, status in runs for _ in range(int(count))]


def test_a_damped_failure_is_shown() -> None:
    """A failure that does not count yet is in the report, with the number of failures."""
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


def test_a_hang_counts_once_for_each_timeout(hanging: Hanging) -> None:
    """A check that goes on hanging fails once more for each timeout, however often it is asked, and not at its end."""
    # Interleaving: a probe counts the hang, then the run returns. Counted again, two failures of one run would be
    # three.
    hanging.free.set()
    made = Engineered(Check("db", hanging, timeout=2.0, ttl=0, fail_after=3))
    made.one()
    hanging.free.clear()
    made.probe(timeout=0)
    reports = [made.later(pause).probe(timeout=0)[0] for pause in (2.0, 0.0, 1.9, 0.1)]
    assert [(report.status, report.damped) for report in reports] == [("pass", 1)] * 3 + [("pass", 2)]
    hanging.free.set()
    until(lambda: not lifecycle_threads())
    assert [(report.status, report.damped) for report in made.engine.known()] == [("pass", 2)]
    hanging.free.clear()
    made.probe(timeout=0)
    assert made.later(2.0).probe(timeout=0)[0].status == "fail"
    hanging.free.set()
    until(lambda: not lifecycle_threads())
    assert made.changes == [("db", "", "pass", ""), ("db", "pass", "fail", "TimeoutError")]


def test_a_warning_that_gets_worse_stays_one() -> None:
    """Where a check is not critical its warning and its failure are the same, and neither is a change."""
    results = iter([CheckResult("warn", "slow"), CheckResult("fail", "gone"), CheckResult("warn"), CheckResult()])
    made = Engineered(Check("db", lambda: next(results), critical=False, ttl=0))
    assert [made.settled().status for _ in range(4)] == ["warn", "warn", "warn", "pass"]
    assert made.changes == [("db", "", "warn", "slow"), ("db", "warn", "pass", "")]


def test_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged when it begins, with its exception or text, and when it ends, and not at every probe."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    results: list[Any] = []

    def check() -> Any:
        if isinstance(results[-1], Exception):
            raise results[-1]
        return results[-1]

    made, error = Engineered(Check("db", check)), ValueError("secret")
    full = CheckResult("fail", "It is full,\n99.9 %.")
    for result in (None, error, error, error, None, None, full):
        results.append(result)
        made.later(1.0).settled()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "check 'db' fails after 0.00 s"),
        ("INFO", "check 'db' passes again"),
        ("WARNING", "check 'db' fails after 0.00 s: It is full, 99.9 %."),
    ]
    assert caplog.records[0].exc_info is not None
    assert str(caplog.records[0].exc_info[1]) == "secret"
    assert caplog.records[0].__dict__["lifecycle_check"] == "db"
    assert made.changes[-1] == ("db", "pass", "fail", "It is full,\n99.9 %.")


def test_a_slow_check_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """A check that takes more than half of its timeout and passes is named in the log, once."""
    made = Engineered()

    def check() -> None:
        made.later(1.5)

    made.lifecycle.add_check(Check("db", check, timeout=2.0, ttl=0))
    for _ in range(3):
        assert made.settled().status == "pass"
    assert [record.getMessage() for record in caplog.records] == [
        "check 'db' took 1.50 s, more than half of its timeout of 2 s"
    ]


def background(switch: Switch, **options: Any) -> Engineered:
    """An engine with one background check, which the test ticks."""
    return Engineered(Check("db", switch, interval=10.0, timeout=2.0, **options))


def tick(made: Engineered) -> float | None:
    """One round of the scheduler, and the end of what it has started."""
    pause = made.engine.tick()
    until(lambda: not lifecycle_threads())
    return pause


def test_probes_do_not_wait_for_a_background_run(hanging: Hanging) -> None:
    """While a background check runs again probes report its last result, until the run is past its timeout."""
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


@pytest.mark.parametrize("fail_interval", [1.0, 60.0])
def test_another_interval_while_failing(fail_interval: float) -> None:
    """A background check that fails is run again after its fail_interval, and by no probe before."""
    switch = Switch()
    switch.down = True
    made = background(switch, fail_interval=fail_interval)
    tick(made)
    assert tick(made) == pytest.approx(fail_interval, rel=JITTER)
    assert (made.later(0.8 * fail_interval).one().status, switch.calls) == ("fail", 1)
    switch.down = False
    tick(made.later(0.4 * fail_interval))
    assert tick(made) == pytest.approx(10.0, rel=JITTER)
    assert switch.calls == 2


def test_background_checks_run_at_their_interval() -> None:
    """A background check runs at once, then each interval, give or take a jitter, which differs; probes only read."""
    switch = Switch()
    made = background(switch)
    assert tick(made) == 2.0  # when it would hang
    pause = tick(made) or 0.0
    assert pause == pytest.approx(10.0, rel=JITTER)
    assert (made.one().status, switch.calls) == ("pass", 1)
    tick(made.later(pause - 0.1))
    made.one()
    assert switch.calls == 1
    tick(made.later(0.1))
    assert switch.calls == 2
    [check] = made.engine.checks()
    assert len({made.engine.pause(check, "pass") for _ in range(10)}) == 10


def test_a_hung_background_check_is_seen_without_a_probe(hanging: Hanging) -> None:
    """The scheduler itself finds that a background check hangs, and starts no second run of it."""
    made = Engineered(Check("db", hanging, interval=10.0, timeout=2.0))
    assert made.engine.tick() == 2.0
    assert made.later(2.0).engine.tick() == 2.0
    until(lambda: made.changes == [("db", "", "fail", "TimeoutError")])
    made.later(30.0).engine.tick()
    assert hanging.calls == 1


def test_probes_run_background_checks_without_a_scheduler() -> None:
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
    made.lifecycle.add_check(Check("later", switch, interval=60.0))
    made.engine.wake()
    until(lambda: switch.calls == 1)
    made.engine.start()
    assert lifecycle_threads().count("lifecycle-checks") == 1
    made.engine.stop()
    assert "lifecycle-checks" not in lifecycle_threads()
    made.engine.wake()
    assert "lifecycle-checks" not in lifecycle_threads()


def test_a_stop_before_the_start_holds() -> None:
    """An engine that was stopped runs nothing in the background, also where its start comes later."""
    # The start-up has made the application ready; a whole shutdown happens; only then the start-up gets on.
    switch = Switch()
    made = real_time(Check("db", switch, interval=60.0))
    made.engine.stop()
    made.engine.stop()
    made.engine.start()
    assert ("lifecycle-checks" in lifecycle_threads(), switch.calls) == (False, 0)
