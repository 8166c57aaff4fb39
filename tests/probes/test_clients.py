"""The ledger of probers: who is one, what is known of it, and who has to make room."""

from __future__ import annotations

from typing import Any

import pytest

from flask_lifecycle import Lifecycle, ProberInfo
from flask_lifecycle._probes import clients, self_test
from tests._fakes import ManualClock, in_child, make_app


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def probers(clock: ManualClock) -> clients.Probers:
    return clients.Probers(clock.monotonic)


def ask(
    probers: clients.Probers, agent: str = "", address: str = "10.0.0.1", group: str = "ready", **more: Any
) -> None:
    """One visit that was refused."""
    environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address, "SERVER_PORT": "80", **more}
    probers.note(group, environ, "fail", refused=True)


def test_what_is_known_of_a_prober(clock: ManualClock, probers: clients.Probers) -> None:
    """The ledger tells how long ago a prober came, how often, at what interval, and what it was told in a row."""
    environ = {"HTTP_USER_AGENT": "checker/1", "REMOTE_ADDR": "10.0.0.1"}
    for status in ("fail", "fail", "pass", "fail"):
        clock.advance(2.0)
        probers.note("ready", environ, status, refused=status == "fail")
    clock.advance(0.5)
    assert probers.snapshot() == (ProberInfo("ready", "checker/1", "10.0.0.1", "", 0.5, 2.0, "fail", 4, 1),)


@pytest.mark.parametrize(
    ("visits", "attribute", "values"),
    [
        # What differs in group, agent, address or port is another prober; what comes by a new connection is not.
        (
            [
                {},
                {"REMOTE_PORT": "1"},
                {"group": "healthcheck"},
                {"agent": "a"},
                {"address": "b"},
                {"SERVER_PORT": "1"},
            ],
            "count",
            [2, 1, 1, 1, 1],
        ),
        # An address of IPv4 is the same by a listener of both families; one of IPv6 stays as it is.
        (
            [{}, {"address": "::ffff:10.0.0.1"}, {"address": "fe80::1%eth0"}, {"address": ""}],
            "address",
            ["10.0.0.1", "fe80::1%eth0", "unknown"],
        ),
        # What a proxy passed on is a prober of its own, whatever it calls itself.
        *(
            ([{}, {header: "203.0.113.7"}], "address", ["10.0.0.1", "relayed by 10.0.0.1"])
            for header in ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")
        ),
        # flask lifecycle status is none, and of an agent a hundred characters are kept.
        ([{"agent": "flask-lifecycle/0.1.0"}, {"agent": "x" * 5000}], "agent", ["x" * 100]),
    ],
)
def test_who_is_a_prober(
    probers: clients.Probers, visits: list[dict[str, str]], attribute: str, values: list[Any]
) -> None:
    """Probers are told apart by group, agent, address and port."""
    for visit in visits:
        ask(probers, **visit)
    assert [getattr(prober, attribute) for prober in probers.snapshot()] == values


@pytest.mark.parametrize(
    ("group", "agent", "decides"),
    [
        ("ready", "", True),
        ("healthcheck", "ELB-HealthChecker/2.0", True),
        ("search", "kube-probe/1.30", True),
        ("ready/database", "", True),
        ("live", "", False),
        ("live/worker", "", False),
        ("startup", "kube-probe/1.30", False),
        ("healthcheck", "Mozilla/5.0 (X11; Linux x86_64)", False),
    ],
)
def test_who_decides_about_traffic(group: str, agent: str, decides: bool) -> None:
    """Whoever asks neither liveness nor start-up, and is no browser, may decide about traffic."""
    assert clients.Prober(group, agent, "10.0.0.1", "80").decides is decides


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
def test_the_interval(visits: list[float], interval: float) -> None:
    """One gap out of line does not count, of two that take turns the longer one does, and what is long ago does not."""
    prober = clients.Prober("ready", "", "10.0.0.1", "80")
    for visit in visits:
        prober.came(visit, "pass", refused=False)
    assert prober.interval == interval


