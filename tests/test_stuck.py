"""The watch of the pool: what it takes for stuck and what it does not, and how it tells."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, check_changed, health_changed
from flask_lifecycle._inflight import Ledger, Load
from flask_lifecycle._state import Event
from flask_lifecycle._stuck import PoolWatch
from flask_lifecycle.checks import Check
from tests._fakes import (
    BOUND,
    FakeMember,
    FakeServer,
    ManualClock,
    enter,
    make_app,
    run_python,
    running,
    state_of,
    until,
)

AFTER = 60.0


class Bench:
    """A pool of two workers that has served since long ago, and its watch."""

    def __init__(self, *, members: int = 1, ours: bool = True) -> None:
        self.clock = ManualClock()
        self.server: FakeServer | None = FakeServer(ours)
        self.server.pool = Load(0, 2, 2)
        self.members = [FakeMember(self.clock) for _ in range(members)]
        for member in self.members:
            member.machine.apply(Event.STARTED)
            member.served_since = 0.0
        self.searches: list[bool] = []
        self.watch = PoolWatch(AFTER, lambda: self.members, self.find, self.clock.monotonic)
        self.ended: list[Any] = []

    def find(self, search: bool) -> FakeServer | None:
        self.searches.append(search)
        return self.server

    def begin(self, *threads: int, member: int = 0) -> list[Any]:
        """Begin a request in each of these threads."""
        bodies = []
        for thread in threads:
            bodies.append(enter(self.members[member].ledger))
            bodies[-1].thread = thread
        return bodies

    def look(self, later: float = 0.0) -> str:
        """Look, so many seconds later."""
        self.clock.advance(later)
        return self.watch.look()

    @property
    def canaries(self) -> list[Callable[[], None]]:
        assert self.server is not None
        return self.server.canaries

    def answer(self) -> None:
        """Let the canary come back."""
        self.canaries.pop()()

    def told(self) -> None:
        """Wait until everything is told."""
        until(lambda: not any(thread.name == "lifecycle-stuck-workers" for thread in threading.enumerate()))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.told()


# -- the same requests --------------------------------------------------------------------------------------------


def test_all_workers_with_the_same_requests(bench: Bench) -> None:
    """Once every worker has been busy with its request for longer than the limit, the pool is stuck."""
    bench.begin(1)
    bench.clock.advance(5)
    bench.begin(2)
    assert bench.look(60.0) == ""  # the younger one is as old as the limit, and not older
    assert bench.look(2.0) == "all 2 workers have been busy with the same requests for 62 s"


def test_it_is_over_when_one_ends(bench: Bench) -> None:
    """One request that ends is enough: its worker takes the canary, and what comes next."""
    one, _two = bench.begin(1, 2)
    assert bench.look(61.0) != ""
    one.close()
    bench.answer()
    assert bench.look() == ""
    bench.begin(1)
    assert bench.look(30.0) == ""


def test_one_hung_request_among_free_workers(bench: Bench) -> None:
    """A request that hangs for ever does no harm to liveness as long as another worker gets on."""
    bench.begin(1)
    for _ in range(5):
        assert bench.look(61.0) == ""
        bench.answer()


def test_a_pool_of_one(bench: Bench) -> None:
    """A pool of one worker is told in the singular."""
    assert bench.server is not None
    bench.server.pool = Load(0, 1, 1)
    bench.begin(1)
    assert bench.look(61.4) == "the only worker has been busy with the same request for 61 s"


def test_requests_beside_the_pool_make_nobody_older(bench: Bench) -> None:
    """Of more old requests than workers the age that is told is one that all workers reach."""
    bench.begin(1)
    bench.clock.advance(10)
    bench.begin(2)
    bench.clock.advance(10)
    bench.begin(3)
    assert bench.look(61.0).endswith("for 71 s")


def test_only_the_newest_request_of_a_thread_counts(bench: Bench) -> None:
    """Files that are still sent have left their threads, which run something newer by now."""
    bench.begin(1, 2)
    bench.clock.advance(61)
    bench.begin(1, 2)
    assert bench.look() == ""


def test_a_canary_that_comes_back_is_believed(bench: Bench) -> None:
    """Slow readers of files look like busy workers, but a worker takes the canary at once."""
    bench.begin(1, 2)

    def answer() -> None:
        until(lambda: bool(bench.canaries))
        bench.answer()

    with running(answer):
        assert bench.look(61.0) == ""


@pytest.mark.parametrize("load", [None, Load(0), Load(0, 2, 1), Load(0, 3, 3)])
def test_a_pool_that_is_not_all_busy(bench: Bench, load: Load | None) -> None:
    """An unknown load, no pool, an idle thread, and more threads than old requests: none of them is stuck."""
    assert bench.server is not None
    bench.begin(1, 2)
    bench.server.load = lambda: load  # type: ignore[method-assign]
    assert bench.look(61.0) == ""


def test_applications_that_share_a_pool() -> None:
    """The requests of all the applications in the process hold its workers."""
    bench = Bench(members=2)
    bench.begin(1, member=0)
    bench.begin(2, member=1)
    assert bench.look(61.0) != ""
    bench.told()


# -- the canary ---------------------------------------------------------------------------------------------------


def test_a_canary_that_does_not_come_back(bench: Bench) -> None:
    """A pool that takes no task for longer than the limit is dead, whatever the ledger says."""
    assert bench.look() == ""
    assert bench.look(60.0) == ""
    assert bench.look(2.0) == "fake has not come to a task that it was given 62 s ago"
    bench.answer()
    assert bench.look() == ""


def test_one_canary_at_a_time(bench: Bench) -> None:
    """A hung pool gets no second canary, and one that gets on the next after half the limit."""
    bench.look()
    for _ in range(3):
        bench.look(61.0)
    assert len(bench.canaries) == 1
    bench.answer()
    bench.look()
    assert len(bench.canaries) == 1
    bench.answer()
    bench.look(29.0)
    assert bench.canaries == []
    bench.look(1.0)
    assert len(bench.canaries) == 1


def test_a_suspicion_does_not_wait_for_the_next_canary(bench: Bench) -> None:
    """Whatever looks stuck is asked at once, also if a canary has just come back."""
    bench.begin(1, 2)
    bench.look(40.0)
    bench.answer()
    assert bench.look(21.0) != ""
    assert len(bench.canaries) == 1


def test_a_canary_that_cannot_be_sent(bench: Bench) -> None:
    """A lock that is never to be had is as bad as a pool that never answers, and the sending is tried again."""
    assert bench.server is not None
    bench.server.takes_canaries = False
    assert bench.look() == ""
    assert bench.look(61.0) == "fake has not come to a task that it was given 61 s ago"
    bench.server.takes_canaries = True
    assert bench.look() != ""
    bench.answer()
    assert bench.look() == ""


def test_a_server_without_a_way_in(bench: Bench) -> None:
    """Where no canary can be sent, its silence says nothing, and the requests decide alone."""
    assert bench.server is not None
    bench.server.takes_canaries = None
    assert [bench.look(), bench.look(61.0)] == ["", ""]
    bench.begin(1, 2)
    assert bench.look(61.0) != ""


def test_a_server_of_somebody_else() -> None:
    """One that was found by a search may be served by nobody: its silence counts once it has answered."""
    bench = Bench(ours=False)
    assert [bench.look(), bench.look(61.0)] == ["", ""]
    bench.answer()
    assert [bench.look(), bench.look(61.0)] == ["", "fake has not come to a task that it was given 61 s ago"]
    bench.told()


def test_another_server(bench: Bench) -> None:
    """What was given to a server that is gone is not asked of the next."""
    bench.look()
    bench.server = FakeServer(ours=False)
    assert bench.look(61.0) == ""
    assert len(bench.canaries) == 1
    assert bench.look(61.0) == ""


def test_no_server(bench: Bench) -> None:
    """Where no server is known nothing is judged, and the searches for one become ever more seldom."""
    bench.server = None
    bench.begin(1, 2)
    assert [bench.look(later) for later in (0.0, 29.0, 1.0, 59.0, 1.0, 119.0, 1.0)] == [""] * 7
    assert bench.searches == [True, False, True, False, True, False, True]


# -- when nothing is judged ---------------------------------------------------------------------------------------


def test_requests_that_wait_for_the_start_up(bench: Bench) -> None:
    """Workers that are held until the start-up is over are not stuck, and their time begins when it is."""
    (member,) = bench.members
    member.served_since = None
    bench.begin(1, 2)
    assert bench.look(61.0) == ""
    member.served_since = bench.clock.now
    assert bench.look(60.0) == ""
    assert bench.look(1.0) == "all 2 workers have been busy with the same requests for 61 s"


def test_requests_that_wait_for_another_start_up() -> None:
    """The start-up of one application may hold the workers that another one needs: no canary is due meanwhile."""
    bench = Bench(members=2)
    other = bench.members[1]
    other.served_since = None
    assert bench.look() == ""
    bench.begin(1, 2, member=1)
    assert bench.look(61.0) == ""
    other.served_since = bench.clock.now
    assert bench.look(59.0) == ""
    bench.answer()
    assert bench.look() == ""


def test_an_application_that_nobody_asks_anything() -> None:
    """An application whose start-up never comes, because it is not served, does not hide what is stuck."""
    bench = Bench(members=2)
    bench.members[1].served_since = None
    bench.begin(1, 2)
    assert bench.look(61.0) != ""
    bench.told()


def test_a_shutdown(bench: Bench) -> None:
    """A pool that is stuck in a drain is left to the drain's own deadline."""
    bench.begin(1, 2)
    bench.look(61.0)
    bench.members[0].begin_drain("over")
    assert bench.look() == ""


