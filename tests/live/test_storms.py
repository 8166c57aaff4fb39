"""Stops in the middle of a storm of clients: not one request may be lost."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ._client import Tally, storm
from ._process import Starter

STOPS = 10
# As in a container that gives none.
WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()


def stop_in_storm(
    live: Starter,
    server: str,
    expected: str,
    *,
    keep_alive: bool,
    stops: int = STOPS,
    clients: int = 6,
    within: float = 25.0,
    **more: Any,
) -> tuple[int, list[str]]:
    """Stop processes while clients ask without pause; return the answers and the losses.

    :param expected: how the log must say that the listener was closed.
    :param within: seconds that each shutdown may take, as the process itself tells it.
    """
    seen: list[Tally] = []
    for _ in range(stops):
        running = live.serve(server, **more)
        with storm(running.address, running.gone, clients=clients, keep_alive=keep_alive) as tallies:
            assert running.stop() == 0, running.log_tail
        assert running.shutdown_took <= within
        assert running.wait_log(r"listener closed \((.+)\)")[1] == expected
        assert running.hooks() == ["last", "first"]
        seen += tallies
    return sum(tally.answered for tally in seen), [loss for tally in seen for loss in tally.lost]


def test_new_connections_in_a_loop(live: Starter, full_server: str) -> None:
    """Of clients that connect in a loop not one loses a request over ten stops without delay, of
    processes without any capability.
    """
    answered, lost = stop_in_storm(live, full_server, "no device", keep_alive=False, prefix=WITHOUT_CAPABILITIES)
    assert answered > STOPS
    assert lost == []


def test_new_connections_in_a_loop_where_no_listener_becomes_deaf(
    live: Starter, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the listener cannot be made deaf each of ten stops is clean; what the race at the close
    still costs is printed.
    """
    plan = {"fallback": True}
    answered, lost = stop_in_storm(live, server, "quiet period", keep_alive=False, plan=plan)
    with capsys.disabled():
        print(f"\n{server}, no deaf listener: {len(lost)} lost, {answered} answered, {STOPS} stops")
    assert answered > STOPS


def test_storm_does_not_hold_the_listener_open(live: Starter, server: str) -> None:
    """Where the listener cannot be made deaf clients that never pause do not keep a listener open, nor eat up a
    short grace period.
    """
    settings, plan = {"LIFECYCLE_GRACE_PERIOD": 3.0}, {"fallback": True}
    stop_in_storm(
        live,
        server,
        "quiet period",
        keep_alive=False,
        stops=3,
        clients=16,
        within=2.5,
        settings=settings,
        plan=plan,
    )


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_keep_alive_in_a_loop(live: Starter, server: str, delay: float) -> None:
    """Of clients that ask in a loop on kept connections not one loses a request over ten stops,
    with and without delay.
    """
    # A client that gets no processor for a while must still find its connection open.
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": delay, "LIFECYCLE_KEEPALIVE_LINGER": 2.0}
    answered, lost = stop_in_storm(live, server, "no device", keep_alive=True, settings=settings)
    assert answered > STOPS
    assert lost == []