def test_silence() -> None:
    """A prober is silent when it has missed its turn three times, and a second."""
    prober = clients.Prober("ready", "", "10.0.0.1", "80")
    prober.came(10.0, "pass", refused=False)
    assert (prober.silent(11.0), prober.silent(11.1)) == (False, True)
    prober.came(12.0, "pass", refused=False)
    assert (prober.silent(19.0), prober.silent(19.1)) == (False, True)


def test_a_flood_of_agents_stays_in_its_place(probers: clients.Probers) -> None:
    """Whoever changes its name with each request gets eight places, and pushes out nobody from elsewhere."""
    ask(probers, "balancer", "10.0.0.1")
    for number in range(1000):
        ask(probers, f"flood {number}", "10.9.9.9")
    snapshot = probers.snapshot()
    assert (snapshot[0].agent, len(snapshot)) == ("balancer", 9)


def test_a_flood_of_addresses_pushes_out_newcomers(clock: ManualClock, probers: clients.Probers) -> None:
    """The ledger has 64 entries; a flood from everywhere replaces itself, and a regular prober stays."""
    for number in range(2000):
        if number % 50 == 0:
            clock.advance(1.0)
            ask(probers, "balancer", "10.0.0.1")
        ask(probers, "flood", f"10.9.{number // 250}.{number % 250}")
    snapshot = probers.snapshot()
    assert (snapshot[0].agent, snapshot[0].count, len(snapshot)) == ("balancer", 40, 64)


def test_the_silent_go_first(clock: ManualClock, probers: clients.Probers) -> None:
    """However often somebody came once, who has gone leaves its place to who comes now."""
    for _ in range(100):
        ask(probers, "gone", "10.0.0.1")
    clock.advance(60.0)
    for number in range(64):
        ask(probers, "new", f"10.0.1.{number}")
    assert {prober.agent for prober in probers.snapshot()} == {"new"}
    assert len(probers.snapshot()) == 64


def test_what_a_client_sent_is_quoted() -> None:
    """A prober is named in the log in the words of a request line: no line of its own, no escape sequence."""
    assert str(clients.Prober("ready", "a\nb\x1b", "10.0.0.1", "80")) == "'a%0Ab%1B' at 10.0.0.1"
    assert str(clients.Prober("ready", "", "fe80::1%eth0", "80")) == "at fe80::1%25eth0"


def test_a_forked_child_knows_nobody(probers: clients.Probers) -> None:
    """After a fork the ledger is empty, and its lock free whoever held it in the parent."""
    ask(probers)
    with probers._lock:
        assert in_child(lambda: not probers._lock.locked() and probers.snapshot() == ()) == 1
    assert len(probers.snapshot()) == 1


# -- in an application --------------------------------------------------------------------------------------------


def test_probes_are_noted_and_others_are_not() -> None:
    """GET and HEAD are one prober's; other methods, the self-test, work and what is not found are no visits.

    An answer refuses by its status code, and not by what it means to us; who asks for one check has its name.
    """
    app = make_app(LIFECYCLE_DETAILS="always", LIFECYCLE_STATUS_CODES={"fail": 299})
    lifecycle = Lifecycle(app)
    lifecycle.check("database")(lambda: None)
    client = app.test_client()
    client.get("/work")
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        client.open("/readyz", method=method)
    client.get("/livez/nothing")
    assert list(app.wsgi_app(self_test.kubelet_request("/livez"), lambda *_: lambda _data: None)) != []
    (prober,) = lifecycle.probers()
    assert (prober.group, prober.address, prober.port, prober.status) == ("ready", "127.0.0.1", "80", "pass")
    assert (prober.count, prober.refused) == (2, 0)
    lifecycle.set_not_ready()
    client.get("/readyz")
    client.get("/readyz/database")
    prober, one = lifecycle.probers()
    assert (prober.status, prober.refused, one.group) == ("fail", 0, "ready/database")