def test_a_child(bench: Bench) -> None:
    """After a fork nothing is left of the canary, nor of what was said; a lock may have been held."""
    bench.look()
    assert bench.look(61.0) != ""
    bench.told()
    bench.watch._lock.acquire()
    bench.watch.forget()
    assert (bench.watch.status, bench.look()) == ("pass", "")
    assert len(bench.canaries) == 2


# -- telling ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hanging(ledger: Ledger, *paths: str) -> Iterator[None]:
    """Have a thread hang in each of these requests."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    def hang(path: str) -> None:
        body = enter(ledger, path)
        begun.release()
        assert gate.wait(BOUND)
        body.close()

    with contextlib.ExitStack() as stack:
        for number, path in enumerate(paths, 1):
            stack.enter_context(running(functools.partial(hang, path), f"worker-{number}"))
        stack.callback(gate.set)
        for _ in paths:
            assert begun.acquire(timeout=BOUND)
        yield


def test_the_stacks_are_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Each worker's request is logged with its stack, once, and again only if the pool gets stuck another time."""
    for _ in range(2):
        caplog.clear()
        bench.begin(0)  # only sent yet: its thread is gone
        with hanging(bench.members[0].ledger, "/one", "/t%0Awo"):
            assert bench.look(61.0) != ""
            bench.told()
            assert bench.look(1.0) != ""
        bench.answer()
        assert bench.look() == ""
        bench.told()
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "ERROR", "WARNING"]
        headline, *workers, over = caplog.records
        assert headline.getMessage() == "liveness fails: all 2 workers have been busy with the same requests for 61 s"
        assert over.getMessage() == "liveness passes again: the workers get on"
        told = sorted(record.getMessage().splitlines() for record in workers)
        assert [lines[0] for lines in told] == [
            "a worker is busy with GET /one after 61.0 s (running) in thread worker-1",
            "a worker is busy with GET /t%0Awo after 61.0 s (running) in thread worker-2",
        ]
        assert all(any("in hang" in line for line in lines) for lines in told)
        assert sorted(record.__dict__["lifecycle_thread"] for record in workers) == ["worker-1", "worker-2"]


