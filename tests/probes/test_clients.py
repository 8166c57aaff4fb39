"""The probers: which clients count as one, what is recorded of them, and which of them make room for others."""

from __future__ import annotations

from typing import Any

import pytest

from flask_lifecycle import ProberInfo
from tests._fakes import ManualClock, in_child, serve, state_of


class Subject:
    """The probers of an application, on a manual clock."""

    def __init__(self) -> None:
        self.app, _lifecycle = serve()  # kept: the application is referenced weakly
        self.probers = state_of(self.app).probes.probers
        self.clock = ManualClock()
        self.probers.clock = self.clock.monotonic

    def ask(self, agent: str = "", address: str = "10.0.0.1", group: str = "ready", **more: Any) -> None:
        """One probe that was refused."""
        environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address, "SERVER_PORT": "80", **more}
        self.probers.note(group, environ, "fail", refused=True)

    @property
    def first(self) -> Any:
        return self.probers.all()[0]


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.mark.parametrize(
    ("visits", "attribute", "values"),
    [
        # Another group, agent, address or port is another prober; another connection is not.
        (
            [{}, {"REMOTE_PORT": "1"}, {"group": "all"}, {"agent": "a"}, {"address": "b"}, {"SERVER_PORT": "1"}],
            "count",
            [2, 1, 1, 1, 1],
        ),
        # A listener of both families has IPv4 addresses in another form; an IPv6 address stays as it is.
        (
            [{}, {"address": "::ffff:10.0.0.1"}, {"address": "fe80::1%eth0"}, {"address": ""}],
            "address",
            ["10.0.0.1", "fe80::1%eth0", "unknown"],
        ),
        # What a proxy forwards is another prober than the proxy.
        *(
            ([{}, {header: "203.0.113.7"}], "address", ["10.0.0.1", "relayed by 10.0.0.1"])
            for header in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")
        ),
        # flask lifecycle status is none; of an agent a hundred characters are kept, of an address and a port fewer.
        ([{"agent": "flask-lifecycle/0.1.0"}, {"agent": "x" * 5000}], "agent", ["x" * 100]),
        ([{"address": "1" * 5000}], "address", ["1" * 64]),
        ([{"SERVER_PORT": "1" * 5000}], "port", ["1" * 8]),
    ],
)
def test_who_is_a_prober(subject: Subject, visits: list[dict[str, str]], attribute: str, values: list[Any]) -> None:
    """A prober is identified by its group, agent, address and port."""
    for visit in visits:
        subject.ask(**visit)
    assert [getattr(prober, attribute) for prober in subject.probers.snapshot()] == values


@pytest.mark.parametrize(
    ("visits", "interval"),
    [
        ([0.0], 0.0),
        ([0.0, 3.0], 3.0),
        ([0.0, 2.0, 4.0, 6.0, 8.0, 68.0, 70.0, 72.0], 2.0),
        ([0.0, 0.5, 10.0, 10.5, 20.0, 20.5, 30.0, 30.5], 9.5),
        ([0.0, 100.0, *range(101, 120)], 1.0),
    ],
)
def test_the_interval(subject: Subject, visits: list[float], interval: float) -> None:
    """An outlier does not count, of two gaps that take turns the longer one does, and old gaps do not."""
    # A prober is silent when it is three turns and a second late.
    for visit in visits:
        subject.clock.now = visit
        subject.ask()
    assert subject.first.interval == interval
    late = visits[-1] + 3 * interval + 1.0
    assert (subject.first.silent(late), subject.first.silent(late + 0.1)) == (False, True)


def test_a_flood_of_agents_stays_in_its_place(subject: Subject) -> None:
    """A client that changes its agent with each request gets eight places, and removes no other address."""
    subject.ask("balancer", "10.0.0.1")
    for number in range(1000):
        subject.ask(f"flood {number}", "10.9.9.9")
    snapshot = subject.probers.snapshot()
    assert (snapshot[0].agent, len(snapshot)) == ("balancer", 9)


def test_a_flood_of_addresses_pushes_out_newcomers(subject: Subject) -> None:
    """There is room for 64 probers; a flood of addresses replaces itself, and a regular prober stays."""
    for number in range(2000):
        if number % 50 == 0:
            subject.clock.advance(1.0)
            subject.ask("balancer", "10.0.0.1")
        subject.ask("flood", f"10.9.{number // 250}.{number % 250}")
    snapshot = subject.probers.snapshot()
    assert (snapshot[0].agent, snapshot[0].count, len(snapshot)) == ("balancer", 40, 64)


def test_the_silent_go_first(subject: Subject) -> None:
    """A silent prober makes room for a new one, however often it has asked."""
    for _ in range(100):
        subject.ask("gone", "10.0.0.1")
    subject.clock.advance(60.0)
    for number in range(64):
        subject.ask("new", f"10.0.1.{number}")
    assert [prober.agent for prober in subject.probers.snapshot()] == ["new"] * 64


@pytest.mark.parametrize(
    ("agent", "address", "quoted"),
    [("a\nb\x1b", "10.0.0.1", "'a%0Ab%1B' at 10.0.0.1"), ("", "fe80::1%eth0", "at fe80::1%25eth0")],
)
def test_what_a_client_sent_is_quoted(subject: Subject, agent: str, address: str, quoted: str) -> None:
    """A prober's name in the log contains no line end and no escape sequence."""
    subject.ask(agent, address)
    assert str(subject.first) == quoted


def test_refusals_and_a_forked_child(subject: Subject) -> None:
    """Refusals in a row are counted; a forked child has no probers, and a free lock whoever held it in the parent."""
    for status in ("fail", "fail", "pass", "fail"):
        subject.probers.note("ready", {}, status, refused=status == "fail")
    assert subject.first.refused == 1
    with subject.probers._lock:
        assert in_child(lambda: not subject.probers._lock.locked() and subject.probers.snapshot() == ()) == 1
    assert len(subject.probers.snapshot()) == 1


def test_which_requests_are_recorded(subject: Subject) -> None:
    """GET and HEAD of a probe are recorded; other methods, the self-test, work and unknown paths are not."""
    # An answer refuses by its status code, whatever it means to us; a prober of one check has its name.
    app, lifecycle = serve(LIFECYCLE_DETAILS="always", LIFECYCLE_STATUS_CODES={"fail": 299})
    lifecycle.check("database")(lambda: None)
    probers = state_of(app).probes.probers
    probers.clock = subject.clock.monotonic
    client = app.test_client()
    client.get("/work")
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        client.open("/readyz", method=method)
        subject.clock.advance(1.0)
    client.get("/livez/nothing")
    client.get("/livez", environ_overrides={"flask_lifecycle.self_test": []})
    agent = client.environ_base["HTTP_USER_AGENT"]
    found = ProberInfo("ready", agent, "127.0.0.1", "80", 3.0, 1.0, "pass", 2, 0)
    assert lifecycle.probers() == (found,)
    lifecycle.set_not_ready()
    client.get("/readyz")
    client.get("/readyz/database")
    prober, one = lifecycle.probers()
    assert (prober.status, prober.refused, one.group) == ("fail", 0, "ready/database")
