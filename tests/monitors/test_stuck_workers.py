"""The watch of the worker pool: which pools are stuck, and how a change is published."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, check_changed, health_changed
from flask_lifecycle._core.inflight import Load
from tests._fakes import BOUND, FakeServer, ManualClock, enter, make_app, running, state_of, until


class Bench:
    """A pool of two workers that has served for a long time, and its watch."""

    def __init__(self, members: int = 1) -> None:
        self.clock = ManualClock()
        self.apps = [make_app(LIFECYCLE_STUCK_AFTER=60, LIFECYCLE_DETAILS="always") for _ in range(members)]
        self.members: list[Any] = []
        for app in self.apps:
            self.lifecycle = Lifecycle(app)
            self.members.append(state_of(app))
            self.members[-1].startup.run()
            self.members[-1].startup.served_since = 0.0
            self.members[-1].ledger.clock = self.clock.monotonic
        first = self.members[0]
        for other in self.members[1:]:
            first.process.join(other, ())
        self.searches: list[float] = []
        first.serving.find = lambda: self.searches.append(self.clock.now)
        self.shutdown = first.process.shutdown
        self.server = FakeServer()
        self.server.pool = Load(0, 2, 2)
        self.shutdown.server = self.server
        self.watch: Any = first.features["stuck workers"]
        self.watch.clock = self.clock.monotonic

    def begin(self, *threads: int, member: int = 0) -> list[Any]:
        """Begin a request in each of these threads."""
        bodies = []
        for thread in threads:
            bodies.append(enter(self.members[member].ledger))
            bodies[-1].thread = thread
        return bodies

    def look(self, later: float = 0.0) -> Any:
        """Look, some seconds later."""
        self.clock.advance(later)
        return self.watch.look()

    @property
    def pings(self) -> list[Callable[[], None]]:
        return self.shutdown.server.canaries  # type: ignore[no-any-return]

    def answer(self) -> None:
        """Let the ping return."""
        self.pings.pop()()

    def published(self) -> None:
        """Wait until everything is published."""
        until(lambda: not any(thread.name == "lifecycle-stuck-workers" for thread in threading.enumerate()))

    def recover(self, bodies: list[Any]) -> None:
        """End these requests, after which the pool is well."""
        for body in bodies:
            body.close()
        self.answer()
        assert self.look() == ""
        self.published()


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(getattr(request, "param", 1))
    yield bench
    bench.published()


def test_all_workers_with_the_same_requests(bench: Bench) -> None:
    """Once every worker has been busy with its request for longer than the limit, the pool is stuck."""
    bench.begin(1)
    bench.clock.advance(5)
    bench.begin(2)
    assert bench.look(60.0) == ""  # the younger one is as old as the limit, and not older
    assert bench.look(2.0) == "all 2 workers have been busy with the same requests for 62 s"
    bench.server.pool = Load(0, 1, 1)
    assert bench.look() == "the only worker has been busy with the same request for 67 s"


def test_more_old_requests_than_workers(bench: Bench) -> None:
    """The reported age is one that all workers reach, and of each thread only the newest request counts."""
    # A file that is still being sent has left its thread, which runs a newer request.
    bench.begin(1)
    bench.clock.advance(10)
    bench.begin(2)
    bench.clock.advance(10)
    bench.begin(3)
    assert bench.look(61.0).endswith("for 71 s")
    bench.begin(1, 2, 3)
    bench.pings.clear()
    assert bench.look() == ""


@pytest.mark.parametrize("load", [None, Load(0), Load(0, 2, 1), Load(0, 3, 3)])
def test_a_pool_that_is_not_all_busy(bench: Bench, load: Any) -> None:
    """An unknown load, no pool, an idle thread, and more threads than old requests are not stuck."""
    bench.begin(1, 2)
    bench.server.pool = load
    assert bench.look(61.0) == ""


def test_a_ping_that_does_not_return(bench: Bench) -> None:
    """A pool that takes no task for longer than the limit is dead, whatever the in-flight set says."""
    assert bench.look() == ""
    assert bench.look(60.0) == ""
    assert bench.look(2.0) == "fake has not started a task that was queued 62 s ago"
    bench.answer()
    assert bench.look() == ""


def test_one_ping_at_a_time(bench: Bench) -> None:
    """A hung pool gets no second ping, a working one the next after half the limit, or at once if it looks stuck."""
    bench.look()
    for _ in range(3):
        bench.look(61.0)
    assert len(bench.pings) == 1
    bench.answer()
    bench.look()
    assert len(bench.pings) == 1
    bench.answer()
    bench.look(29.0)
    assert bench.pings == []
    bench.look(1.0)
    assert len(bench.pings) == 1
    bench.answer()
    bench.begin(1, 2)
    bench.look(30.0)
    bench.answer()
    assert bench.look(61.0) != ""
    assert len(bench.pings) == 1


def test_a_ping_that_cannot_be_sent(bench: Bench) -> None:
    """A lock that is never released is as bad as a pool that never answers, and the sending is tried again."""
    bench.server.takes_canaries = False
    assert bench.look() == ""
    assert bench.look(61.0) == "fake has not started a task that was queued 61 s ago"
    bench.server.takes_canaries = True
    assert bench.look() != ""
    bench.answer()
    assert bench.look() == ""


def test_a_server_without_a_way_in(bench: Bench) -> None:
    """Where no ping can be sent, only the requests decide."""
    bench.server.takes_canaries = None
    assert [bench.look(), bench.look(61.0)] == ["", ""]
    bench.begin(1, 2)
    assert bench.look(61.0) != ""


def test_a_server_that_was_found(bench: Bench) -> None:
    """A server that a search has found may not run: its silence counts only after it has answered."""
    # A ping to a server that is gone does not count for it.
    bench.look()
    bench.shutdown.server = FakeServer(ours=False)
    assert [bench.look(61.0), bench.look(61.0)] == ["", ""]
    assert len(bench.pings) == 1
    bench.answer()
    assert [bench.look(), bench.look(61.0)] == ["", "fake has not started a task that was queued 61 s ago"]


def test_no_server(bench: Bench) -> None:
    """Without a server nothing is judged, and the searches for one become rarer."""
    bench.shutdown.server = None
    bench.begin(1, 2)
    began = bench.clock.now
    assert [bench.look(later) for later in (0.0, 29.0, 1.0, 59.0, 1.0, 119.0, 1.0)] == [""] * 7
    assert bench.searches == [began, began + 30, began + 90, began + 210]


@pytest.mark.parametrize("bench", [2], indirect=True)
def test_applications_that_share_a_pool(bench: Bench) -> None:
    """The requests of all applications in the process occupy its workers."""
    # The start-up of one may occupy the workers of another; one that never starts hides no stuck pool.
    bodies = bench.begin(1, member=0) + bench.begin(2, member=1)
    assert bench.look(61.0) != ""
    bench.recover(bodies)
    other = bench.members[1]
    other.startup.served_since = None
    bodies = bench.begin(1, 2)
    assert bench.look(61.0) != ""
    bench.recover(bodies)
    bench.begin(1, 2, member=1)
    assert [bench.look(61.0), bench.look(61.0)] == ["", ""]
    other.startup.served_since = bench.clock.now
    assert bench.look(59.0) == ""
    assert bench.look() == ""


def test_a_child(bench: Bench) -> None:
    """After a fork the ping and the result are gone; a lock may have been taken."""
    bench.look()
    assert bench.look(61.0) != ""
    bench.published()
    bench.watch._lock.acquire()
    bench.watch.after_fork()
    assert (bench.watch.report(look=False).status, bench.look()) == ("pass", "")
    assert len(bench.pings) == 2


@contextlib.contextmanager
def hanging(ledger: Any, *paths: str) -> Iterator[None]:
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
    """Each worker's request is logged with its stack once, and again only if the pool gets stuck another time."""
    for _ in range(2):
        caplog.clear()
        bench.begin(0)  # still being sent: its thread is gone
        with hanging(bench.members[0].ledger, "/one", "/t%0Awo"):
            assert bench.look(61.0) != ""
            bench.published()
            assert bench.look(1.0) != ""
        bench.answer()
        assert bench.look() == ""
        bench.published()
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "ERROR", "WARNING"]
        headline, *workers, over = caplog.records
        assert headline.getMessage() == "liveness fails: all 2 workers have been busy with the same requests for 61 s"
        assert over.getMessage() == "liveness passes again: the workers make progress"
        logged = sorted(record.getMessage().splitlines() for record in workers)
        assert [lines[0] for lines in logged] == [
            "a worker is busy with GET /one after 61.0 s (running) in thread worker-1",
            "a worker is busy with GET /t%0Awo after 61.0 s (running) in thread worker-2",
        ]
        assert all(any("in hang" in line for line in lines) for lines in logged)
        assert sorted(record.__dict__["lifecycle_thread"] for record in workers) == ["worker-1", "worker-2"]