class Deaf:
    """A listener that blocks until it is let go."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()

    def pool_changed(self, check: Check, old: str, new: str, reason: str) -> None:
        self.heard.append((check.name, old, new, reason))
        self.entered.set()
        assert self.gate.wait(BOUND)


def test_a_listener_that_blocks(bench: Bench) -> None:
    """Who blocks while he is told holds up no look, costs one thread, and hears of everything in its order."""
    deaf = Deaf()
    bench.watch.listeners.add(deaf)
    bench.look()
    bench.look(61.0)
    assert deaf.entered.wait(BOUND)
    bench.answer()
    assert bench.look() == ""
    assert sum(thread.name == "lifecycle-stuck-workers" for thread in threading.enumerate()) == 1
    deaf.gate.set()
    bench.told()
    assert deaf.heard == [
        ("stuck-workers", "pass", "fail", "fake has not come to a task that it was given 61 s ago"),
        ("stuck-workers", "fail", "pass", "the workers get on again"),
    ]


def test_a_listener_that_fails(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Who raises when he is told is logged, and the next change is told all the same."""

    class Failing:
        def pool_changed(self, *change: Any) -> None:
            raise ValueError("boom")

    failing = Failing()
    bench.watch.listeners.add(failing)
    bench.look()
    assert bench.look(61.0) != ""
    bench.told()
    bench.answer()
    assert bench.look() == ""
    bench.told()
    said = "a change of the check 'stuck-workers' could not be told"
    assert [message == said for message in caplog.messages] == [False, True, False, True]


def test_no_thread_to_be_had(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread can be started the verdict stands, and a later look has it told."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench.look()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert bench.look(61.0) != ""
    assert caplog.messages == []
    assert bench.look() != ""
    bench.told()
    assert len(caplog.messages) == 1


def test_two_looks_at_once(bench: Bench) -> None:
    """A look that began earlier and ends later does not take back what the other one knows.

    Forced: while the first look asks the server for its load, a request ends and the second look begins and ends. The
    other way round, one after the other, is what every other test does.
    """
    assert bench.server is not None
    one, _two = bench.begin(1, 2)

    def load() -> Load:
        bench.server.load = lambda: Load(0, 2, 2)  # type: ignore[method-assign,union-attr]
        one.close()
        assert bench.look(0.1) == ""
        return Load(0, 2, 2)

    bench.server.load = load  # type: ignore[method-assign]
    assert bench.look(61.0) != ""
    assert bench.watch.status == "pass"


# -- in the application -------------------------------------------------------------------------------------------


class Stuck:
    """Stands for the watch."""

    def __init__(self, watch: PoolWatch, why: str) -> None:
        watch.look = lambda: why  # type: ignore[method-assign]


def test_what_the_probes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck pool fails liveness and what asks for everything, and neither readiness nor the start-up."""
    app = make_app(LIFECYCLE_STUCK_AFTER=60)
    Lifecycle(app)
    client = app.test_client()
    codes = [client.get(path).status_code for path in ("/livez", "/readyz", "/startupz", "/healthcheck")]
    assert codes == [200, 200, 200, 200]
    Stuck(state_of(app).process.watch(60.0), "all 2 workers have been busy with the same requests for 62 s")
    codes = [client.get(path).status_code for path in ("/livez", "/readyz", "/startupz", "/healthcheck")]
    assert codes == [503, 200, 200, 503]
    assert client.get("/livez").json == {"status": "fail"}
    assert client.get("/livez/stuck-workers").status_code == 404


def test_what_those_see_who_may() -> None:
    """The reason is for those who may see details, as that of a check."""
    app = make_app(LIFECYCLE_STUCK_AFTER=60, LIFECYCLE_DETAILS="always")
    lifecycle = Lifecycle(app)
    (entry,) = json.loads(app.test_client().get("/livez").data)["checks"]["stuck-workers"]
    assert (entry["status"], entry.get("output")) == ("pass", None)
    Stuck(state_of(app).process.watch(60.0), "it is stuck")
    (entry,) = json.loads(app.test_client().get("/livez").data)["checks"]["stuck-workers"]
    assert (entry["status"], entry["output"]) == ("fail", "it is stuck")
    lifecycle.check("mine", groups=("live",))(lambda: None)
    assert [app.test_client().get(path).status_code for path in ("/livez", "/livez/mine")] == [503, 200]
    assert "[-]stuck-workers failed: it is stuck" in app.test_client().get("/livez?verbose").text


def test_the_change_is_told() -> None:
    """A pool that gets stuck is a change of a check and of the health, for receivers and in the list of changes."""
    app = make_app(LIFECYCLE_STUCK_AFTER=60)
    lifecycle = Lifecycle(app)
    app.test_client().get("/livez")
    state = state_of(app)
    watch = state.process.watch(60.0)
    heard: list[tuple[str, ...]] = []

    def receive(_sender: Any, **values: str) -> None:
        heard.append(tuple(values.values()))

    assert state.health.known()[-1].status == "pass"
    watch._judge = lambda now: "it is stuck"  # type: ignore[method-assign]
    with check_changed.connected_to(receive, app), health_changed.connected_to(receive, app):
        watch.look()
        until(lambda: len(heard) == 2)
    last = state.health.known()[-1]
    assert (last.name, last.status, last.output) == ("stuck-workers", "fail", "it is stuck")
    assert heard == [("stuck-workers", "pass", "fail", "it is stuck"), ("pass", "fail", "check stuck-workers")]
    with app.app_context():
        assert [change.subject for change in lifecycle.transitions()][-2:] == ["check stuck-workers", "health"]
    until(lambda: not any(thread.name == "lifecycle-stuck-workers" for thread in threading.enumerate()))


def test_applications_share_a_watch() -> None:
    """Applications of one process with the same limit have one watch, so that what is stuck is logged once."""
    app = make_app(LIFECYCLE_STUCK_AFTER=60)
    Lifecycle(app)
    process = state_of(app).process
    assert process.watch(60.0) is process.watch(60)
    assert process.watch(61.0) is not process.watch(60.0)
    process.watch(60.0)._why = "of the parent"
    process._renew()
    assert process.watch(60.0).status == "pass"


def test_requests_are_judged_from_the_end_of_the_start_up() -> None:
    """The application notes when requests stop to wait for its start-up."""
    app = make_app(LIFECYCLE_STUCK_AFTER=60)
    lifecycle = Lifecycle(app)
    seen: list[float | None] = []
    before = state_of(app).ledger.clock()
    lifecycle.on_startup(lambda: seen.append(state_of(app).served_since))
    app.test_client().get("/work").close()
    assert seen == [None]
    served_since = state_of(app).served_since
    assert served_since is not None
    assert before <= served_since <= state_of(app).ledger.clock()


def test_it_is_not_even_imported() -> None:
    """Whoever does not ask for it does not pay for it."""
    done = run_python(
        "import sys; from flask import Flask; from flask_lifecycle import Lifecycle; app = Flask('x'); Lifecycle(app);"
        "print(app.test_client().get('/livez').status, 'flask_lifecycle._stuck' in sys.modules)"
    )
    assert done.stdout == "200 OK False\n", done.stderr