def test_a_receiver_that_blocks(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that blocks delays no look and no record, costs one thread, and receives all changes in order."""
    # A change that cannot be published is logged, and the next one is published.
    health = bench.members[0].health
    publish = health.check_changed

    def fail(*change: Any) -> None:
        publish(*change)
        raise ValueError("boom")

    health.check_changed = fail
    heard: list[tuple[str, ...]] = []
    entered, gate = threading.Event(), threading.Event()

    def receive(_sender: Any, **values: str) -> None:
        heard.append(tuple(values.values()))
        entered.set()
        assert gate.wait(BOUND)

    with check_changed.connected_to(receive, bench.apps[0]):
        bench.look()
        bench.look(61.0)
        assert entered.wait(BOUND)
        bench.answer()
        assert bench.look() == ""
        changes = [change.new for change in bench.lifecycle.transitions() if change.subject == "check stuck-workers"]
        assert changes == ["fail", "pass"]
        assert sum(thread.name == "lifecycle-stuck-workers" for thread in threading.enumerate()) == 1
        gate.set()
        bench.published()
    assert heard == [
        ("stuck-workers", "pass", "fail", "fake has not started a task that was queued 61 s ago"),
        ("stuck-workers", "fail", "pass", "the workers make progress again"),
    ]
    assert caplog.messages.count("a change of the health could not be published") == 2


def test_no_more_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If no thread can be started, a later look publishes the change."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench.look()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert bench.look(61.0) != ""
    assert caplog.messages == []
    assert bench.look() != ""
    bench.published()
    assert len(caplog.messages) == 1


def test_two_looks_at_once(bench: Bench) -> None:
    """A look that began earlier and ends later does not overwrite the other's result."""
    # Forced: while the first look asks the server for its load, a request ends and the second look begins and ends. The
    # other order is in every other test.
    one, _two = bench.begin(1, 2)
    server: Any = bench.server

    def load() -> Load:
        del server.load
        one.close()
        assert bench.look(0.1) == ""
        return Load(0, 2, 2)

    server.load = load
    assert bench.look(61.0) != ""
    assert bench.watch.report(look=False).status == "pass"


def test_a_stuck_pool_in_an_application(bench: Bench) -> None:
    """A stuck pool fails liveness and ``/healthcheck`` alone; the change is sent and listed, and details have it."""
    bench.lifecycle.check("mine", groups=("live",))(lambda: None)
    client = bench.apps[0].test_client()
    paths = ("/livez", "/readyz", "/startupz", "/healthcheck", "/livez/mine", "/livez/stuck-workers")
    assert [client.get(path).status_code for path in paths] == [200, 200, 200, 200, 200, 404]
    heard: list[tuple[str, ...]] = []
    bench.clock.advance(61.0)
    with health_changed.connected_to(lambda _sender, **values: heard.append(tuple(values.values())), bench.apps[0]):
        assert [client.get(path).status_code for path in paths] == [503, 200, 200, 503, 200, 404]
        until(lambda: len(heard) == 1)
    assert heard == [("pass", "fail", "check stuck-workers")]
    assert [change.subject for change in bench.lifecycle.transitions()][-2:] == ["check stuck-workers", "health"]
    problem = "fake has not started a task that was queued 61 s ago"
    (entry,) = json.loads(client.get("/livez").data)["checks"]["stuck-workers"]
    assert (entry["status"], entry["output"]) == ("fail", problem)
    assert f"[-]stuck-workers failed: {problem}" in client.get("/livez?verbose").text


def test_applications_share_a_watch() -> None:
    """Applications of one process with the same limit share a watch, so a stuck pool is logged once."""
    apps = [make_app(LIFECYCLE_STUCK_AFTER=after) for after in (60, 60.0, 61)]
    for app in apps:
        Lifecycle(app)
    states: list[Any] = [state_of(app) for app in apps]
    make = type(states[0].features["stuck workers"]).of
    for state in states:
        state.serving = states[0].serving
    first, second, other = map(make, states)
    assert first is second
    assert first is not other
